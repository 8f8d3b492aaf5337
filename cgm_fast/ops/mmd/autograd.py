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

    def problem(self, inputs: Tensors, static: Any) -> Problem:
        """Groups are stacked here, so that a constant one costs no gradient."""
        weights, relation, variance, *groups = inputs
        z = groups[0] if len(groups) == 1 else torch.cat(groups, -2)  # type: ignore[arg-type]
        assert z is not None
        return Problem(z, weights, relation, variance, *static)

    def needs(self, inputs: Tensors, needs: Sequence[bool]) -> tuple[bool, ...]:
        """z needs one where a group does."""
        return (any(needs[3:]), *needs[:3])

    def wanted(self, problem: Problem, needs: Sequence[bool], inputs: Any = None) -> Wanted:
        """Of z all rows; or, of inputs, those from the first group that needs it to the last."""
        rows = problem.z.shape[-2]
        begin, end = (0, rows) if needs[0] else (0, 0)
        if needs[0] and inputs is not None and len(inputs) > 4:
            begin, at = rows, 0
            for group in inputs[3:]:
                if group.requires_grad:
                    begin, end = min(begin, at), at + group.shape[-2]
                at += group.shape[-2]
        return Wanted(begin, end, *needs[1:])

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

    def narrowed(self, wanted: Wanted, wide: Wanted, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Some rows of more; the block sums are always there."""
        of_z, of_weights, sums, of_variance = gradients
        rows = wanted.row_end - wanted.row_begin
        skip = wanted.row_begin - wide.row_begin if rows > 0 else 0
        return [
            of_z.narrow(-2, skip, max(0, rows)),
            of_weights if wanted.weights else of_weights.new_empty(0),
            sums,
            of_variance if wanted.variance else of_variance.new_empty(0),
        ]

    def scaled(self, factor: Tensor, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Each item by its own factor."""
        of_z, of_weights, of_relation, of_variance = gradients
        if not factor.dim():
            return [factor * value if value.numel() else value for value in gradients]
        per_row = factor[:, None]
        per_entry = per_row.unsqueeze(-1)
        return [
            per_entry * of_z,
            per_row * of_weights if of_weights.dim() > 1 else of_weights,
            per_entry * of_relation if of_relation.dim() > 1 else of_relation,
            per_row * of_variance if of_variance.dim() > 1 else of_variance,
        ]

    def dot(self, gradients: Sequence[Tensor], wanted: Wanted, tangents: Tensors) -> Tensor | None:
        """For each item of a batch."""
        terms = []
        has = self.has(wanted)
        for i, (gradient, tangent) in enumerate(zip(gradients, tangents, strict=True)):
            if not has[i] or tangent is None:
                continue
            if i == 0:
                tangent = tangent.narrow(-2, wanted.row_begin, wanted.row_end - wanted.row_begin)
            terms.append((gradient * tangent).sum((-2, -1) if i in (0, 2) else -1))
        return sum(terms[1:], terms[0]) if terms else None

    def split(self, inputs: Tensors, wanted: Wanted, parts: Tensors) -> list[Tensor | None]:
        """The rows of each group."""
        of_z, *rest = parts
        groups = inputs[3:]
        if of_z is None or len(groups) == 1:
            return [*rest, of_z, *[None] * (len(groups) - 1)]
        out, begin = [], -wanted.row_begin
        for group in groups:
            assert group is not None
            rows, inside = group.shape[-2], 0 <= begin < of_z.shape[-2]
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
