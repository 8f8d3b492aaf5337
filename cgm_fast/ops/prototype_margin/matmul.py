"""Nearest prototype and margin loss by matrix products: r gᵀ bounds the distances, and those that
decide something are taken again as differences.

A product rounds equal prototypes differently, by their place. So what it may decide wrongly, which
prototype is nearest and which are within the margin, is decided by differences. See README.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cgm_fast.ops.chunks import pairs_per_chunk, wide_dtype
from cgm_fast.ops.gpu import tf32_allowed
from cgm_fast.ops.prototype_margin import chunked
from cgm_fast.ops.prototype_margin.problem import Problem, Product, Tangent, Value, Wanted

_CANDIDATES = 4
"""Of a sample, the nearest by product, and as many of the first that might be the nearest."""


def fwd(problem: Problem, wanted: Wanted) -> Value:
    """Loss, assignment and gradients: see `Value`."""
    return chunked.fwd(problem, wanted, _chunks)


def hvp(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    """The Hessian applied to a tangent, by the gradient's formula; labels are the assignment."""
    return chunked.hvp(problem, tangent, _chunks)


def _chunks(r: Tensor, g: Tensor, margin: float) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """As `chunked.Chunks`."""
    dtype, wide = torch.promote_types(r.dtype, torch.float32), wide_dtype(r.device)
    centre = g.mean(0, keepdim=True, dtype=wide).to(dtype)
    prototypes = g.to(dtype) - centre
    of_g = prototypes.to(wide).square().sum(1)
    step = max(1, pairs_per_chunk(r.device, 8 * dtype.itemsize) // g.shape[0])
    for i0 in range(0, r.shape[0], step):
        i = slice(i0, min(i0 + step, r.shape[0]))
        rows = r[i].to(dtype) - centre
        of_r = rows.to(wide).square().sum(1)
        distance = torch.add(of_r.to(dtype).unsqueeze(1), of_g.to(dtype))
        distance.addmm_(rows, prototypes.T, alpha=-2)
        slack = (of_r + of_g.amax()).to(dtype).mul_(_lost(r.shape[1], dtype)).unsqueeze(1)
        # A pair that is farther decides nothing. Not the margin alone: a NaN is to be looked at.
        limit = torch.maximum(distance.amin(1, keepdim=True) + slack, slack + margin)
        decide = _decide_on_host if r.device.type == "cpu" else _decide
        yield i, rows, prototypes, decide(rows, prototypes, distance, slack, limit)


def _lost(d: int, dtype: torch.dtype) -> float:
    """Twice what a distance by products can be off by, of |r|² + |g|²."""
    if dtype == torch.float32 and tf32_allowed():
        return 2**-7  # of bfloat16 numbers, which "medium" allows
    return (min(d, 512) + 32) * torch.finfo(dtype).eps


def _squares(rows: Tensor, prototypes: Tensor) -> Tensor:
    return (rows - prototypes).square_().sum(-1)


def _decide_on_host(
    rows: Tensor, prototypes: Tensor, distance: Tensor, slack: Tensor, limit: Tensor
) -> Tensor:
    """Every pair in doubt as a difference; all pairs, where these are many."""
    i, k = (~(distance > limit)).nonzero(as_tuple=True)
    if len(i) > distance.numel() // 8 + 4 * len(rows):
        distance = torch.cdist(rows, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
        return distance.square_()
    some = max(1, (1 << 20) // rows.shape[1])
    for begin in range(0, len(i), some):
        at = i[begin : begin + some], k[begin : begin + some]
        distance[at] = _squares(rows[at[0]], prototypes[at[1]])
    return distance


def _decide(
    rows: Tensor, prototypes: Tensor, distance: Tensor, slack: Tensor, limit: Tensor
) -> Tensor:
    """A fixed number of pairs of every sample, for the host must not wait for a GPU: the nearest,
    and the first of those that might be. Others keep the product's distance."""
    k = prototypes.shape[0]
    some = min(_CANDIDATES, k)
    nearest = distance.topk(some, 1, largest=False).indices
    in_doubt = distance <= distance.amin(1, keepdim=True) + slack
    places = torch.arange(k, device=rows.device)
    first = torch.where(in_doubt, places, k).topk(some, 1, largest=False).values
    candidates = torch.cat((nearest, torch.where(first < k, first, nearest)), 1)
    for column in candidates.unbind(1):
        found = _squares(rows, prototypes[column]).unsqueeze(1)
        distance.scatter_(1, column.unsqueeze(1), found)
    # What is left of those in doubt must not be taken for nearer than a difference.
    least = distance.gather(1, candidates).amin(1, keepdim=True)
    looked_at = torch.zeros_like(in_doubt).scatter_(1, candidates, True)
    return torch.where(looked_at | ~in_doubt, distance, torch.maximum(distance, least))
