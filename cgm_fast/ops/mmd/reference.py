"""MMD² in plain PyTorch: what every other implementation must compute.

Rows are visited in chunks (chunked.py). Distances are products in
float64, which need no choice. See README.md beside this file for the formulas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cgm_fast.ops.chunks import no_autocast, wide_dtype
from cgm_fast.ops.mmd import chunked
from cgm_fast.ops.mmd.chunked import chunks, weighted_differences
from cgm_fast.ops.mmd.common import PairSums, batched, by_group, pair_masses, relation_of
from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.ops.mmd.problem import Problem, Product, Tangent, Value, Wanted, stacked


class Float64Rows:
    """The rows of a problem, about their mean.

    The loss does not move when the origin does. |a|² + |b|² - 2ab loses what |a|² has over the
    distance: so it is taken in float64, where there is one.
    """

    def __init__(self, problem: Problem) -> None:
        z = stacked(problem)
        self.dtype = torch.promote_types(z.dtype, torch.float32)
        far = z.to(wide_dtype(z.device))
        self.far = far - far.mean(1, keepdim=True)
        self.squares = (self.far * self.far).sum(-1)
        self.z = self.far.to(self.dtype)
        # Where the kernel has a kink, rows that coincide have to be at distance zero, exactly.
        self.kink = FAMILIES[problem.kernel].order < 2

    def squared(self, batch: slice, i: slice) -> Tensor:
        """Of rows i with all rows, [b, c, M]; not negative."""
        far, squares = self.far[batch], self.squares[batch]
        if self.kink:
            mode = "donot_use_mm_for_euclid_dist"
            u = torch.cdist(far[:, i], far, compute_mode=mode).square_()
        else:
            u = squares[:, i, None] + squares[:, None, :]
            u.baddbmm_(far[:, i], far.mT, alpha=-2).clamp_min_(0)
        return u.to(self.dtype)


@batched
def fwd(problem: Problem, wanted: Wanted) -> Value:
    """L and its derivatives: see `Value`."""
    points, sizes = Float64Rows(problem), problem.sizes
    z = points.z
    (b, rows, d), scales, groups = z.shape, len(problem.kernel_weights), len(sizes)
    dtype, wide = z.dtype, wide_dtype(z.device)
    # Sums over the rows of each group, column by column.
    small = z.new_zeros((b, groups, rows), dtype=wide)
    near = z.new_zeros((b, scales, groups, rows), dtype=wide)
    far = torch.zeros_like(near)  # where rows have weights of their own
    grad_z = z.new_empty((b, wanted.row_end - wanted.row_begin, d), dtype=dtype)
    grad_weights = z.new_empty((b, rows if wanted.weights else 0), dtype=dtype)
    grad_variance = z.new_zeros((b, scales), dtype=wide)
    weighted = problem.weights is not None
    with no_autocast(z.device.type):
        for chunk in chunks(problem, points, 10 + 6 * scales):
            c, g, i0, i1 = chunk.batch, chunk.group, chunk.i0, chunk.i1
            k = chunk.kernel(wanted)
            w, w_rows = chunk.w.unsqueeze(1), chunk.w_rows.unsqueeze(2)
            gamma = chunk.relation.unsqueeze(1)
            small[c, g] += (w_rows * k.small if weighted else k.small).sum(-2)
            for s, pairs in enumerate(k.near):
                if weighted:
                    near[c, s, g] += (w_rows * pairs).sum(-2)
                    far[c, s, g] += (w_rows * chunk.leave_out_own(~pairs)).sum(-2)
                else:  # as int32, for a sum in int64 first makes a copy of that size
                    near[c, s, g] += pairs.view(torch.uint8).sum(-2, dtype=torch.int32)
            if wanted.weights:
                grad_weights[c, i0:i1] = 2 * (gamma * w * k.less).sum(-1)
            for s, k_h in enumerate(k.by_h):
                of_row = (gamma * w * k_h).sum(-1)
                grad_variance[c, s] += (chunk.w_rows * of_row).sum(-1, dtype=wide)
            begin, end = max(i0, wanted.row_begin), min(i1, wanted.row_end)
            if begin < end:
                keep = slice(begin - i0, end - i0)
                weights = (gamma * w * k.by_u)[:, keep]
                sums = weighted_differences(weights, chunk.rows[:, keep], chunk.z, sizes)
                grad_z[c, begin - wanted.row_begin : end - wanted.row_begin] = (
                    4 * chunk.w_rows[:, keep, None] * sums
                )
    masses = pair_masses(problem, wide)
    if problem.weights is not None:
        of_columns = problem.weights.to(wide)[:, None]
        small, near, far = small * of_columns, near * of_columns[:, None], far * of_columns[:, None]
    small, near = by_group(small, sizes), by_group(near, sizes)
    far = by_group(far, sizes) if weighted else masses[:, None] - near
    pairs_of = PairSums(small, near, far)
    loss, block_sums = pairs_of.close(problem, relation_of(problem, wide), masses)
    return Value(
        loss.to(dtype),
        grad_z if wanted.row_end > wanted.row_begin else None,
        grad_weights if wanted.weights else None,
        block_sums if wanted.relation else None,
        grad_variance.to(dtype) if wanted.variance else None,
    )


@batched
def hvp(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    """The Hessian of L applied to a tangent: see `Product`."""
    return chunked.hvp(problem, tangent, wanted, Float64Rows(problem))
