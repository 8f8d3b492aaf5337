"""Derivatives of the prototype margin loss: computed with the value, scaled in backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops.prototype_margin.ops import prototype_margin_bwd, prototype_margin_fwd
from cgm_fast.ops.scaling import last_derivative, scale_each


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
        if torch.is_grad_enabled():
            out = PrototypeMarginGradient.apply(
                grad_loss, r, g, assignment, grad_r, grad_g, needs, ctx.constants, ctx.backend
            )
        else:
            out = scale_each(grad_loss, (r, g), (grad_r, grad_g), needs)
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
        """Hessian times the tangents, and the tangents' share of dL."""
        grad_loss, r, g, assignment, grad_r, grad_g = ctx.saved_tensors
        of_r, of_g = prototype_margin_bwd(r, g, assignment, *ctx.constants, *tangents, ctx.backend)
        grad_grad_loss = torch.zeros_like(grad_loss)
        for tangent, gradient in zip(tangents, (grad_r, grad_g), strict=True):
            if tangent is not None:
                grad_grad_loss += (tangent * gradient).sum()
        out = scale_each(grad_loss, (r, g), (of_r, of_g), ctx.needs_input_grad[1:3])
        return (grad_grad_loss, *out, None, None, None, None, None, None)
