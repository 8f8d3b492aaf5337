"""MMD² and its gradient in Triton; launched by triton.py, derived in README.md.

The samples are first packed (ops/triton/pack.py), scaled so that the kernel is 2^e with
e = z_i . z_j + b_i + b_j. A weight a_j carries its sample's sign and scale, and is 0 for padding.

Split-K: columns are dealt out in splits, each within one sample. A program takes a block of rows
and a split, and writes sums over its columns; the finishing kernel adds the splits in order, in
float64.
No sum depends on which program came first.

Half samples come neither centred nor scaled, so that their products are exact: there
e = log2(e)/h (z_i . z_j) + b_i + b_j.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cgm_fast.ops.triton.math import (
    add_to,
    add_weighted,
    cut,
    exp2_less_one,
    kernel,
    parts,
    product,
    squared_distances,
)

# Where they stand among `constants`, after the two scales. Pairs are near from this exponent on.
CROSS_SCALE, NEAR_FROM, KERNEL_WEIGHTS = 2, 3, 4


@triton.jit
def split_columns(split, x_splits, span, n_pad, total):
    """The packed columns [start, end) of a split."""
    of_y = split >= x_splits
    start = tl.where(of_y, n_pad + (split - x_splits) * span, split * span)
    return start, tl.minimum(start + span, tl.where(of_y, total, n_pad))


@triton.jit
def sample_scale(constants, of_y):
    """What rows of a sample weigh unless they have weights of their own, with its sign."""
    return tl.where(of_y, -tl.load(constants + 1), tl.load(constants))


@triton.jit
def without_scale(a, scale, GIVEN: tl.constexpr):
    """Weights without their sample's scale: exactly 1, or 0 for padding, unless they are given."""
    if GIVEN:
        return a * (1.0 / scale)
    else:
        return tl.where(a == 0.0, 0.0, 1.0)


@triton.jit
def _near(e, near_from, less_one, k):
    """k - 1 where the pair is near, else k; and 1 or 0."""
    near = e >= near_from
    return tl.where(near, less_one, k), tl.where(near, 1.0, 0.0)


@triton.jit
def _values(
    e, a_j, a_i, p_sums, first, near_from,
    variance, kernel_weights, scales,
    SEVERAL: tl.constexpr, WITH_P: tl.constexpr,
):  # fmt: skip
    """a_j (k - 1), or a_j k of far pairs, a_j times the slope of the kernel at e, and in how many
    bandwidths the pair is near, [ROWS, COLUMNS]."""
    a = a_j[None, :]
    if SEVERAL:
        h = tl.load(variance)
        value, slope, near = tl.zeros_like(e), tl.zeros_like(e), tl.zeros_like(e)
        for s in range(scales):
            ratio, of_s = h / tl.load(variance + s), tl.load(kernel_weights + s)
            less_one, k = exp2_less_one(e * ratio)
            small, near_in_s = _near(e * ratio, near_from, less_one, k)
            value += of_s * small
            near += near_in_s
            slope += of_s * ratio * k
            if WITH_P:
                part = tl.sum(a_i * tl.sum((-0.6931471805599453 * ratio) * e * k * a, 1))
                add_to(p_sums + s, first, part)
    else:
        less_one, slope = exp2_less_one(e)
        value, near = _near(e, near_from, less_one, slope)
    return value * a, slope * a, near


@kernel
def mmd_fwd_kernel(
    rows, columns, bias, weight,
    largest,  # [b, largest_parts], LARGEST at most
    variance, constants,
    values,  # [b, splits, total]: sums of a_j (k - 1), of a_j k for far pairs
    nears,  # [b, splits, total]: sums of a_j, without its scale, over near pairs
    fars,  # the same over far pairs, or None: those that near pairs leave
    slopes,  # [b, splits, total]: sums of a_j slope
    weighted_sums,  # [b, splits, total, features]: sums of a_j slope z_j
    p_sums,  # [b, splits, blocks, scales] float64: sums of a_i a_j t k_s
    d, n_pad, total, features, span, splits, x_splits, scales, variance_item, first_block,
    some_blocks, largest_parts,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr, TURN: tl.constexpr,
    WIDE: tl.constexpr, GRADIENT: tl.constexpr, SEVERAL: tl.constexpr, WITH_P: tl.constexpr,
    KERNEL_WEIGHTS: tl.constexpr, PRECISION: tl.constexpr, PARTS: tl.constexpr, FAR: tl.constexpr,
    LARGEST: tl.constexpr, NEAR_FROM: tl.constexpr,
):  # fmt: skip
    """A block of rows against a split of columns.

    |a|² + |b|² - 2ab loses what |a|² has over the distance: where some |z|² is beyond FAR, this is
    done with plain differences. PARTS is what weights go into a product as (add_weighted).
    """
    block = tl.program_id(0) % some_blocks + first_block
    item, split = (tl.program_id(0) // some_blocks).to(tl.int64), tl.program_id(1)
    rows += item * total * features
    columns += item * total * features
    bias += item * total
    weight += item * total
    variance += item * variance_item
    p_sums += ((item * splits + split) * (total // ROWS) + block) * scales
    start, end = split_columns(split, x_splits, span, n_pad, total)
    at = (item * splits + split) * total + block * ROWS + tl.arange(0, ROWS)
    widest = tl.full([], 1.0, columns.dtype.element_ty)
    if SEVERAL:
        for s in range(scales):
            widest = tl.maximum(widest, tl.load(variance) / tl.load(variance + s))
    part = tl.arange(0, LARGEST)
    of_parts = tl.load(largest + item * largest_parts + part, mask=part < largest_parts, other=0.0)
    if tl.max(of_parts) * widest > FAR:
        _visit(
            rows, columns, bias, weight, variance, constants, values, nears, fars, slopes,
            weighted_sums, p_sums, at, block, start, end, n_pad, d, total, features, scales,
            ROWS, COLUMNS, FEATURES, TURN, WIDE, GRADIENT, SEVERAL, WITH_P,
            KERNEL_WEIGHTS, NEAR_FROM, PRECISION, PARTS, True,
        )  # fmt: skip
    else:
        _visit(
            rows, columns, bias, weight, variance, constants, values, nears, fars, slopes,
            weighted_sums, p_sums, at, block, start, end, n_pad, d, total, features, scales,
            ROWS, COLUMNS, FEATURES, TURN, WIDE, GRADIENT, SEVERAL, WITH_P,
            KERNEL_WEIGHTS, NEAR_FROM, PRECISION, PARTS, False,
        )  # fmt: skip


@triton.jit
def _visit(
    rows, columns, bias, weight, variance, constants, values, nears, fars, slopes, weighted_sums,
    p_sums, at, block, start, end, n_pad, d, total, features, scales,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr, TURN: tl.constexpr,
    WIDE: tl.constexpr, GRADIENT: tl.constexpr, SEVERAL: tl.constexpr, WITH_P: tl.constexpr,
    KERNEL_WEIGHTS: tl.constexpr, NEAR_FROM: tl.constexpr, PRECISION: tl.constexpr,
    PARTS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The same for one batch item and one way to take distances. Two products a tile.

    Sums run in registers for TURN columns and are then added to the rest, in memory: over millions
    of columns they would stop growing. Where there are more features than FEATURES (WIDE) sums over
    z_j are too wide for registers, and join the rest after every tile.
    """
    dtype = columns.dtype.element_ty
    half: tl.constexpr = rows.dtype.element_ty != columns.dtype.element_ty
    unit = 1.4426950408889634 / tl.load(variance)  # of half samples' products
    i = block * ROWS + tl.arange(0, ROWS)
    f = tl.arange(0, FEATURES)
    b_i, a_i = tl.load(bias + i), tl.load(weight + i)
    near_from = tl.load(constants + NEAR_FROM)
    COUNTED: tl.constexpr = SEVERAL or fars is not None
    scale_j = sample_scale(constants, start >= n_pad)
    at_i = i.to(tl.int64)[:, None] * features
    z_i, z_i_rest = parts(tl.load(rows + at_i + f[None, :]), PRECISION)
    value, slope = tl.zeros([ROWS], dtype), tl.zeros([ROWS], dtype)
    near, far = tl.zeros([ROWS], dtype), tl.zeros([ROWS], dtype)
    for turn in range(start, end, TURN):
        value_part, slope_part = tl.zeros([ROWS], dtype), tl.zeros([ROWS], dtype)
        near_part, far_part = tl.zeros([ROWS], dtype), tl.zeros([ROWS], dtype)
        weighted_sum = tl.zeros([ROWS, FEATURES], dtype)
        for first in range(turn, tl.minimum(turn + TURN, end), COLUMNS):
            j = first + tl.arange(0, COLUMNS)
            at_j = j.to(tl.int64)[:, None] * features
            if EXACT:
                e = -0.5 * squared_distances(columns, i, j, d, total, ROWS, COLUMNS, 1)
                if half:
                    e *= unit
            elif WIDE:
                e = tl.zeros([ROWS, COLUMNS], dtype)
                for begin in range(0, features, FEATURES):
                    some_i = tl.load(rows + at_i + (begin + f)[None, :])
                    some_j = tl.trans(tl.load(rows + at_j + (begin + f)[None, :]))
                    some_i, rest_i = parts(some_i, PRECISION)
                    e += product(some_i, rest_i, some_j, PRECISION)
                e = e * unit if half else e
                e += tl.load(bias + j)[None, :] + b_i[:, None]
            else:
                z_j = tl.trans(tl.load(rows + at_j + f[None, :]))
                e = product(z_i, z_i_rest, z_j, PRECISION)
                e = e * unit if half else e
                e += tl.load(bias + j)[None, :] + b_i[:, None]
            # A row's pair with itself is left out: its gradient vanishes, and where all other pairs
            # are many bandwidths apart its rounding would be all there is.
            own = i[:, None] == j[None, :]
            diagonal = (first < (block + 1) * ROWS) & (first + COLUMNS > block * ROWS)
            if diagonal:
                tl.debug_barrier()  # lest the compiler selects for every pair instead
                e = tl.where(own, 0.0, e)
            a_j = tl.load(weight + j)
            v, w, of_near = _values(
                e, a_j, a_i, p_sums, first == start, near_from,
                variance, constants + KERNEL_WEIGHTS, scales, SEVERAL, WITH_P,
            )  # fmt: skip
            v_sum = tl.sum(v, 1)
            value_part += v_sum
            if COUNTED:
                w_j = without_scale(a_j, scale_j, fars is not None)[None, :]
                if fars is not None:
                    of_far = scales - of_near
                    if diagonal:
                        tl.debug_barrier()
                        of_far = tl.where(own, 0.0, of_far)
                    far_part += tl.sum(of_far * w_j, 1)
                if diagonal:
                    tl.debug_barrier()
                    of_near = tl.where(own, 0.0, of_near)
                near_part += tl.sum(of_near * w_j, 1)
            if GRADIENT or not COUNTED:
                if diagonal:
                    tl.debug_barrier()
                    w = tl.where(own, 0.0, w)
                if GRADIENT and PARTS == 1:
                    w = cut(w)  # as the product has it: each w_ij (z_i - z_j) then is a whole one
                w_sum = tl.sum(w, 1)
                slope_part += w_sum
            if not COUNTED:  # as many pairs are near as k was lessened by 1 for
                near_part += tl.floor((w_sum - v_sum) * (1.0 / scale_j) + 0.5)
            if GRADIENT:
                z_t = columns + f.to(tl.int64)[:, None] * total + j[None, :]
                if WIDE:
                    for begin in range(0, features, FEATURES):
                        there = weighted_sums + at[:, None] * features + (begin + f)[None, :]
                        again = tl.zeros([ROWS, FEATURES], tl.int32) + first > start
                        of_tile = tl.load(there, mask=again, other=0.0)
                        z = tl.trans(tl.load(z_t))
                        tl.store(there, add_weighted(of_tile, w, z, PARTS, PRECISION))
                        z_t += FEATURES * total
                    tl.debug_barrier()  # what one thread wrote another may read in the next tile
                else:
                    z = tl.trans(tl.load(z_t))
                    weighted_sum = add_weighted(weighted_sum, w, z, PARTS, PRECISION)
        value += value_part
        near += near_part
        far += far_part
        slope += slope_part
        if GRADIENT and not WIDE:
            there = weighted_sums + at[:, None] * features + f[None, :]
            again = tl.zeros([ROWS, FEATURES], tl.int32) + turn > start
            tl.store(there, weighted_sum + tl.load(there, mask=again, other=0.0))
            tl.debug_barrier()  # and in the next turn
    tl.store(values + at, value)
    tl.store(nears + at, near)
    if fars is not None:
        tl.store(fars + at, far)
    if GRADIENT:
        tl.store(slopes + at, slope)


@triton.jit
def left_by(coefficients, near_x, near_y, near_across, count):
    """What far pairs weigh in so many bandwidths together: exact where near ones are counted."""
    far_x = count * tl.load(coefficients + 4) - near_x
    far_y = count * tl.load(coefficients + 5) - near_y
    return far_x, far_y, count * tl.load(coefficients + 6) - near_across


@triton.jit
def near_constant(coefficients, near_x, near_y, near_across, far_x, far_y, far_across, count):
    """Σ c_ij over near pairs less that over all: see Coefficients.constant in common.py.

    Given what near and far pairs weigh without their scales, in so many bandwidths together.
    """
    in_x, in_y = tl.load(coefficients), tl.load(coefficients + 1)
    across = tl.load(coefficients + 2) * tl.load(coefficients + 3)
    near, of_near = in_x * near_x + in_y * near_y, across * near_across
    far, of_far = in_x * far_x + in_y * far_y, across * far_across
    every = count * tl.load(coefficients + 7)
    return tl.where(near + of_near < far + of_far, near - of_near - every, of_far - far)


@triton.jit
def _place(i, n, m, n_pad):
    """Where packed rows stand among the stacked samples [x; y], and whether they do."""
    in_x = i < n_pad
    return tl.where(in_x, i, i - n_pad + n), tl.where(in_x, i < n, i - n_pad < m)


@triton.jit
def relation(split, x_splits, of_y, between):
    """r_ij of a row and a split's columns: 1 within a sample, `between` across."""
    return tl.where((split >= x_splits) == of_y, 1.0, between)


@triton.jit
def gradient_factor(h, HALF: tl.constexpr, PARTS: tl.constexpr):
    """What a row's weighted differences are multiplied with; h is the first bandwidth's variance.

    Cutting a weight to tf32 takes off 0.72 times 2^-11 of it on average, where mantissas are spread
    as products' are (1/m for m in [1, 2), by its logarithm): that is given back.
    """
    factor = -2.0 / h
    if not HALF:
        factor /= tl.sqrt(1.4426950408889634 / h)
    if PARTS == 1:
        factor *= 1.0 + 0.72 / 2048
    return factor


@kernel
def mmd_finish_kernel(
    rows, weight, variance, constants, coefficients, cross, values, nears, fars, slopes,
    weighted_sums, p_sums,
    # [b, blocks, 6] float64: each block's part of the loss, within and across, and what near pairs
    # weigh without scales, and far ones if there are such sums, the same
    partials,
    counter,  # [b]
    loss, grad_z, grad_a, grad_p,  # as the op returns them; None where not wanted
    n, m, d, n_pad, total, features, splits, x_splits, scales, variance_item, coefficients_item,
    row_begin, row_end, row_blocks,
    ROWS: tl.constexpr, FEATURES: tl.constexpr, GRADIENT: tl.constexpr, BLOCKS: tl.constexpr,
    CROSS_SCALE: tl.constexpr, KERNEL_WEIGHTS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Add the splits of a block of rows in order; the last block to finish adds up the loss."""
    blocks = total // ROWS
    block, item = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    i = block * ROWS + tl.arange(0, ROWS)
    of_y = block * ROWS >= n_pad
    stacked, valid = _place(i, n, m, n_pad)
    between = tl.load(constants + CROSS_SCALE).to(tl.float64)
    if cross is not None:
        between *= tl.load(cross + item)
    a = tl.load(weight + item * total + i).to(tl.float64)
    within, across = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    near_within, near_across = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    far_within, far_across = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    scale_i = sample_scale(constants, of_y).to(tl.float64)
    coefficients += item * coefficients_item
    of_kernel = tl.load(constants + KERNEL_WEIGHTS).to(tl.float64)
    for split in range(splits):
        value = tl.load(values + (item * splits + split) * total + i).to(tl.float64)
        same = (split >= x_splits) == of_y
        within += tl.where(same, value, 0.0)
        across += tl.where(same, 0.0, value)
        near = tl.load(nears + (item * splits + split) * total + i).to(tl.float64)
        near_within += tl.where(same, near, 0.0)
        near_across += tl.where(same, 0.0, near)
        if fars is not None:
            far = tl.load(fars + (item * splits + split) * total + i).to(tl.float64)
            far_within += tl.where(same, far, 0.0)
            far_across += tl.where(same, 0.0, far)
    part = partials + (item * blocks + block) * 6
    tl.store(part, tl.sum(a * within))
    tl.store(part + 1, tl.sum(a * across))
    tl.store(part + 2, tl.sum(a / scale_i * near_within))
    tl.store(part + 3, tl.sum(a / scale_i * near_across))
    tl.store(part + 4, tl.sum(a / scale_i * far_within))
    tl.store(part + 5, tl.sum(a / scale_i * far_across))
    if grad_a is not None:
        if fars is not None:  # of k - 1: what was not subtracted, for far pairs
            scale_of_other = sample_scale(constants, of_y == 0).to(tl.float64)
            within -= of_kernel * scale_i * far_within
            across -= of_kernel * scale_of_other * far_across
        tl.store(grad_a + item * (n + m) + stacked, 2.0 * (within + between * across), mask=valid)
    if GRADIENT:
        h = tl.load(variance + item * variance_item).to(tl.float64)
        half: tl.constexpr = rows.dtype.element_ty != values.dtype.element_ty
        factor = gradient_factor(h, half, PARTS) * a
        wanted = valid & (stacked >= row_begin) & (stacked < row_end)
        slope = tl.zeros([ROWS], tl.float64)
        for split in range(splits):
            of_split = tl.load(slopes + (item * splits + split) * total + i, mask=wanted, other=0.0)
            slope += relation(split, x_splits, of_y, between) * of_split.to(tl.float64)
        for first in range(0, features, FEATURES):
            f = first + tl.arange(0, FEATURES)
            there = wanted[:, None] & (f < d)[None, :]
            z = tl.load(rows + (item * total + i)[:, None] * features + f[None, :])
            z = z.to(values.dtype.element_ty)
            weighted_sum = tl.zeros([ROWS, FEATURES], tl.float64)
            for split in range(splits):
                of_i = ((item * splits + split) * total + i)[:, None] * features
                some_sum = tl.load(weighted_sums + of_i + f[None, :], mask=there, other=0.0)
                weighted_sum += relation(split, x_splits, of_y, between) * some_sum.to(tl.float64)
            grad = factor[:, None] * (slope[:, None] * z.to(tl.float64) - weighted_sum)
            to = (item * (row_end - row_begin) + stacked - row_begin)[:, None] * d + f[None, :]
            tl.store(grad_z + to, grad, mask=there)
    tl.debug_barrier()  # this block's parts are written before it counts as done
    if tl.atomic_add(counter + item, 1) == blocks - 1:
        within_all, across_all = tl.zeros([BLOCKS], tl.float64), tl.zeros([BLOCKS], tl.float64)
        near_x, near_y = tl.zeros([BLOCKS], tl.float64), tl.zeros([BLOCKS], tl.float64)
        far_x, far_y = tl.zeros([BLOCKS], tl.float64), tl.zeros([BLOCKS], tl.float64)
        near_between = tl.zeros([BLOCKS], tl.float64)
        far_between = tl.zeros([BLOCKS], tl.float64)
        for first in range(0, blocks, BLOCKS):
            p = first + tl.arange(0, BLOCKS)
            parts = partials + (item * blocks + p) * 6
            within_all += tl.load(parts, mask=p < blocks, other=0.0, cache_modifier=".cg")
            across_all += tl.load(parts + 1, mask=p < blocks, other=0.0, cache_modifier=".cg")
            near_p = tl.load(parts + 2, mask=p < blocks, other=0.0, cache_modifier=".cg")
            near_x += tl.where(p * ROWS < n_pad, near_p, 0.0)
            near_y += tl.where(p * ROWS < n_pad, 0.0, near_p)
            near_between += tl.load(parts + 3, mask=p < blocks, other=0.0, cache_modifier=".cg")
            if fars is not None:
                far_p = tl.load(parts + 4, mask=p < blocks, other=0.0, cache_modifier=".cg")
                far_x += tl.where(p * ROWS < n_pad, far_p, 0.0)
                far_y += tl.where(p * ROWS < n_pad, 0.0, far_p)
                far_between += tl.load(parts + 5, mask=p < blocks, other=0.0, cache_modifier=".cg")
        across_sum, near_sum = tl.sum(across_all), tl.sum(near_between)
        value = tl.sum(within_all) + between * across_sum
        in_x, in_y = tl.sum(near_x), tl.sum(near_y)
        if fars is not None:
            out_x, out_y, far_sum = tl.sum(far_x), tl.sum(far_y), tl.sum(far_between)
        else:
            out_x, out_y, far_sum = left_by(coefficients, in_x, in_y, near_sum, scales)
        value += of_kernel * near_constant(
            coefficients, in_x, in_y, near_sum, out_x, out_y, far_sum, scales
        )
        across_sum += of_kernel * tl.load(coefficients + 2) * far_sum
        tl.store(loss + item, value)
        if grad_p is not None:
            tl.store(grad_p + item * (scales + 1) + scales, across_sum)
            for s in range(scales):
                total_s = tl.zeros([BLOCKS], tl.float64)
                for split in range(splits):
                    for first in range(0, row_blocks, BLOCKS):
                        p = first + tl.arange(0, BLOCKS)
                        of_s = p_sums + ((item * splits + split) * row_blocks + p) * scales + s
                        p_sum = tl.load(of_s, mask=p < row_blocks, other=0.0)
                        p_of_y = p * (total // row_blocks) >= n_pad
                        total_s += relation(split, x_splits, p_of_y, between) * p_sum
                h_s = tl.load(variance + item * variance_item + s).to(tl.float64)
                weight_s = tl.load(constants + KERNEL_WEIGHTS + s).to(tl.float64)
                tl.store(grad_p + item * (scales + 1) + s, weight_s * tl.sum(total_s) / h_s)
