"""MMD² in plain PyTorch: what every other implementation must compute.

Rows are visited in chunks, so nothing of size M x M is ever stored, forward or backward. Nothing
waits for the device. See README.md beside this file for the formulas.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cgm_fast.ops.chunks import no_autocast, pairs_per_chunk, wide_dtype
from cgm_fast.ops.mmd.common import (
    PairSums,
    batched,
    bounds_of_groups,
    pair_masses,
    relation_of,
)
from cgm_fast.ops.mmd.kernels import FAMILIES, Family
from cgm_fast.ops.mmd.problem import Problem, Product, Tangent, Value, Wanted, stacked


@dataclass
class OfPairs:
    """The kernel of a chunk's pairs. Shapes: [b, c, M]; lists have an entry for each bandwidth."""

    small: Tensor
    """k − k(0) for near pairs, k for the others; of several bandwidths the weighted sum."""
    near: list[Tensor]
    """Whether a pair is near: k ≥ 1/2, or all where k does not vanish."""
    by_u: Tensor
    """dk/du."""
    less: Tensor
    """k − k(0) for all pairs; not to be used unless asked for."""
    by_h: list[Tensor]
    """dk/dh; empty unless asked for."""


@dataclass
class Chunk:
    """All pairs of rows [i0, i1), which are of one group, with every row of z.

    Of one slice of the batch. Shapes: z [b, M, d], rows [b, c, d], w [b, M], w_rows [b, c],
    relation [b or 1, M], squared distances u [b, c, M]; a variance is a number or [b, 1, 1].
    """

    batch: slice
    group: int
    i0: int
    i1: int
    z: Tensor
    rows: Tensor
    w: Tensor
    w_rows: Tensor
    relation: Tensor
    variances: list[float | Tensor]
    problem: Problem
    u: Tensor

    @property
    def family(self) -> Family:
        """The kernel."""
        return FAMILIES[self.problem.kernel]

    def scaled(self, h: float | Tensor, finite: bool) -> Tensor:
        """t = u / 2h; finite where what has vanished would become NaN by a product."""
        t = self.u * (0.5 / h)
        return t.clamp_max_(1e30 if t.dtype == torch.float32 else 1e300) if finite else t

    def leave_out_own(self, value: Tensor) -> Tensor:
        """Zero, or False, for a row's pair with itself: its gradient vanishes, but where all others
        are many bandwidths away its rounding would be all there is."""
        value.diagonal(self.i0, -2, -1).zero_()
        return value

    def kernel(self, wanted: Wanted) -> OfPairs:
        """Values and the derivatives that are wanted."""
        out = OfPairs(self.u, [], self.u, self.u, [])
        weights = self.problem.kernel_weights
        for s, (h, weight) in enumerate(zip(self.variances, weights, strict=True)):
            t = self.scaled(h, wanted.variance or self.problem.kernel != "gaussian")
            less, whole, slope = self.family.radial(t, 1)[:3]
            slope = self.leave_out_own(slope)
            near = less >= -0.5 if self.family.vanishes else torch.ones_like(less, dtype=torch.bool)
            small, by_u = torch.where(near, less, whole), slope * (0.5 * weight / h)
            if weight != 1:
                small = small * weight
            out.small = small if s == 0 else out.small + small
            out.by_u = by_u if s == 0 else out.by_u + by_u
            out.near.append(self.leave_out_own(near))
            if wanted.weights:
                less = weight * less
                out.less = less if s == 0 else out.less + less
            if wanted.variance:
                out.by_h.append(slope * t * (-weight / h))
        return out

    def kernel_along(
        self, u_dot: Tensor, h_dot: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Derivatives of k − k(0), dk/du and dk/dh along (u_dot [b, c, M], h_dot [b, s])."""
        less, by_u = torch.zeros_like(self.u), torch.zeros_like(self.u)
        by_h = []
        weights = self.problem.kernel_weights
        for s, (h, weight) in enumerate(zip(self.variances, weights, strict=True)):
            relative = 0 if h_dot is None else h_dot[:, s, None, None] / h
            t = self.scaled(h, True)
            t_dot = u_dot * (0.5 / h) - t * relative
            first, second = (
                self.leave_out_own(value.clone()) for value in self.family.radial(t, 2)[2:]
            )
            less += weight * first * t_dot
            by_u += (second * t_dot - first * relative) * (0.5 * weight / h)
            by_h.append(((second * t + first) * t_dot - first * t * relative) * (-weight / h))
        return less, by_u, by_h


@batched
def fwd(problem: Problem, wanted: Wanted) -> Value:
    """L and its derivatives: see `Value`."""
    z, sizes = stacked(problem), problem.sizes
    (b, rows, d), scales, groups = z.shape, len(problem.kernel_weights), len(sizes)
    dtype, wide = torch.promote_types(z.dtype, torch.float32), wide_dtype(z.device)
    # Sums over the rows of each group, column by column.
    small = z.new_zeros((b, groups, rows), dtype=wide)
    near = z.new_zeros((b, scales, groups, rows), dtype=wide)
    far = torch.zeros_like(near)  # where rows have weights of their own
    grad_z = z.new_empty((b, wanted.row_end - wanted.row_begin, d), dtype=dtype)
    grad_weights = z.new_empty((b, rows if wanted.weights else 0), dtype=dtype)
    grad_variance = z.new_zeros((b, scales), dtype=wide)
    weighted = problem.weights is not None
    with no_autocast(z.device.type):
        for chunk in _chunks(problem, z, 10 + 6 * scales):
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
                sums = _weighted_differences(weights, chunk.rows[:, keep], chunk.z, sizes)
                grad_z[c, begin - wanted.row_begin : end - wanted.row_begin] = (
                    4 * chunk.w_rows[:, keep, None] * sums
                )
    masses = pair_masses(problem, wide)
    if problem.weights is not None:
        of_columns = problem.weights.to(wide)[:, None]
        small, near, far = small * of_columns, near * of_columns[:, None], far * of_columns[:, None]
    small, near = _by_group(small, sizes), _by_group(near, sizes)
    far = _by_group(far, sizes) if weighted else masses[:, None] - near
    pairs_of = PairSums(small, near, far)
    loss, block_sums = pairs_of.close(problem, relation_of(problem, wide), masses)
    return Value(
        loss.to(dtype),
        grad_z if wanted.row_end > wanted.row_begin else None,
        grad_weights if wanted.weights else None,
        block_sums if wanted.relation else None,
        grad_variance.to(dtype) if wanted.variance else None,
    )


def _by_group(of_columns: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Sums over the rows of each group, [..., M] to [..., G]."""
    return torch.stack([part.sum(-1) for part in of_columns.split(sizes, -1)], -1)


@batched
def hvp(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    """The Hessian of L applied to a tangent: see `Product`."""
    z, sizes = stacked(problem), problem.sizes
    (b, rows, d), scales, groups = z.shape, len(problem.kernel_weights), len(sizes)
    dtype, wide = torch.promote_types(z.dtype, torch.float32), wide_dtype(z.device)
    out_z = z.new_empty((b, wanted.row_end - wanted.row_begin, d), dtype=dtype)
    out_weights = z.new_empty((b, rows if wanted.weights else 0), dtype=dtype)
    out_relation = z.new_zeros((b, groups, groups), dtype=wide)
    out_variance = z.new_zeros((b, scales), dtype=wide)
    zero = z.new_zeros((), dtype=dtype)
    z_dot = zero.expand(b, rows, d) if tangent.z is None else tangent.z.to(dtype)
    w_dot = zero.expand(b, rows) if tangent.weights is None else tangent.weights.to(dtype)
    h_dot = tangent.variance
    columns = [slice(*bounds) for bounds in bounds_of_groups(sizes)]
    everything = Wanted(0, 0, True, True, True)
    with no_autocast(z.device.type):
        for chunk in _chunks(problem, z, 20 + 8 * scales):
            c, i0, i1 = chunk.batch, chunk.i0, chunk.i1
            t, t_rows = z_dot[c], z_dot[c, i0:i1]
            w, w_rows = chunk.w.unsqueeze(1), chunk.w_rows.unsqueeze(2)
            dw, dw_rows = w_dot[c].unsqueeze(1), w_dot[c, i0:i1].unsqueeze(2)
            gamma = chunk.relation.unsqueeze(1)
            gamma_dot = zero
            if tangent.relation is not None:
                of_group = tangent.relation[c, chunk.group].to(dtype)
                gamma_dot = _of_columns(of_group, sizes).unsqueeze(1)

            u_dot = (chunk.rows * t_rows).sum(-1)[:, :, None] + (chunk.z * t).sum(-1)[:, None, :]
            u_dot = 2 * (u_dot - chunk.rows @ t.mT - t_rows @ chunk.z.mT)
            u_dot.diagonal(i0, -2, -1).zero_()  # and stays so, exactly
            k = chunk.kernel(everything)
            less_dot, by_u_dot, by_h_dot = chunk.kernel_along(
                u_dot, None if h_dot is None else h_dot[c]
            )
            pair, pair_dot = w_rows * w, dw_rows * w + w_rows * dw
            c_ij, c_dot = gamma * pair, gamma * pair_dot + gamma_dot * pair
            if wanted.weights:
                inside = (gamma_dot * w + gamma * dw) * k.less + gamma * w * less_dot
                out_weights[c, i0:i1] = 2 * inside.sum(-1)
            if wanted.relation:
                part = pair_dot * k.less + pair * less_dot
                for other, of in enumerate(columns):
                    of_block = part[..., of].sum((-2, -1), dtype=wide)
                    out_relation[c, chunk.group, other] += of_block
            if wanted.variance:
                for s in range(scales):
                    part = c_dot * k.by_h[s] + c_ij * by_h_dot[s]
                    out_variance[c, s] += part.sum((-2, -1), dtype=wide)
            begin, end = max(i0, wanted.row_begin), min(i1, wanted.row_end)
            if begin < end:
                keep = slice(begin - i0, end - i0)
                weights = (c_ij * k.by_u)[:, keep]
                weights_dot = (c_dot * k.by_u + c_ij * by_u_dot)[:, keep]
                out = _weighted_differences(weights_dot, chunk.rows[:, keep], chunk.z, sizes)
                out = out + _weighted_differences(weights, t_rows[:, keep], t, sizes)
                out_z[c, begin - wanted.row_begin : end - wanted.row_begin] = 4 * out
    return Product(
        out_z if wanted.row_end > wanted.row_begin else None,
        out_weights if wanted.weights else None,
        out_relation if wanted.relation else None,
        out_variance.to(dtype) if wanted.variance else None,
    )


def _chunks(problem: Problem, z: Tensor, temporaries: int) -> Iterator[Chunk]:
    """Visit every ordered pair of rows of z once; a chunk's rows all come from one group.

    A pair has so many temporaries of the dtype that is computed in.
    """
    (b, rows, _), sizes = z.shape, problem.sizes
    dtype, device = torch.promote_types(z.dtype, torch.float32), z.device
    # The loss does not move when the origin does. |a|² + |b|² - 2ab loses what |a|² has over the
    # distance: so it is taken in float64, where there is one.
    far = z.to(wide_dtype(z.device))
    far = far - far.mean(1, keepdim=True)
    squares = (far * far).sum(-1)
    z = far.to(dtype)
    w = z.new_ones(()).expand(b, rows) if problem.weights is None else problem.weights.to(dtype)
    relation = relation_of(problem, dtype)
    # Where the kernel has a kink, rows that coincide have to be at distance zero, exactly.
    kink = FAMILIES[problem.kernel].order < 2

    pairs = pairs_per_chunk(device, temporaries * dtype.itemsize)
    batch_step = max(1, pairs // rows**2)
    row_step = max(1, pairs // rows)
    for b0 in range(0, b, batch_step):
        batch = slice(b0, min(b0 + batch_step, b))
        h: list[float | Tensor] = list(problem.variances)
        if problem.variance is not None:
            variance = problem.variance.to(dtype).expand(b, -1)[batch]
            h = [of_s[:, None, None] for of_s in variance.unbind(1)]
        of_batch = relation[batch] if len(relation) > 1 else relation
        for g, (first, last) in enumerate(bounds_of_groups(sizes)):
            of_columns = _of_columns(of_batch[:, g], sizes)
            for i0 in range(first, last, row_step):
                i1 = min(i0 + row_step, last)
                if kink:
                    mode = "donot_use_mm_for_euclid_dist"
                    u = torch.cdist(far[batch, i0:i1], far[batch], compute_mode=mode).square_()
                else:
                    u = squares[batch, i0:i1, None] + squares[batch, None, :]
                    u.baddbmm_(far[batch, i0:i1], far[batch].mT, alpha=-2).clamp_min_(0)
                u.diagonal(i0, -2, -1).zero_()  # a row is at distance zero from itself, exactly
                yield Chunk(
                    batch, g, i0, i1, z[batch], z[batch, i0:i1], w[batch], w[batch, i0:i1],
                    of_columns, h, problem, u.to(dtype),
                )  # fmt: skip


def _of_columns(of_groups: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Numbers of the groups [b, G] for each of their rows, [b, M]."""
    parts = zip(of_groups.unbind(-1), sizes, strict=True)
    return torch.cat([part[:, None].expand(-1, size) for part, size in parts], -1)


def _weighted_differences(w: Tensor, rows: Tensor, z: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Σ_j w_ij (rows_i - z_j), [b, c, d]: one group at a time, for their sums nearly cancel."""
    parts = zip(w.split(sizes, -1), z.split(sizes, -2), strict=True)
    sums = [part.sum(-1, keepdim=True) * rows - part @ of for part, of in parts]
    return sum(sums[1:], sums[0])
