"""Derivatives of the prototype margin loss: computed with the value, scaled in backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops import derivatives
from cgm_fast.ops.prototype_margin.ops import prototype_margin_fwd, prototype_margin_hvp
from cgm_fast.ops.scaling import last_derivative, scale_each
from cgm_fast.ops.watching import composed


class PrototypeMargin(torch.autograd.Function):
    """(r, g, labels, margin, negative_scale, scale, backend) -> loss [], assignment [B]."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        """Compute the loss, the assignment and the gradients that will be wanted."""
        r, g, labels, *constants, backend = args
        needs = ctx.needs_input_grad[:2]
        loss, assignment, grad_r, grad_g = prototype_margin_fwd(
            r, g, labels, *constants, *needs, backend
        )
        ctx.save_for_backward(r, g, assignment, grad_r, grad_g)
        ctx.constants, ctx.backend = constants, backend
        ctx.mark_non_differentiable(assignment)
        ctx.set_materialize_grads(False)  # no zeros for the assignment
        return loss, assignment

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Scale the saved gradients; differentiably only if a second derivative may follow."""
        grad_loss = grads[0]
        r, g, assignment, grad_r, grad_g = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        if not torch.is_grad_enabled():
            out = scale_each(grad_loss, (r, g), (grad_r, grad_g), needs)
        elif composed(grad_loss):  # the gradients of a batch, together
            gradients = _FWD(r, g, assignment, *ctx.constants, *needs, ctx.backend)[2:]
            out = scale_each(grad_loss, (r, g), gradients, needs)
        else:
            out = PrototypeMarginGradient.apply(
                grad_loss, r, g, assignment, grad_r, grad_g, needs, ctx.constants, ctx.backend
            )
        return (*out, None, None, None, None, None)


class PrototypeMarginGradient(torch.autograd.Function):
    """(dL, r, g, assignment, gradients, static...) -> derivatives in r and g."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass of `PrototypeMargin` computed."""
        grad_loss, r, g, assignment, grad_r, grad_g, needs, constants, backend = args
        ctx.save_for_backward(grad_loss, r, g, assignment, grad_r, grad_g)
        ctx.constants, ctx.backend = constants, backend
        return scale_each(grad_loss, (r, g), (grad_r, grad_g), needs)

    @staticmethod
    @last_derivative
    def backward(ctx: Any, *tangents: Tensor | None) -> Any:
        """Hessian-vector product with the tangents, and the tangents' share of dL."""
        grad_loss, r, g, assignment, grad_r, grad_g = ctx.saved_tensors
        of_r, of_g = prototype_margin_hvp(r, g, assignment, *ctx.constants, *tangents, ctx.backend)
        terms = [torch.zeros_like(grad_loss)]
        for tangent, gradient in zip(tangents, (grad_r, grad_g), strict=True):
            if tangent is not None:
                terms.append((tangent * gradient).sum())
        grad_grad_loss = sum(terms[1:], terms[0])
        out = scale_each(grad_loss, (r, g), (of_r, of_g), ctx.needs_input_grad[1:3])
        return (grad_grad_loss, *out, None, None, None, None, None, None)


_FWD = torch.ops.cgm_fast.prototype_margin_fwd.default
_HVP = torch.ops.cgm_fast.prototype_margin_hvp.default

# Of the forward op: arguments 6 and 7 ask for gradients, results are the loss, the assignment, and
# the gradients. Of the product: arguments 6 and 7 are the vectors.
derivatives.differentiate(
    "prototype_margin_fwd",
    derivatives.OfPair(_HVP, flags=6, assignment=1, latents=None, gradients=2, constant=(1,)),
)
derivatives.differentiate("prototype_margin_hvp", derivatives.OfProduct(_HVP, 6))
derivatives.map_items("prototype_margin_fwd")
derivatives.map_items("prototype_margin_hvp")
