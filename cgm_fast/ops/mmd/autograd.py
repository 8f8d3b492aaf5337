"""Derivatives of MMD²: the gradient comes with the value, and is differentiated by `mmd_hvp`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops import derivatives
from cgm_fast.ops.autograd import backward, forward
from cgm_fast.ops.formulas import Formula, Tensors
from cgm_fast.ops.mmd.ops import mmd_fwd, mmd_hvp
from cgm_fast.ops.mmd.problem import Problem, Tangent, Wanted


class MMDFormula(Formula):
    """Variables are x, y, weights, relation and variance; the gradient has one part for x and y,
    of the rows that are wanted."""

    fwd, hvp = mmd_fwd, mmd_hvp
    variables = 5
    values = 1

    def wanted(self, problem: Problem, needs: Sequence[bool]) -> Wanted:
        """Of rows those of x, of y, or all."""
        of_x, of_y, *others = needs
        n, rows = problem.x.shape[-2], sum(problem.sizes)
        begin = 0 if of_x or not of_y else n
        return Wanted(begin, rows if of_y else n if of_x else 0, *others)

    def everything(self, problem: Problem, parts: Sequence[bool]) -> Wanted:
        """All rows or none."""
        return Wanted(0, sum(problem.sizes) if parts[0] else 0, *parts[1:])

    def both(self, wanted: Wanted, other: Wanted) -> Wanted:
        """Rows from the first of either to the last."""
        flags = (a or b for a, b in zip(wanted[2:], other[2:], strict=True))
        filled = [some for some in (wanted, other) if some.row_end > some.row_begin]
        begin = min((some.row_begin for some in filled), default=0)
        return Wanted(begin, max((some.row_end for some in filled), default=0), *flags)

    def has(self, wanted: Wanted) -> tuple[bool, ...]:
        """Of z, weights, relation and variance."""
        return wanted.row_end > wanted.row_begin, *wanted[2:]

    def split(
        self, inputs: Tensors, static: Any, wanted: Wanted, parts: list[Tensor | None]
    ) -> list[Tensor | None]:
        """The rows of x and those of y."""
        of_z, *others = parts
        if of_z is None:
            return [None, None, *others]
        begin, end, *_ = wanted
        n, rows = inputs[0].shape[-2], sum(static[0])  # type: ignore[union-attr]
        if end <= n:
            return [_padded(of_z, begin, n - end), None, *others]
        if begin >= n:
            return [None, _padded(of_z, begin - n, rows - end), *others]
        if begin > 0 or end < rows:
            of_z = _padded(of_z, begin, rows - end)
        of_x, of_y = of_z.split_with_sizes((n, rows - n), -2)
        return [of_x, of_y, *others]

    def tangent(self, problem: Problem, wanted: Wanted, parts: Tensors) -> Tangent:
        """Zero for rows that are not wanted."""
        of_z, *others = parts
        if of_z is not None:
            of_z = _padded(of_z, wanted.row_begin, sum(problem.sizes) - wanted.row_end)
        return Tangent(of_z, *others)

    def gathered(self, problem: Problem, tangents: Tensors) -> Tangent:
        """Those of x and y, stacked."""
        of_x, of_y, *others = tangents
        if problem.y is not None and not (of_x is None and of_y is None):
            pair = ((of_x, problem.x), (of_y, problem.y))
            of_x = torch.cat([torch.zeros_like(z) if t is None else t for t, z in pair], -2)
        return Tangent(of_x, *others)

    def narrowed(self, wanted: Wanted, wide: Wanted, gradients: Tensors) -> list[Tensor | None]:
        """Some rows of more."""
        of_z, *rest = super().narrowed(wanted, wide, gradients)
        if of_z is not None:
            skip = wanted.row_begin - wide.row_begin
            of_z = of_z.narrow(-2, skip, wanted.row_end - wanted.row_begin)
        return [of_z, *rest]

    def scaled(self, factor: Tensor, gradients: Tensors) -> list[Tensor | None]:
        """Each item by its own factor."""
        if not factor.dim():
            return super().scaled(factor, gradients)
        per_row = factor[:, None]
        per_entry = per_row[:, None]
        by = (per_entry, per_row, per_entry, per_row)
        return [None if v is None else f * v for f, v in zip(by, gradients, strict=True)]

    def dot(self, gradients: Tensors, wanted: Wanted, tangent: Tensors) -> Tensor | None:
        """For each item of a batch."""
        terms = []
        for i, (gradient, value) in enumerate(zip(gradients, tangent, strict=True)):
            if gradient is None or value is None:
                continue
            if i == 0:
                value = value.narrow(-2, wanted.row_begin, wanted.row_end - wanted.row_begin)
            terms.append((gradient * value).sum((-2, -1) if i in (0, 2) else -1))
        return sum(terms[1:], terms[0]) if terms else None


def _padded(rows: Tensor, before: int, after: int) -> Tensor:
    """With zeros for the rows before and after."""
    if before == after == 0:
        return rows
    return torch.nn.functional.pad(rows, (0, 0, before, after))


FORMULA = MMDFormula()


class MMD(torch.autograd.Function):
    """(static, backend, None, the problem's tensors...) -> (L,)."""

    @staticmethod
    def forward(ctx: Any, static: Any, backend: str, known: Any, *inputs: Any) -> Any:
        """Values, or all results that are known."""
        return forward(FORMULA, ctx, static, backend, known, inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """The gradient scaled, or the Hessian-vector product."""
        return backward(FORMULA, MMD, ctx, cotangents)


derivatives.differentiate(FORMULA)
derivatives.map_items(mmd_fwd, derivatives.as_batch(mmd_fwd.registered))
derivatives.map_items(mmd_hvp, derivatives.as_batch(mmd_hvp.registered))
