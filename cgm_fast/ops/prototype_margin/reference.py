"""Nearest prototype and margin loss in plain PyTorch: what other implementations must compute.

Samples are visited in chunks (chunked.py). See README.md beside this file for the formulas.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cgm_fast.ops.chunks import pairs_per_chunk
from cgm_fast.ops.prototype_margin import chunked
from cgm_fast.ops.prototype_margin.problem import Problem, Product, Tangent, Value, Wanted


def fwd(problem: Problem, wanted: Wanted) -> Value:
    """Loss, assignment and gradients: see `Value`."""
    return chunked.fwd(problem, wanted, _chunks)


def hvp(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    """The Hessian applied to a tangent, by the gradient's formula; labels are the assignment."""
    return chunked.hvp(problem, tangent, _chunks)


def _chunks(r: Tensor, g: Tensor, margin: float) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """As `chunked.Chunks`."""
    dtype = torch.promote_types(r.dtype, torch.float32)
    # The gradients' matrix products lose least when the origin lies amid the prototypes.
    centre = g.to(dtype).mean(0, keepdim=True)
    samples, prototypes = r.to(dtype) - centre, g.to(dtype) - centre
    part = max(1, pairs_per_chunk(r.device, 3 * dtype.itemsize) // g.numel())
    step = max(1, pairs_per_chunk(r.device, 8 * dtype.itemsize) // g.shape[0])
    for i0 in range(0, r.shape[0], step):
        i = slice(i0, min(i0 + step, r.shape[0]))
        rows = samples[i]
        # Plain differences: a matrix product rounds equal prototypes differently, by their place.
        parts = [(some.unsqueeze(1) - prototypes).square().sum(2) for some in rows.split(part)]
        yield i, rows, prototypes, torch.cat(parts)
