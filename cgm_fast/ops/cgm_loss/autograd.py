"""Derivatives of the CGM latent objective: computed with the value, scaled in backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops import derivatives
from cgm_fast.ops.cgm_loss.ops import cgm_loss_fwd, cgm_loss_hvp
from cgm_fast.ops.scaling import last_derivative, scale_each
from cgm_fast.ops.watching import composed


class CGMLoss(torch.autograd.Function):
    """(r, g, labels, noise, constants..., backend) -> loss [], terms [2], assignment [B], z."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute the loss, the latents and the gradients that will be wanted."""
        r, g, labels, noise, *constants, backend = args
        needs = ctx.needs_input_grad[:2]
        loss, terms, assignment, z, grad_r, grad_g = cgm_loss_fwd(
            r, g, labels, noise, *constants, *needs, backend
        )
        ctx.save_for_backward(r, g, assignment, noise, grad_r, grad_g)
        ctx.constants, ctx.backend = constants, backend
        ctx.mark_non_differentiable(terms, assignment)
        ctx.set_materialize_grads(False)  # no zeros for what nothing depends on
        return loss, terms, assignment, z

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Scale the saved gradients and add what reached z, which moves with r."""
        grad_loss, _, _, grad_z = grads
        r, g, assignment, noise, grad_r, grad_g = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        of_r = of_g = None
        if grad_loss is None:  # only z is used
            pass
        elif not torch.is_grad_enabled():
            of_r, of_g = scale_each(grad_loss, (r, g), (grad_r, grad_g), needs)
        elif composed(grad_loss):  # the gradients of a batch, together
            gradients = _FWD(r, g, assignment, noise, *ctx.constants, *needs, ctx.backend)[4:]
            of_r, of_g = scale_each(grad_loss, (r, g), gradients, needs)
        else:
            of_r, of_g = CGMLossGradient.apply(
                grad_loss, r, g, assignment, noise, grad_r, grad_g, needs, ctx.constants,
                ctx.backend,
            )  # fmt: skip
        if needs[0] and grad_z is not None:
            of_r = grad_z if of_r is None else of_r + grad_z
        return (of_r, of_g, *[None] * (3 + len(ctx.constants)))


class CGMLossGradient(torch.autograd.Function):
    """(dL, r, g, assignment, noise, gradients, static...) -> derivatives in r and g."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass of `CGMLoss` computed."""
        grad_loss, r, g, assignment, noise, grad_r, grad_g, needs, constants, backend = args
        ctx.save_for_backward(grad_loss, r, g, assignment, noise, grad_r, grad_g)
        ctx.constants, ctx.backend = constants, backend
        return scale_each(grad_loss, (r, g), (grad_r, grad_g), needs)

    @staticmethod
    @last_derivative
    def backward(ctx: Any, *tangents: Tensor | None) -> Any:
        """Hessian-vector product with the tangents, and the tangents' share of dL."""
        grad_loss, r, g, assignment, noise, grad_r, grad_g = ctx.saved_tensors
        dtype = torch.promote_types(r.dtype, torch.float32)
        t_r, t_g = (
            like.new_zeros(like.shape, dtype=dtype) if t is None else t.to(dtype)
            for t, like in zip(tangents, (r, g), strict=True)
        )
        of_r, of_g = cgm_loss_hvp(r, g, assignment, noise, *ctx.constants, t_r, t_g, ctx.backend)
        terms = [torch.zeros_like(grad_loss)]
        for tangent, gradient in ((tangents[0], grad_r), (tangents[1], grad_g)):
            if tangent is not None:
                terms.append((tangent * gradient).sum())
        grad_grad_loss = sum(terms[1:], terms[0])
        out = scale_each(grad_loss, (r, g), (of_r, of_g), ctx.needs_input_grad[1:3])
        return (grad_grad_loss, *out, *[None] * 7)


_FWD = torch.ops.cgm_fast.cgm_loss_fwd.default
_HVP = torch.ops.cgm_fast.cgm_loss_hvp.default

# Of the forward op: arguments 13 and 14 ask for gradients; results are the loss, its terms, the
# assignment, the latents, and the gradients. Of the product: arguments 13 and 14 are the vectors.
derivatives.differentiate(
    "cgm_loss_fwd",
    derivatives.OfPair(_HVP, flags=13, assignment=2, latents=3, gradients=4, constant=(1, 2)),
)
derivatives.differentiate("cgm_loss_hvp", derivatives.OfProduct(_HVP, 13))
derivatives.map_items("cgm_loss_fwd")
derivatives.map_items("cgm_loss_hvp")
