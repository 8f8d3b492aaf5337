"""Derivatives of the prototype margin loss: computed with the value, scaled in backward."""

from __future__ import annotations

from typing import Any

import torch

from cgm_fast.ops import derivatives
from cgm_fast.ops.autograd import backward, forward
from cgm_fast.ops.formulas import OfPair
from cgm_fast.ops.prototype_margin.ops import prototype_margin_fwd, prototype_margin_hvp


class PrototypeMarginFormula(OfPair):
    """Values are the loss and the assignment; the inputs are r, g and labels."""

    fwd, hvp = prototype_margin_fwd, prototype_margin_hvp
    values, constant, assignment = 2, (1,), 1


FORMULA = PrototypeMarginFormula()


class PrototypeMargin(torch.autograd.Function):
    """(static, backend, None, the problem's tensors...) -> loss, assignment."""

    @staticmethod
    def forward(ctx: Any, static: Any, backend: str, known: Any, *inputs: Any) -> Any:
        """Values, or all results that are known."""
        return forward(FORMULA, ctx, static, backend, known, inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """The gradient scaled, or the Hessian-vector product."""
        return backward(FORMULA, PrototypeMargin, ctx, cotangents)


derivatives.differentiate(FORMULA)
derivatives.map_items(prototype_margin_fwd)
derivatives.map_items(prototype_margin_hvp)
