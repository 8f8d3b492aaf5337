"""Derivatives of the prototype margin loss: computed with the value, scaled in backward."""

from __future__ import annotations

from cgm_fast.ops import derivatives
from cgm_fast.ops.autograd import fused
from cgm_fast.ops.formulas import OfPair
from cgm_fast.ops.prototype_margin.ops import prototype_margin_fwd, prototype_margin_hvp


class PrototypeMarginFormula(OfPair):
    """Values are the loss and the assignment; the inputs are r, g and labels."""

    fwd, hvp = prototype_margin_fwd, prototype_margin_hvp
    values, constant, assignment = 2, (1,), 1


FORMULA = PrototypeMarginFormula()
prototype_margin_value = fused(FORMULA)
derivatives.differentiate(FORMULA)
derivatives.map_items(prototype_margin_fwd)
derivatives.map_items(prototype_margin_hvp)
