"""MMD² in plain PyTorch: what every other implementation must compute.

Rows are visited in chunks, so nothing of size M x M is ever stored, forward or backward. Nothing
waits for the device. See README.md beside this file for the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from cgm_fast.ops.chunks import pairs_per_chunk
from cgm_fast.ops.mmd.common import Coefficients, batched


@dataclass
class Values:
    """The kernel of a chunk's pairs. Shapes: [b, c, M]."""

    small: Tensor
    """k - 1 for near pairs, k for the others; of several bandwidths the weighted sum."""
    near: list[Tensor]
    """For every bandwidth, whether k is above 1/2."""
    by_u: Tensor
    """dk/du."""
    minus_one: Tensor
    """k - 1 for all pairs; not to be used unless asked for."""
    by_h: list[Tensor]
    """dk/dh for every bandwidth; empty unless asked for."""


@dataclass
class Chunk:
    """All pairs of rows [i0, i1) with every row of z, of one slice of the batch.

    Shapes: z [b, M, d], rows [b, c, d], a [b, M], a_rows [b, c], relation [b or 1, M], squared
    distances u [b, c, M]; a variance is a number or [b, 1, 1].
    """

    batch: slice
    i0: int
    i1: int
    z: Tensor
    rows: Tensor
    a: Tensor
    a_rows: Tensor
    relation: Tensor
    across: Tensor
    variances: list[float | Tensor]
    kernel_weights: list[float]
    u: Tensor

    def kernel(self, with_a: bool, with_p: bool) -> Values:
        """Values and the derivatives that are wanted."""
        out = Values(self.u, [], self.u, self.u, [])
        for s, (h, weight) in enumerate(zip(self.variances, self.kernel_weights, strict=True)):
            e = self.u * (-0.5 / h)
            value, minus_one, near = torch.exp(e), torch.expm1(e), e > -math.log(2)
            # A row's pair with itself is left out: its difference is zero, but where all others are
            # many bandwidths away its rounding would be all there is.
            value.diagonal(self.i0, -2, -1).zero_()
            small, by_u = torch.where(near, minus_one, value), value * (-0.5 * weight / h)
            near.diagonal(self.i0, -2, -1).zero_()
            if weight != 1:
                small = small * weight
            out.small = small if s == 0 else out.small + small
            out.by_u = by_u if s == 0 else out.by_u + by_u
            out.near.append(near)
            if with_a or with_p:
                minus_one = weight * minus_one
                out.minus_one = minus_one if s == 0 else out.minus_one + minus_one
            if with_p:
                out.by_h.append(value * e * (-weight / h))
        return out

    def kernel_along(
        self, u_dot: Tensor, h_dot: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Derivatives of k - 1, dk/du and dk/dh along (u_dot [b, c, M], h_dot [b, s])."""
        minus_one, by_u = torch.zeros_like(self.u), torch.zeros_like(self.u)
        by_h = []
        for s, (h, weight) in enumerate(zip(self.variances, self.kernel_weights, strict=True)):
            relative = 0 if h_dot is None else h_dot[:, s, None, None] / h
            t = self.u * (0.5 / h)
            t_dot = u_dot * (0.5 / h) - t * relative
            second = torch.exp(-t)
            second.diagonal(self.i0, -2, -1).zero_()  # as above
            first = -second
            minus_one += weight * first * t_dot
            by_u += (second * t_dot - first * relative) * (0.5 * weight / h)
            by_h.append(((second * t + first) * t_dot - first * t * relative) * (-weight / h))
        return minus_one, by_u, by_h


@batched
def mmd_fwd(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    cross: Tensor | None,
    variance: Tensor | None,
    variances: list[float],
    kernel_weights: list[float],
    x_scale: float,
    y_scale: float,
    cross_scale: float,
    row_begin: int,
    row_end: int,
    with_a: bool,
    with_p: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L [b], its gradients in z [b, row_end - row_begin, d], a [b, M], (h, cross) [b, s + 1]."""
    b, n, rows, d = x.shape[0], x.shape[1], x.shape[1] + y.shape[1], x.shape[2]
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide = _wide(x)
    scales = len(kernel_weights)
    loss = x.new_zeros(b, dtype=wide)
    # Σ of w_i w_j over near pairs: from x to x, y to y, across; w are weights without their scale.
    near = x.new_zeros((3, b, scales), dtype=wide)
    far = torch.zeros_like(near)  # over far ones, where rows have weights of their own
    grad_z = x.new_empty((b, row_end - row_begin, d), dtype=dtype)
    grad_a = x.new_empty((b, rows) if with_a else (0,), dtype=dtype)
    grad_p = x.new_zeros((b, scales + 1) if with_p else (0,), dtype=wide)
    weights = _joined(x, y, x_weights, y_weights)
    inputs = (x, y, x_weights, y_weights, cross, variance, variances, kernel_weights)
    with _no_autocast(x.device.type):
        for chunk in _chunks(*inputs, x_scale, y_scale, cross_scale, 10 + 6 * scales):
            c, i0, i1 = chunk.batch, chunk.i0, chunk.i1
            k = chunk.kernel(with_a, with_p)
            a = (chunk.relation * chunk.a).unsqueeze(1)  # [b, 1, M]
            loss[c].add_((chunk.a_rows * (a * k.small).sum(-1)).sum(-1, dtype=wide))
            for s, pairs in enumerate(k.near):
                for of_y, columns in enumerate((slice(0, n), slice(n, rows))):
                    kind = 2 if of_y != (i0 >= n) else of_y
                    met = pairs[..., columns]
                    near[kind, c, s].add_(_mass(met, weights, c, i0, i1, columns))
                    if weights is not None:
                        others = ~met
                        if of_y == (i0 >= n):
                            others.diagonal(i0 - columns.start, -2, -1).zero_()
                        far[kind, c, s].add_(_mass(others, weights, c, i0, i1, columns))
            if with_a:
                grad_a[c, i0:i1] = 2 * (a * k.minus_one).sum(-1)
            if with_p:
                for s, k_h in enumerate(k.by_h):
                    grad_p[c, s] += (chunk.a_rows * (a * k_h).sum(-1)).sum(-1, dtype=wide)
                part = (chunk.a * chunk.across).unsqueeze(1) * k.minus_one
                grad_p[c, -1] += (chunk.a_rows * part.sum(-1)).sum(-1, dtype=wide)
            begin, end = max(i0, row_begin), min(i1, row_end)
            if begin < end:
                keep = slice(begin - i0, end - i0)
                w = (a * k.by_u)[:, keep]
                differences = _weighted_differences(w, chunk.rows[:, keep], chunk.z, n)
                grad = 4 * chunk.a_rows[:, keep, None] * differences
                grad_z[c, begin - row_begin : end - row_begin] = grad
    coefficients = Coefficients.of(
        n, rows - n, x_weights, y_weights, cross, x_scale, y_scale, cross_scale, wide
    )
    for s, weight in enumerate(kernel_weights):
        far_in_s = None if weights is None else far[:, :, s].unbind()
        loss += weight * coefficients.constant(near[:, :, s].unbind(), far_in_s)
    return loss.to(dtype), grad_z, grad_a, grad_p.to(dtype)


def _joined(
    x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None
) -> Tensor | None:
    """Weights of the stacked rows [b, M], without their scale; None where all are 1."""
    given = x_weights if x_weights is not None else y_weights
    if given is None:
        return None
    ones = given.new_ones(())
    of_x = ones.expand(x.shape[:2]) if x_weights is None else x_weights
    of_y = ones.expand(y.shape[:2]) if y_weights is None else y_weights
    return torch.cat((of_x, of_y), 1)


def _mass(
    near: Tensor, weights: Tensor | None, batch: slice, i0: int, i1: int, columns: slice
) -> Tensor:
    """Σ of w_i w_j over the near pairs of rows [i0, i1) and some columns, [b]."""
    if weights is None:
        return near.sum((-2, -1))
    wide = _wide(near)
    of_row = (near * weights[batch, None, columns]).sum(-1, dtype=wide)
    return (weights[batch, i0:i1] * of_row).sum(-1)


@batched
def mmd_hvp(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    cross: Tensor | None,
    variance: Tensor | None,
    variances: list[float],
    kernel_weights: list[float],
    x_scale: float,
    y_scale: float,
    cross_scale: float,
    row_begin: int,
    row_end: int,
    with_a: bool,
    with_p: bool,
    tangent_z: Tensor | None,
    tangent_a: Tensor | None,
    tangent_p: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hessian-vector product with (tangent_z, tangent_a, tangent_p): z, a and (h, cross) parts."""
    b, rows, d = x.shape[0], x.shape[1] + y.shape[1], x.shape[2]
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide = _wide(x)
    out_z = x.new_empty((b, row_end - row_begin, d), dtype=dtype)
    out_a = x.new_empty((b, rows) if with_a else (0,), dtype=dtype)
    out_p = x.new_zeros((b, len(kernel_weights) + 1) if with_p else (0,), dtype=wide)
    zero = x.new_zeros((), dtype=dtype)
    z_dot = zero.expand(b, rows, d) if tangent_z is None else tangent_z
    a_dot = zero.expand(b, rows) if tangent_a is None else tangent_a
    h_dot = None if tangent_p is None else tangent_p[:, :-1]
    cross_dot = zero.expand(b) if tangent_p is None else tangent_p[:, -1]
    inputs = (x, y, x_weights, y_weights, cross, variance, variances, kernel_weights)
    with _no_autocast(x.device.type):
        for chunk in _chunks(*inputs, x_scale, y_scale, cross_scale, 20 + 8 * len(kernel_weights)):
            c, i0, i1 = chunk.batch, chunk.i0, chunk.i1
            t, t_rows = z_dot[c], z_dot[c, i0:i1]
            da, da_rows = a_dot[c].unsqueeze(1), a_dot[c, i0:i1].unsqueeze(2)
            a, a_rows = chunk.a.unsqueeze(1), chunk.a_rows.unsqueeze(2)
            relation = chunk.relation.unsqueeze(1)
            relation_dot = (chunk.across * cross_dot[c, None]).unsqueeze(1)

            u_dot = (chunk.rows * t_rows).sum(-1)[:, :, None] + (chunk.z * t).sum(-1)[:, None, :]
            u_dot = 2 * (u_dot - chunk.rows @ t.mT - t_rows @ chunk.z.mT)
            u_dot.diagonal(i0, -2, -1).zero_()  # and stays so, exactly
            k = chunk.kernel(True, True)
            minus_one, by_u, by_h = k.minus_one, k.by_u, k.by_h
            minus_one_dot, by_u_dot, by_h_dot = chunk.kernel_along(
                u_dot, None if h_dot is None else h_dot[c]
            )
            pair = a_rows * a
            pair_dot = da_rows * a + a_rows * da
            coefficient_dot = relation * pair_dot + relation_dot * pair
            if with_a:
                inside = (relation_dot * a + relation * da) * minus_one
                inside = inside + relation * a * minus_one_dot
                out_a[c, i0:i1] = 2 * inside.sum(-1)
            if with_p:
                for s in range(len(kernel_weights)):
                    part = coefficient_dot * by_h[s] + relation * pair * by_h_dot[s]
                    out_p[c, s] += part.sum((-2, -1), dtype=wide)
                part = pair_dot * minus_one + pair * minus_one_dot
                out_p[c, -1] += (part * chunk.across).sum((-2, -1), dtype=wide)
            begin, end = max(i0, row_begin), min(i1, row_end)
            if begin < end:
                keep = slice(begin - i0, end - i0)
                w = (relation * pair * by_u)[:, keep]
                w_dot = (coefficient_dot * by_u + relation * pair * by_u_dot)[:, keep]
                out = _weighted_differences(w_dot, chunk.rows[:, keep], chunk.z, x.shape[1])
                out = out + _weighted_differences(w, t_rows[:, keep], t, x.shape[1])
                out_z[c, begin - row_begin : end - row_begin] = 4 * out
    return out_z, out_a, out_p.to(dtype)


def _chunks(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    cross: Tensor | None,
    variance: Tensor | None,
    variances: list[float],
    kernel_weights: list[float],
    x_scale: float,
    y_scale: float,
    cross_scale: float,
    temporaries: int,
) -> Iterator[Chunk]:
    """Visit every ordered pair of rows once; a chunk's rows all come from one sample.

    A pair has so many temporaries of the dtype that is computed in.
    """
    b, n, m = x.shape[0], x.shape[1], y.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    # The loss does not move when the origin does. |a|² + |b|² - 2ab loses what |a|² has over the
    # distance: so it is taken in float64, where there is one.
    far = torch.cat((x, y), 1).to(_wide(x))
    far = far - far.mean(1, keepdim=True)
    squares = (far * far).sum(-1)
    z = far.to(dtype)
    ones = z.new_ones(())
    a = torch.cat(
        (
            x_scale * (ones.expand(b, n) if x_weights is None else x_weights),
            -y_scale * (ones.expand(b, m) if y_weights is None else y_weights),
        ),
        1,
    )
    between = cross_scale * (ones.expand(b) if cross is None else cross)
    in_x = (torch.arange(n + m, device=x.device) < n).to(dtype)

    pairs = pairs_per_chunk(x.device, temporaries * dtype.itemsize)
    batch_step = max(1, pairs // (n + m) ** 2)
    row_step = max(1, pairs // (n + m))
    for b0 in range(0, b, batch_step):
        batch = slice(b0, min(b0 + batch_step, b))
        h: list[float | Tensor] = list(variances)
        if variance is not None:
            h = [of_s[:, None, None] for of_s in variance.expand(b, -1)[batch].unbind(1)]
        for first, last in ((0, n), (n, n + m)):
            across = (1 - in_x if first == 0 else in_x).unsqueeze(0)
            relation = torch.where(across > 0, between[batch, None], ones)
            for i0 in range(first, last, row_step):
                i1 = min(i0 + row_step, last)
                u = squares[batch, i0:i1, None] + squares[batch, None, :]
                u.baddbmm_(far[batch, i0:i1], far[batch].mT, alpha=-2).clamp_min_(0)
                u.diagonal(i0, -2, -1).zero_()  # a row is at distance zero from itself, exactly
                yield Chunk(
                    batch, i0, i1, z[batch], z[batch, i0:i1], a[batch], a[batch, i0:i1],
                    relation, across, h, kernel_weights, u.to(dtype),
                )  # fmt: skip


def _weighted_differences(w: Tensor, rows: Tensor, z: Tensor, n: int) -> Tensor:
    """Σ_j w_ij (rows_i - z_j), [b, c, d]: one sample at a time, for their sums nearly cancel."""
    sizes = (n, z.shape[-2] - n)
    parts = zip(w.split(sizes, -1), z.split(sizes, -2), strict=True)
    first, second = (part.sum(-1, keepdim=True) * rows - part @ of for part, of in parts)
    return first + second


def _wide(x: Tensor) -> torch.dtype:
    """The dtype for sums over rows: float64, or float32 where the device has none (MPS)."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Half-precision matrix products would break the numerics contract."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
