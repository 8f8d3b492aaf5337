"""What several implementations of MMD² share: a batch of one, and the end of a pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgm_fast.ops.gpu import constants
from cgm_fast.ops.mmd.problem import Problem, Wanted

ROUNDING = 1e-14
"""Of a sum of terms whose sizes add up to 1, which is 0 if it is below."""


def batched(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a problem, and a tangent, without a batch one of size 1, and take it from the results.

    The relation of a batch stands for all its items where it has none.
    """

    @functools.wraps(function)
    def wrapped(problem: Problem, *rest: Any) -> Any:
        if problem.x.dim() == 3:
            return function(problem, *rest)
        records = (
            type(record)(*(v.unsqueeze(0) if isinstance(v, Tensor) else v for v in record))
            for record in (problem, *rest)
        )
        out = function(*records)
        return type(out)(*(None if value is None else _item(value) for value in out))

    return wrapped


def _item(value: Tensor) -> Tensor:
    """The one item of a batch, as a tensor of its own: a view could not be changed in place as the
    result of an `autograd.Function`."""
    size, stride = value.shape[1:], value.stride()[1:]
    return value.new_empty(0).set_(value.untyped_storage(), value.storage_offset(), size, stride)


def room_for_derivatives(
    problem: Problem, wanted: Wanted, like: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """New tensors for derivatives in z, weights, relation and variance, where they are wanted."""
    *batch, _, d = problem.x.shape
    rows, groups = sum(problem.sizes), len(problem.sizes)
    begin, end, with_weights, with_relation, with_variance = wanted
    return (
        like.new_empty((*batch, end - begin, d)) if end > begin else None,
        like.new_empty((*batch, rows)) if with_weights else None,
        like.new_empty((*batch, groups, groups), dtype=torch.float64) if with_relation else None,
        like.new_empty((*batch, len(problem.kernel_weights))) if with_variance else None,
    )


def bounds_of_groups(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """The rows [begin, end) of each group."""
    out, begin = [], 0
    for size in sizes:
        out.append((begin, begin + size))
        begin += size
    return out


def relation_of(problem: Problem, dtype: torch.dtype) -> Tensor:
    """Γ [b or 1, G, G] of a problem with a batch."""
    groups = len(problem.sizes)
    if problem.relation is None:
        return constants(problem.relations, dtype, problem.x.device).view(1, groups, groups)
    return problem.relation.to(dtype)


def of_columns(of_groups: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Numbers of the groups [b, G] for each of their rows, [b, M]."""
    parts = zip(of_groups.unbind(-1), sizes, strict=True)
    return torch.cat([part[:, None].expand(-1, size) for part, size in parts], -1)


def by_group(values: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Sums over the rows of each group, [..., M] to [..., G]."""
    return torch.stack([part.sum(-1) for part in values.split(sizes, -1)], -1)


def pair_masses(problem: Problem, dtype: torch.dtype) -> Tensor:
    """W[g, g'] = Σ w_i w_j over i of g, j of g', i ≠ j: [b or 1, G, G]."""
    sizes, groups = problem.sizes, len(problem.sizes)
    if problem.weights is None:
        counts = (
            float(n * m - (n if g == h else 0))
            for g, n in enumerate(sizes)
            for h, m in enumerate(sizes)
        )
        return constants(tuple(counts), dtype, problem.x.device).view(1, groups, groups)
    parts = problem.weights.to(dtype).split(sizes, -1)
    mass = torch.stack([part.sum(-1) for part in parts], -1)
    square = torch.stack([(part * part).sum(-1) for part in parts], -1)
    return mass[:, :, None] * mass[:, None, :] - torch.diag_embed(square)


class PairSums(NamedTuple):
    """Sums of a pass by pair of groups, over i ≠ j; with w_i w_j, s bandwidths, ω their weights.

    Where 1 is subtracted from all k nothing is left of small ones, and where it is subtracted from
    none, nothing of those near 1: so from near pairs only, k ≥ ½, whose weights are summed beside.
    """

    small: Tensor
    """[b, G, G], of Σ_s ω_s times k_s − 1 for near pairs, k_s for far ones."""
    near: Tensor
    """[b, s, G, G], of 1 over near pairs."""
    far: Tensor
    """[b, s, G, G], of 1 over far ones. Counts may be what near pairs leave of all; of given
    weights that difference would have the rounding of all, however little is left."""

    def close(self, problem: Problem, relation: Tensor, masses: Tensor) -> tuple[Tensor, Tensor]:
        """L [b] and the block sums S [b, G, G], both of k − 1.

        Whichever of near and far pairs weigh less are added up, for L with |Γ|: then nothing is
        lost where all pairs are near, and where none is.
        """
        loss, sums = (relation * self.small).sum((-2, -1)), self.small
        size, total = relation.abs(), (relation * masses).sum((-2, -1))
        # The unbiased estimator's terms cancel: their rounding is not to be left.
        total = torch.where(total.abs() <= ROUNDING * (size * masses).sum((-2, -1)), 0.0, total)
        for s, weight in enumerate(problem.kernel_weights):
            near, far = self.near[:, s], self.far[:, s]
            lighter = (size * near).sum((-2, -1)) < (size * far).sum((-2, -1))
            of_near = (relation * near).sum((-2, -1)) - total
            loss = loss + weight * torch.where(lighter, of_near, -(relation * far).sum((-2, -1)))
            sums = sums + weight * torch.where(near < far, near - masses, -far)
        return loss, sums
