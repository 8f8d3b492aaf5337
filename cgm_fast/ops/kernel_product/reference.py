"""K V and its derivatives in plain PyTorch: what every other implementation must compute.

Rows are visited in chunks, so nothing of size n x m is ever stored. Nothing waits for the device.
See README.md beside this file for the formulas.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cgm_fast.ops.chunks import no_autocast, pairs_per_chunk, wide_dtype
from cgm_fast.ops.kernel_product.problem import Problem, Value, Wanted
from cgm_fast.ops.mmd.common import batched
from cgm_fast.ops.mmd.kernels import FAMILIES


class _Chunk(NamedTuple):
    """Some rows of some items, with all of their columns."""

    batch: slice
    rows: slice
    x: Tensor  # [b, c, d]
    y: Tensor  # [b, m, d]
    squares: Tensor  # [b, c, m], squared distances
    variances: list[float | Tensor]  # [s] of numbers or of [b, 1, 1]


@batched
def fwd(problem: Problem, wanted: Wanted) -> Value:
    """The derivatives of Q that are wanted: see `Value`."""
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
        for chunk in _chunks(problem, 6 + 4 * scales):
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


def _chunks(problem: Problem, temporaries: int) -> Iterator[_Chunk]:
    """All pairs of rows and columns; a pair has so many temporaries."""
    x, y = problem.x, problem.y
    (b, n, _), m, device = x.shape, y.shape[1], x.device
    dtype = torch.promote_types(x.dtype, torch.float32)
    # |a|² + |b|² - 2ab loses what |a|² has over the distance: so it is taken about the columns'
    # median, which a few far rows do not move, and in float64 where there is one.
    wide = wide_dtype(device)
    far_x, far_y = x.to(wide), y.to(wide)
    centre = far_y.sort(1).values[:, m // 2 : m // 2 + 1]
    far_x, far_y = far_x - centre, far_y - centre
    of_x, of_y = ((far * far).sum(-1) for far in (far_x, far_y))
    x, y = far_x.to(dtype), far_y.to(dtype)
    # Where the kernel has a kink, rows that coincide have to be at distance zero, exactly.
    kink = FAMILIES[problem.kernel].order < 2

    pairs = pairs_per_chunk(device, temporaries * dtype.itemsize)
    batch_step, row_step = max(1, pairs // (n * m)), max(1, pairs // m)
    for b0 in range(0, b, batch_step):
        batch = slice(b0, min(b0 + batch_step, b))
        h: list[float | Tensor] = list(problem.variances)
        if problem.variance is not None:
            variance = problem.variance.to(dtype).expand(b, -1)[batch]
            h = [of_s[:, None, None] for of_s in variance.unbind(1)]
        for i0 in range(0, n, row_step):
            rows = slice(i0, min(i0 + row_step, n))
            if kink:
                mode = "donot_use_mm_for_euclid_dist"
                u = torch.cdist(far_x[batch, rows], far_y[batch], compute_mode=mode).square_()
            else:
                u = of_x[batch, rows, None] + of_y[batch, None, :]
                u.baddbmm_(far_x[batch, rows], far_y[batch].mT, alpha=-2).clamp_min_(0)
            yield _Chunk(batch, rows, x[batch, rows], y[batch], u.to(dtype), h)
