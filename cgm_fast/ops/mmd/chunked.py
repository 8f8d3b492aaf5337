"""MMD² by chunks of rows, in plain PyTorch.

What implementations share that differ in how distances are taken.

Rows are visited in chunks, so nothing of size M x M is ever stored, forward or backward. Nothing
here waits for the device. See README.md beside this file for the formulas.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cgm_fast.ops.chunks import no_autocast, pairs_per_chunk, variances_of, wide_dtype
from cgm_fast.ops.mmd.common import bounds_of_groups, of_columns, relation_of
from cgm_fast.ops.mmd.kernels import FAMILIES, Family
from cgm_fast.ops.mmd.problem import Problem, Product, Tangent, Wanted


class Rows(Protocol):
    """The rows of a problem, about their mean, and the distances between them."""

    z: Tensor
    """[b, M, d], in the dtype that is computed in."""

    def squared(self, batch: slice, i: slice) -> Tensor:
        """Of rows i with all rows, [b, c, M], in that dtype; not negative."""


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


def hvp(problem: Problem, tangent: Tangent, wanted: Wanted, points: Rows) -> Product:
    """The Hessian of L, of a problem with a batch, applied to a tangent: see `Product`."""
    z, sizes = points.z, problem.sizes
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
        for chunk in chunks(problem, points, 20 + 8 * scales):
            c, i0, i1 = chunk.batch, chunk.i0, chunk.i1
            t, t_rows = z_dot[c], z_dot[c, i0:i1]
            w, w_rows = chunk.w.unsqueeze(1), chunk.w_rows.unsqueeze(2)
            dw, dw_rows = w_dot[c].unsqueeze(1), w_dot[c, i0:i1].unsqueeze(2)
            gamma = chunk.relation.unsqueeze(1)
            gamma_dot = zero
            if tangent.relation is not None:
                of_group = tangent.relation[c, chunk.group].to(dtype)
                gamma_dot = of_columns(of_group, sizes).unsqueeze(1)

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
                out = weighted_differences(weights_dot, chunk.rows[:, keep], chunk.z, sizes)
                out = out + weighted_differences(weights, t_rows[:, keep], t, sizes)
                out_z[c, begin - wanted.row_begin : end - wanted.row_begin] = 4 * out
    return Product(
        out_z if wanted.row_end > wanted.row_begin else None,
        out_weights if wanted.weights else None,
        out_relation if wanted.relation else None,
        out_variance.to(dtype) if wanted.variance else None,
    )


def chunks(problem: Problem, points: Rows, temporaries: int) -> Iterator[Chunk]:
    """Visit every ordered pair of rows of z once; a chunk's rows all come from one group.

    A pair has so many temporaries of the dtype that is computed in.
    """
    z = points.z
    (b, rows, _), sizes, dtype = z.shape, problem.sizes, z.dtype
    w = z.new_ones(()).expand(b, rows) if problem.weights is None else problem.weights.to(dtype)
    relation = relation_of(problem, dtype)

    pairs = pairs_per_chunk(z.device, temporaries * dtype.itemsize)
    batch_step = max(1, pairs // rows**2)
    row_step = max(1, pairs // rows)
    variance = None if problem.variance is None else problem.variance.to(dtype)
    for b0 in range(0, b, batch_step):
        batch = slice(b0, min(b0 + batch_step, b))
        h = variances_of(problem.variances, variance, b, batch)
        of_batch = relation[batch] if len(relation) > 1 else relation
        for g, (first, last) in enumerate(bounds_of_groups(sizes)):
            gamma = of_columns(of_batch[:, g], sizes)
            for i0 in range(first, last, row_step):
                i1 = min(i0 + row_step, last)
                u = points.squared(batch, slice(i0, i1))
                u.diagonal(i0, -2, -1).zero_()  # a row is at distance zero from itself, exactly
                yield Chunk(
                    batch, g, i0, i1, z[batch], z[batch, i0:i1], w[batch], w[batch, i0:i1], gamma,
                    h, problem, u,
                )  # fmt: skip


def weighted_differences(w: Tensor, rows: Tensor, z: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Σ_j w_ij (rows_i - z_j), [b, c, d]: one group at a time, for their sums nearly cancel."""
    parts = zip(w.split(sizes, -1), z.split(sizes, -2), strict=True)
    sums = [part.sum(-1, keepdim=True) * rows - part @ of for part, of in parts]
    return sum(sums[1:], sums[0])
