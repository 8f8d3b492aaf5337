"""The Hessian-vector product of MMD² in Triton, over packed rows.

Packing, splits and masks are those of triton_kernels.py. With e_dot = -<z_i - z_j, t_i - t_j>, the
derivative of the exponent along the direction t, everything else is a function of one pair. Where
the kernel is not twice differentiable this is not called.
"""

from __future__ import annotations

import triton.language as tl

from cgm_fast.ops.mmd.triton_kernels import split_columns
from cgm_fast.ops.triton.math import add_to, group_of, kernel
from cgm_fast.ops.triton.radial import bounded, radial


@kernel
def mmd_hvp_kernel(
    rows, columns, bias, weight,  # packed
    tangents,  # [b, total, features]: t, scaled like the rows
    along,  # [b, total]: <z_i, t_i>
    weight_dot,  # [b, total]
    variance, variance_dot,  # [s] or [b, s]; [b, s]
    relation, relation_dot,  # [G, G] or [b, G, G] float64; [b, G, G] float64 or None
    kernel_weights,  # [s]
    tiles, of_splits,  # of `Layout` and of `Splits`
    insides,  # [b, splits, total]: of the derivative in w, half of it
    z_sums, t_sums,  # [b, splits, total]: what multiplies z_i and t_i
    weighted_sums,  # [b, splits, total, features]: what is taken from both
    block_sums,  # [b, splits, blocks] float64: of the derivative in the relation; or None
    variance_sums,  # [b, splits, blocks, s] float64: of the derivative in h; or None
    total, features, splits, scales, variance_item, unit, groups, relation_item,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr, PRECISION: tl.constexpr,
    KERNEL: tl.constexpr,
):  # fmt: skip
    """A block of rows against a split of columns, FEATURES at a time."""
    blocks = total // ROWS
    block, item = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    split = tl.program_id(1)
    dtype = rows.dtype.element_ty
    i = block * ROWS + tl.arange(0, ROWS)
    start, end, of_columns = split_columns(of_splits, split, COLUMNS)
    entry = group_of(tiles, unit, block * ROWS) * groups + of_columns
    r = tl.load(relation + item * relation_item + entry).to(dtype)
    r_dot = tl.zeros([], dtype)
    if relation_dot is not None:
        r_dot = tl.load(relation_dot + item * groups * groups + entry).to(dtype)
    rows += item * total * features
    columns += item * total * features
    tangents += item * total * features
    bias += item * total
    weight += item * total
    weight_dot += item * total
    along += item * total
    variance += item * variance_item
    variance_dot += item * scales
    block_at = (item * splits + split) * blocks + block
    if variance_sums is not None:
        variance_sums += block_at * scales
    at = (item * splits + split) * total + i
    b_i, along_i = tl.load(bias + i), tl.load(along + i)
    w_i, w_dot_i = tl.load(weight + i)[:, None], tl.load(weight_dot + i)[:, None]
    h = tl.load(variance)
    inside, z_sum, t_sum = (
        tl.zeros([ROWS], dtype), tl.zeros([ROWS], dtype), tl.zeros([ROWS], dtype)
    )  # fmt: skip
    for first in range(start, end, COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        e = tl.zeros([ROWS, COLUMNS], dtype)
        e_dot = tl.zeros([ROWS, COLUMNS], dtype)
        for begin in range(0, features, FEATURES):
            f = begin + tl.arange(0, FEATURES)
            at_i = i.to(tl.int64)[:, None] * features + f[None, :]
            at_j = j.to(tl.int64)[:, None] * features + f[None, :]
            z_i, t_i = tl.load(rows + at_i), tl.load(tangents + at_i)
            z_j, t_j = tl.trans(tl.load(rows + at_j)), tl.trans(tl.load(tangents + at_j))
            e = tl.dot(z_i, z_j, e, input_precision=PRECISION, out_dtype=e.dtype)
            e_dot = tl.dot(z_i, t_j, e_dot, input_precision=PRECISION, out_dtype=e_dot.dtype)
            e_dot = tl.dot(t_i, z_j, e_dot, input_precision=PRECISION, out_dtype=e_dot.dtype)
        e += tl.load(bias + j)[None, :] + b_i[:, None]
        e_dot -= tl.load(along + j)[None, :] + along_i[:, None]
        own = i[:, None] == j[None, :]
        # Rounding is no reason for a row to be less than no distance away.
        e, e_dot = tl.where(own | (e > 0.0), 0.0, e), tl.where(own, 0.0, e_dot)
        w_j = tl.where(own, 0.0, tl.load(weight + j)[None, :])
        w_dot_j = tl.where(own, 0.0, tl.load(weight_dot + j)[None, :])
        pair, pair_dot = w_i * w_j, w_dot_i * w_j + w_i * w_dot_j
        value, value_dot = tl.zeros_like(e), tl.zeros_like(e)
        slope, slope_dot = tl.zeros_like(e), tl.zeros_like(e)
        for s in range(scales):
            h_s, of_s = tl.load(variance + s), tl.load(kernel_weights + s)
            relative = tl.load(variance_dot + s) / h_s
            ratio = h / h_s
            # Where k is an exact zero everything else is left out: products would overflow.
            exponent = bounded(e * ratio, KERNEL)
            vanishes = e * ratio < exponent
            stretch = tl.where(vanishes, 0.0, relative)
            t = -0.6931471805599453 * exponent
            t_dot = tl.where(vanishes, 0.0, -0.6931471805599453 * ratio * e_dot) - t * stretch
            less, _whole, of_t, curvature = radial(exponent, KERNEL)
            of_t *= of_s
            curvature *= of_s
            value += of_s * less
            value_dot -= of_t * t_dot
            slope += ratio * of_t
            slope_dot -= ratio * (curvature * t_dot + of_t * stretch)
            if variance_sums is not None:
                part = (r * pair_dot + r_dot * pair) * t * of_t
                part += r * pair * ((of_t - t * curvature) * t_dot - t * stretch * of_t)
                add_to(variance_sums + s, first == start, tl.sum(tl.sum(part, 1)) / h_s)
        if block_sums is not None:
            part = tl.sum(tl.sum(pair_dot * value + pair * value_dot, 1))
            add_to(block_sums + block_at, first == start, part)
        inside += tl.sum((r_dot * w_j + r * w_dot_j) * value + r * w_j * value_dot, 1)
        w = r * pair * slope
        w_dot = (r * pair_dot + r_dot * pair) * slope + r * pair * slope_dot
        z_sum += tl.sum(w_dot, 1)
        t_sum += tl.sum(w, 1)
        for begin in range(0, features, FEATURES):
            f = begin + tl.arange(0, FEATURES)
            z_t = tl.load(columns + f.to(tl.int64)[:, None] * total + j[None, :])
            t_j = tl.load(tangents + j.to(tl.int64)[:, None] * features + f[None, :])
            there = weighted_sums + at[:, None] * features + f[None, :]
            some = tl.zeros([ROWS, FEATURES], tl.int32) + first > start
            weighted_sum = tl.load(there, mask=some, other=0.0)
            weighted_sum += tl.dot(w_dot, tl.trans(z_t), input_precision=PRECISION)
            weighted_sum += tl.dot(w, t_j, input_precision=PRECISION)
            tl.store(there, weighted_sum)
        tl.debug_barrier()  # what one thread wrote another may read in the next tile
    tl.store(insides + at, inside)
    tl.store(z_sums + at, z_sum)
    tl.store(t_sums + at, t_sum)
