"""Derivatives of the CGM latent objective: computed with the value, scaled in backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops import derivatives
from cgm_fast.ops.autograd import backward, forward
from cgm_fast.ops.cgm_loss.ops import cgm_loss_fwd, cgm_loss_hvp
from cgm_fast.ops.formulas import OfPair, Tensors


class CGMLossFormula(OfPair):
    """Values are the loss, its terms, the assignment and the latents, which move with r."""

    fwd, hvp = cgm_loss_fwd, cgm_loss_hvp
    values, constant, assignment = 4, (1, 2), 2

    def moved(self, tangents: Tensors) -> dict[int, Tensor | None]:
        """z = r + σ e."""
        return {3: tangents[0]}

    def reached(self, cotangents: Tensors, count: int) -> list[Tensor | None]:
        """What reached z is r's."""
        return [cotangents[3], None]


FORMULA = CGMLossFormula()


class CGMLoss(torch.autograd.Function):
    """(static, backend, None, the problem's tensors...) -> loss, terms, assignment, z."""

    @staticmethod
    def forward(ctx: Any, static: Any, backend: str, known: Any, *inputs: Any) -> Any:
        """Values, or all results that are known."""
        return forward(FORMULA, ctx, static, backend, known, inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """The gradient scaled, or the Hessian-vector product."""
        return backward(FORMULA, CGMLoss, ctx, cotangents)


derivatives.differentiate(FORMULA)
derivatives.map_items(cgm_loss_fwd)
derivatives.map_items(cgm_loss_hvp)
