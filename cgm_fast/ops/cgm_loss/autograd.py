"""Derivatives of the CGM latent objective: computed with the value, scaled in backward."""

from __future__ import annotations

from torch import Tensor

from cgm_fast.ops import derivatives
from cgm_fast.ops.autograd import fused
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
cgm_loss_value = fused(FORMULA)
derivatives.differentiate(FORMULA)
derivatives.map_items(cgm_loss_fwd)
derivatives.map_items(cgm_loss_hvp)
