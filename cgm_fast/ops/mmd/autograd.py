"""Derivatives of MMD²: the gradient comes with the value, and is differentiated by `mmd_hvp`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops import derivatives
from cgm_fast.ops.autograd import fused
from cgm_fast.ops.formulas import Formula, Tensors
from cgm_fast.ops.mmd.ops import mmd_fwd, mmd_hvp
from cgm_fast.ops.mmd.problem import Problem, Wanted


class MMDFormula(Formula):
    """A user's inputs are weights, relation, variance, and then the groups, or all stacked."""

    fwd, hvp = mmd_fwd, mmd_hvp
    variables = (0, 1, 2, 3)
    values = 1

    def prepare(
        self, inputs: Tensors, static: Any, needs: Sequence[bool]
    ) -> tuple[Problem, Wanted]:
        """Groups are stacked here, so that one that is a constant costs no gradient: of rows those
        from the first group that needs it to the last are wanted."""
        weights, relation, variance, *groups = inputs
        begin = end = at = 0
        for group, need in zip(groups, needs[3:], strict=True):
            rows = group.shape[-2]  # type: ignore[union-attr]
            if need:
                begin, end = begin if end else at, at + rows
            at += rows
        z: Any = groups[0] if len(groups) == 1 else torch.cat(groups, -2)  # type: ignore[arg-type]
        return (
            Problem(z, weights, relation, variance, *static),
            Wanted(begin, end, needs[0], needs[1], needs[2]),
        )

    def wanted(self, problem: Problem, needs: Sequence[bool]) -> Wanted:
        """Of z all rows."""
        return Wanted(0, problem.z.shape[-2] if needs[0] else 0, *needs[1:])

    def both(self, wanted: Wanted, other: Wanted) -> Wanted:
        """Rows from the first of either to the last."""
        flags = (a or b for a, b in zip(wanted[2:], other[2:], strict=True))
        filled = [some for some in (wanted, other) if some.row_end > some.row_begin]
        begin = min((some.row_begin for some in filled), default=0)
        return Wanted(begin, max((some.row_end for some in filled), default=0), *flags)

    def has(self, wanted: Wanted) -> tuple[bool, ...]:
        """Of z, weights, relation and variance."""
        return wanted.row_end > wanted.row_begin, *wanted[2:]

    def whole(self, problem: Problem, wanted: Wanted, parts: Tensors) -> list[Tensor | None]:
        """With zeros for rows beyond those wanted."""
        of_z, *rest = parts
        if of_z is not None and of_z.shape[-2] != problem.z.shape[-2]:
            after = problem.z.shape[-2] - wanted.row_end
            of_z = torch.nn.functional.pad(of_z, (0, 0, wanted.row_begin, after))
        return [of_z, *rest]

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

    def dot(self, gradients: Tensors, wanted: Wanted, tangents: Tensors) -> Tensor | None:
        """For each item of a batch."""
        terms = []
        for i, (gradient, tangent) in enumerate(zip(gradients, tangents, strict=True)):
            if gradient is None or tangent is None:
                continue
            if i == 0:
                tangent = tangent.narrow(-2, wanted.row_begin, wanted.row_end - wanted.row_begin)
            terms.append((gradient * tangent).sum((-2, -1) if i in (0, 2) else -1))
        return sum(terms[1:], terms[0]) if terms else None

    def split(self, inputs: Tensors, wanted: Wanted, parts: Tensors) -> list[Tensor | None]:
        """The rows of each group, in its dtype."""
        of_z, *rest = (
            value if value is None or value.dtype == like.dtype else value.to(like.dtype)
            for value, like in zip(parts, (inputs[3], *inputs[:3]), strict=True)
        )
        groups = inputs[3:]
        if of_z is None:
            return [*rest, *[None] * len(groups)]
        sizes = [group.shape[-2] for group in groups]  # type: ignore[union-attr]
        if wanted.row_begin == 0 and wanted.row_end == sum(sizes):
            return [*rest, *of_z.split_with_sizes(sizes, -2)]
        out, begin = [], -wanted.row_begin
        for rows in sizes:
            inside = 0 <= begin < of_z.shape[-2]
            out.append(of_z.narrow(-2, begin, rows) if inside else None)
            begin += rows
        return [*rest, *out]


def _batched(op: Any) -> Any:
    """The rule for vmap: its dimension is a batch, or joins the batch there is."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        size = info.batch_size
        z, in_dim = args[0], in_dims[0]
        inner = z.shape[:-2] if in_dim is None else z.movedim(in_dim, 0).shape[1:-2]

        def joined(arg: Any, dim: int | None) -> Any:
            if not isinstance(arg, Tensor):
                return arg
            arg = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            return arg.flatten(0, 1) if inner else arg

        results = op(*map(joined, args, in_dims))
        empty = [value.shape == (0,) for value in results]
        if inner:
            results = tuple(
                value if none else value.unflatten(0, (size, inner[0]))
                for value, none in zip(results, empty, strict=True)
            )
        return results, tuple(None if none else 0 for none in empty)

    return rule


FORMULA = MMDFormula()
mmd_value = fused(FORMULA)
derivatives.differentiate(FORMULA)
derivatives.map_items(mmd_fwd, _batched(mmd_fwd.registered))
derivatives.map_items(mmd_hvp, _batched(mmd_hvp.registered))
