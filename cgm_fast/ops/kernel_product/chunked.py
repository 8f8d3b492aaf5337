"""K V and its derivatives by chunks of rows, in plain PyTorch.

What implementations share that differ in how distances are taken.

Nothing of size n x m is ever stored, and nothing here waits for the device. See README.md beside
this file for the formulas.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cgm_fast.ops.chunks import no_autocast, pairs_per_chunk, variances_of, wide_dtype
from cgm_fast.ops.kernel_product.problem import Problem, Value, Wanted
from cgm_fast.ops.mmd.kernels import FAMILIES


class Points(Protocol):
    """Rows and columns about a centre, and the distances between them."""

    x: Tensor
    """[b, n, d], in the dtype that is computed in."""
    y: Tensor
    """[b, m, d]"""

    def squared(self, batch: slice, i: slice) -> Tensor:
        """Of rows i with all columns, [b, c, m], in that dtype; not negative."""


class Chunk(NamedTuple):
    """Some rows of some items, with all of their columns."""

    batch: slice
    rows: slice
    x: Tensor  # [b, c, d]
    y: Tensor  # [b, m, d]
    squares: Tensor  # [b, c, m], squared distances
    variances: list[float | Tensor]  # [s] of numbers or of [b, 1, 1]


def fwd(problem: Problem, wanted: Wanted, points: Points) -> Value:
    """The derivatives of Q that are wanted, of a problem with a batch: see `Value`."""
    x, kernel_weights = problem.x, problem.kernel_weights
    (b, n, d), p, scales = x.shape, problem.v.shape[-1], len(kernel_weights)
    dtype, wide = torch.promote_types(x.dtype, torch.float32), wide_dtype(x.device)
    radial = FAMILIES[problem.kernel].radial
    v = problem.v.to(dtype)
    u = None if problem.u is None else problem.u.to(dtype)
    product = x.new_empty((b, n, p), dtype=dtype) if wanted.product else None
    of_x = x.new_empty((b, n, d), dtype=dtype) if wanted.x else None
    of_variance = x.new_zeros((b, scales), dtype=wide)
    with no_autocast(x.device.type):
        for chunk in chunks(problem, points, 6 + 4 * scales):
            here = chunk.batch, chunk.rows
            whole, by_u = torch.zeros_like(chunk.squares), torch.zeros_like(chunk.squares)
            between = None if u is None else u[here] @ v[chunk.batch].mT  # ⟨u_i, v_j⟩
            for s, (h, weight) in enumerate(zip(chunk.variances, kernel_weights, strict=True)):
                # Finite, for 0 · inf would turn a vanished kernel into NaN.
                t = (chunk.squares * (0.5 / h)).clamp_max_(1e30 if dtype.itemsize == 4 else 1e300)
                _, of_s, slope = radial(t, 1)[:3]
                whole += weight * of_s
                by_u += slope * (0.5 * weight / h)
                if between is not None and wanted.variance:
                    by_h = (slope * t * (-weight / h)).mul_(between)
                    of_variance[chunk.batch, s] += by_h.sum((-2, -1), dtype=wide)
            if product is not None:
                product[here] = whole @ v[chunk.batch]
            if between is not None and of_x is not None:
                w = by_u * between
                of_x[here] = 2 * (w.sum(-1, keepdim=True) * chunk.x - w @ chunk.y)
    return Value(product, of_x, of_variance.to(dtype) if wanted.variance else None)


def chunks(problem: Problem, points: Points, temporaries: int) -> Iterator[Chunk]:
    """All pairs of rows and columns; a pair has so many temporaries."""
    x, y = points.x, points.y
    (b, n, _), m, dtype = x.shape, y.shape[1], x.dtype
    pairs = pairs_per_chunk(x.device, temporaries * dtype.itemsize)
    batch_step, row_step = max(1, pairs // (n * m)), max(1, pairs // m)
    variance = None if problem.variance is None else problem.variance.to(dtype)
    for b0 in range(0, b, batch_step):
        batch = slice(b0, min(b0 + batch_step, b))
        h = variances_of(problem.variances, variance, b, batch)
        for i0 in range(0, n, row_step):
            rows = slice(i0, min(i0 + row_step, n))
            yield Chunk(batch, rows, x[batch, rows], y[batch], points.squared(batch, rows), h)
