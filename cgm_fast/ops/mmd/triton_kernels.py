"""MMD² and its gradient in Triton; launched by triton.py, derived in README.md.

Rows are first packed (ops/triton/pack.py), scaled so that the Gaussian is 2^e with
e = z_i . z_j + b_i + b_j. A weight w_j is 0 for padding.

Split-K: columns are dealt out in splits, each within one group. A program takes a block of rows,
which are of one group too, and a split, and writes sums over its columns; the finishing kernel
multiplies them with the groups' relation and adds the splits in order, in float64. No sum depends
on which program came first.

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
    group_of,
    kernel,
    parts,
    place,
    product,
    squared_distances,
)
from cgm_fast.ops.triton.radial import is_near, radial


@triton.jit
def split_columns(of_splits, split, COLUMNS: tl.constexpr):
    """The packed columns [start, end) of a split, multiples of COLUMNS, and its group."""
    of_splits += 2 * split
    start, end = tl.load(of_splits) * COLUMNS, tl.load(of_splits + 2) * COLUMNS
    return start, end, tl.load(of_splits + 1)


@triton.jit
def _small(e, less, whole, NEAR: tl.constexpr, KERNEL: tl.constexpr):
    """k - k(0) where the pair is near, else k; and 1 or 0. Without NEAR all pairs are."""
    if NEAR:
        near = is_near(e, less, KERNEL)
        return tl.where(near, less, whole), tl.where(near, 1.0, 0.0)
    else:
        return less, tl.full(less.shape, 1.0, less.dtype)


@triton.jit
def _values(
    e, w_j, w_i, variance_sums, first, variance, kernel_weights, scales,
    SEVERAL: tl.constexpr, NEAR: tl.constexpr, KERNEL: tl.constexpr,
):  # fmt: skip
    """w_j (k - k(0)), or w_j k of far pairs, w_j times the slope -2 h dk/du, h that of the first
    bandwidth, and in how many bandwidths the pair is near, [ROWS, COLUMNS]."""
    w = w_j[None, :]
    if SEVERAL:
        h = tl.load(variance)
        value, slope, near = tl.zeros_like(e), tl.zeros_like(e), tl.zeros_like(e)
        for s in range(scales):
            ratio, of_s = h / tl.load(variance + s), tl.load(kernel_weights + s)
            less, whole, slope_s, _curvature = radial(e * ratio, KERNEL)
            small, near_in_s = _small(e * ratio, less, whole, NEAR, KERNEL)
            value += of_s * small
            near += near_in_s
            slope += of_s * ratio * slope_s
            if variance_sums is not None:
                part = tl.sum(w_i * tl.sum((-0.6931471805599453 * ratio) * e * slope_s * w, 1))
                add_to(variance_sums + s, first, part)
    else:
        less, whole, slope, _curvature = radial(e, KERNEL)
        value, near = _small(e, less, whole, NEAR, KERNEL)
    return value * w, slope * w, near


@kernel
def mmd_fwd_kernel(
    rows, columns, bias, weight,  # packed
    largest,  # [b, largest_parts], LARGEST at most
    variance, kernel_weights,  # [s] or [b, s]; [s]
    of_splits,  # [splits + 1, 2]: `Splits.bounds`
    values,  # [b, splits, total]: sums of w_j (k - k(0)), of w_j k for far pairs
    nears,  # [b, splits, total]: sums of w_j over near pairs
    fars,  # the same over far pairs, or None: those that near pairs leave
    slopes,  # [b, splits, total]: sums of w_j slope
    weighted_sums,  # [b, splits, total, features]: sums of w_j slope z_j
    variance_sums,  # [b, splits, blocks, scales] float64: sums of w_i w_j t slope_s; or None
    d, total, features, splits, scales, variance_item, first_block, some_blocks, largest_parts,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr, TURN: tl.constexpr,
    WIDE: tl.constexpr, GRADIENT: tl.constexpr, SEVERAL: tl.constexpr, NEAR: tl.constexpr,
    PRECISION: tl.constexpr, PARTS: tl.constexpr, FAR: tl.constexpr, LARGEST: tl.constexpr,
    KERNEL: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A block of rows against a split of columns.

    |a|² + |b|² - 2ab loses what |a|² has over the distance: where some |z|² is beyond FAR, this is
    done with plain differences. So it is always if EXACT: where the kernel has a kink, rows that
    coincide have to be at no distance. PARTS is what weights go into a product as (add_weighted).
    SEVERAL is the general way: any KERNEL, any number of bandwidths and what they weigh.
    """
    block = tl.program_id(0) % some_blocks + first_block
    item, split = (tl.program_id(0) // some_blocks).to(tl.int64), tl.program_id(1)
    rows += item * total * features
    columns += item * total * features
    bias += item * total
    weight += item * total
    variance += item * variance_item
    if variance_sums is not None:
        variance_sums += ((item * splits + split) * (total // ROWS) + block) * scales
    start, end, _group = split_columns(of_splits, split, COLUMNS)
    at = (item * splits + split) * total + block * ROWS + tl.arange(0, ROWS)
    is_wide = True
    if not EXACT:
        widest = tl.full([], 1.0, columns.dtype.element_ty)
        if SEVERAL:
            for s in range(scales):
                widest = tl.maximum(widest, tl.load(variance) / tl.load(variance + s))
        part = tl.arange(0, LARGEST)
        there = part < largest_parts
        of_parts = tl.load(largest + item * largest_parts + part, mask=there, other=0.0)
        is_wide = tl.max(of_parts) * widest > FAR
    if is_wide:
        _visit(
            rows, columns, bias, weight, variance, kernel_weights, values, nears, fars, slopes,
            weighted_sums, variance_sums, at, block, start, end, d, total, features, scales,
            ROWS, COLUMNS, FEATURES, TURN, WIDE, GRADIENT, SEVERAL, NEAR, PRECISION, PARTS, KERNEL,
            True,
        )  # fmt: skip
    else:
        _visit(
            rows, columns, bias, weight, variance, kernel_weights, values, nears, fars, slopes,
            weighted_sums, variance_sums, at, block, start, end, d, total, features, scales,
            ROWS, COLUMNS, FEATURES, TURN, WIDE, GRADIENT, SEVERAL, NEAR, PRECISION, PARTS, KERNEL,
            False,
        )  # fmt: skip


@triton.jit
def _visit(
    rows, columns, bias, weight, variance, kernel_weights, values, nears, fars, slopes,
    weighted_sums, variance_sums, at, block, start, end, d, total, features, scales,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr, TURN: tl.constexpr,
    WIDE: tl.constexpr, GRADIENT: tl.constexpr, SEVERAL: tl.constexpr, NEAR: tl.constexpr,
    PRECISION: tl.constexpr, PARTS: tl.constexpr, KERNEL: tl.constexpr, EXACT: tl.constexpr,
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
    b_i, w_i = tl.load(bias + i), tl.load(weight + i)
    COUNTED: tl.constexpr = SEVERAL or fars is not None
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
            w_j = tl.load(weight + j)
            v, w, of_near = _values(
                e, w_j, w_i, variance_sums, first == start, variance, kernel_weights, scales,
                SEVERAL, NEAR, KERNEL,
            )  # fmt: skip
            v_sum = tl.sum(v, 1)
            value_part += v_sum
            if COUNTED:
                if fars is not None:
                    of_far = scales - of_near
                    if diagonal:
                        tl.debug_barrier()
                        of_far = tl.where(own, 0.0, of_far)
                    far_part += tl.sum(of_far * w_j[None, :], 1)
                if diagonal:
                    tl.debug_barrier()
                    of_near = tl.where(own, 0.0, of_near)
                near_part += tl.sum(of_near * w_j[None, :], 1)
            if GRADIENT or not COUNTED:
                if diagonal:
                    tl.debug_barrier()
                    w = tl.where(own, 0.0, w)
                if GRADIENT and PARTS == 1:
                    w = cut(w)  # as the product has it: each w_ij (z_i - z_j) then is a whole one
                w_sum = tl.sum(w, 1)
                slope_part += w_sum
            if not COUNTED:  # as many pairs are near as k was lessened by 1 for
                near_part += tl.floor(w_sum - v_sum + 0.5)
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
def less_all(near, far, near_size, far_size, every):
    """The sum of Γ w_i w_j over near pairs less `every`, that over all: see PairSums.close in
    common.py. Sizes are the sums with |Γ|; the lighter pairs are added up."""
    return tl.where(near_size < far_size, near - every, -far)


@triton.jit
def gradient_factor(h, HALF: tl.constexpr, PARTS: tl.constexpr):
    """What a row's weighted differences are multiplied with; h is the first bandwidth's variance.

    Cutting a weight to tf32 takes off 2^-11 / m of it on average, m its mantissa in [1, 2): 0.5 of
    2^-11 where all k are a little below 1, 0.72 where mantissas are spread as products' are (by
    their logarithm). What lies between is given back.
    """
    factor = -2.0 / h
    if not HALF:
        factor /= tl.sqrt(1.4426950408889634 / h)
    if PARTS == 1:
        factor *= 1.0 + 0.62 / 2048
    return factor


@kernel
def mmd_finish_kernel(
    rows, weight, variance, kernel_weights,
    tiles, of_groups,  # of `Layout` and of `Splits`
    relation,  # [G, G] or [b, G, G] float64, Γ
    masses,  # [G, G] or [b, G, G] float64: sums of w_i w_j over i != j
    values, nears, fars, slopes, weighted_sums, variance_sums,
    # [b, G, 3, blocks] float64: each block's sums over a group's columns of w_i w_j (k - k(0)), or
    # w_i w_j k of far pairs, and of w_i w_j over near pairs, and over far ones if there are such
    partials,
    counter,  # [b]
    loss, grad_z, grad_weights, block_sums, grad_variance,  # as `Value` has them, or None
    n, d, total, unit, features, splits, groups, scales, variance_item, relation_item, mass_item,
    row_begin, row_end, row_blocks,
    ROWS: tl.constexpr, FEATURES: tl.constexpr, BLOCKS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Add the splits of a block of rows in order; the last block to finish adds up the loss."""
    blocks = total // ROWS
    block, item = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    i = block * ROWS + tl.arange(0, ROWS)
    stacked, valid = place(tiles, unit, block * ROWS, ROWS)
    w = tl.load(weight + item * total + i).to(tl.float64)
    relation += item * relation_item
    of_row = relation + group_of(tiles, unit, block * ROWS) * groups
    partials += item * groups * 3 * blocks
    of_kernel = tl.load(kernel_weights).to(tl.float64)
    inside = tl.zeros([ROWS], tl.float64)
    for g in range(groups):
        value, near = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
        far = tl.zeros([ROWS], tl.float64)
        for split in range(tl.load(of_groups + 2 * g + 1), tl.load(of_groups + 2 * g + 3)):
            at = (item * splits + split) * total + i
            value += tl.load(values + at).to(tl.float64)
            near += tl.load(nears + at).to(tl.float64)
            if fars is not None:
                far += tl.load(fars + at).to(tl.float64)
        part = partials + g * 3 * blocks + block
        tl.store(part, tl.sum(w * value))
        tl.store(part + blocks, tl.sum(w * near))
        tl.store(part + 2 * blocks, tl.sum(w * far))
        # Of k - k(0): what was not subtracted, for far pairs. `fars` is there where this is wanted.
        inside += tl.load(of_row + g) * (value - of_kernel * far)
    if grad_weights is not None:
        tl.store(grad_weights + item * n + stacked, 2.0 * inside, mask=valid)
    if grad_z is not None:
        h = tl.load(variance + item * variance_item).to(tl.float64)
        half: tl.constexpr = rows.dtype.element_ty != values.dtype.element_ty
        factor = gradient_factor(h, half, PARTS) * w
        wanted = valid & (stacked >= row_begin) & (stacked < row_end)
        slope = tl.zeros([ROWS], tl.float64)
        for g in range(groups):
            of_group = tl.zeros([ROWS], tl.float64)
            for split in range(tl.load(of_groups + 2 * g + 1), tl.load(of_groups + 2 * g + 3)):
                at = (item * splits + split) * total + i
                of_group += tl.load(slopes + at, mask=wanted, other=0.0).to(tl.float64)
            slope += tl.load(of_row + g) * of_group
        for first in range(0, features, FEATURES):
            f = first + tl.arange(0, FEATURES)
            there = wanted[:, None] & (f < d)[None, :]
            z = tl.load(rows + (item * total + i)[:, None] * features + f[None, :])
            z = z.to(values.dtype.element_ty)
            weighted_sum = tl.zeros([ROWS, FEATURES], tl.float64)
            for g in range(groups):
                of_z = tl.zeros([ROWS, FEATURES], tl.float64)
                for split in range(tl.load(of_groups + 2 * g + 1), tl.load(of_groups + 2 * g + 3)):
                    at_i = ((item * splits + split) * total + i)[:, None] * features + f[None, :]
                    of_z += tl.load(weighted_sums + at_i, mask=there, other=0.0).to(tl.float64)
                weighted_sum += tl.load(of_row + g) * of_z
            grad = factor[:, None] * (slope[:, None] * z.to(tl.float64) - weighted_sum)
            to = (item * (row_end - row_begin) + stacked - row_begin)[:, None] * d + f[None, :]
            tl.store(grad_z + to, grad, mask=there)
    tl.debug_barrier()  # this block's parts are written before it counts as done
    if tl.atomic_add(counter + item, 1) == blocks - 1:
        value_all = _close(
            partials, relation, masses + item * mass_item, of_groups, of_kernel,
            item, block_sums, blocks, unit // ROWS, groups, scales,
            fars is not None, BLOCKS,
        )  # fmt: skip
        tl.store(loss + item, value_all)
        if grad_variance is not None:
            for s in range(scales):
                h_s = tl.load(variance + item * variance_item + s).to(tl.float64)
                total_s = _sum_over_blocks(
                    variance_sums + item * splits * row_blocks * scales + s, relation, of_groups,
                    row_blocks, unit // (total // row_blocks), groups, scales, BLOCKS,
                )  # fmt: skip
                weight_s = tl.load(kernel_weights + s).to(tl.float64)
                tl.store(grad_variance + item * scales + s, weight_s * total_s / h_s)


@triton.jit
def _close(
    partials, relation, masses, of_groups, of_kernel, item, block_sums, blocks, per_tile, groups,
    scales, FARS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The loss of one item, with its block sums stored if wanted: PairSums.close in common.py.

    Near pairs are counted in all bandwidths together, whose weights are alike, or all are near.
    """
    loss, near_all = tl.zeros([], tl.float64), tl.zeros([], tl.float64)
    far_all, near_size = tl.zeros([], tl.float64), tl.zeros([], tl.float64)
    far_size, every = tl.zeros([], tl.float64), tl.zeros([], tl.float64)
    size = tl.zeros([], tl.float64)
    for g in range(groups):
        begin, end = tl.load(of_groups + 2 * g), tl.load(of_groups + 2 * g + 2)
        for other in range(groups):
            small, near = tl.zeros([BLOCKS], tl.float64), tl.zeros([BLOCKS], tl.float64)
            far = tl.zeros([BLOCKS], tl.float64)
            for first in range(begin * per_tile, end * per_tile, BLOCKS):
                p = first + tl.arange(0, BLOCKS)
                there, part = p < end * per_tile, partials + other * 3 * blocks + p
                small += tl.load(part, mask=there, other=0.0, cache_modifier=".cg")
                near += tl.load(part + blocks, mask=there, other=0.0, cache_modifier=".cg")
                if FARS:
                    far += tl.load(part + 2 * blocks, mask=there, other=0.0, cache_modifier=".cg")
            r = tl.load(relation + g * groups + other)
            mass = scales * tl.load(masses + g * groups + other)
            of_small, of_near, of_far = tl.sum(small), tl.sum(near), tl.sum(far)
            if not FARS:
                of_far = mass - of_near  # counts are exact
            loss += r * of_small
            near_all += r * of_near
            far_all += r * of_far
            near_size += tl.abs(r) * of_near
            far_size += tl.abs(r) * of_far
            every += r * mass
            size += tl.abs(r) * mass
            if block_sums is not None:
                of_block = of_small + of_kernel * less_all(of_near, of_far, of_near, of_far, mass)
                tl.store(block_sums + (item * groups + g) * groups + other, of_block)
    # The unbiased estimator's terms cancel: their rounding is not to be left.
    every = tl.where(tl.abs(every) <= 1e-14 * size, 0.0, every)
    return loss + of_kernel * less_all(near_all, far_all, near_size, far_size, every)


@triton.jit
def _sum_over_blocks(
    numbers, relation, of_groups, blocks, per_tile, groups, stride, BLOCKS: tl.constexpr
):
    """The sum of numbers [splits, blocks], `stride` apart, times the relation of their groups."""
    total = tl.zeros([], tl.float64)
    for g in range(groups):
        begin, end = tl.load(of_groups + 2 * g), tl.load(of_groups + 2 * g + 2)
        for other in range(groups):
            some = tl.zeros([BLOCKS], tl.float64)
            first_split = tl.load(of_groups + 2 * other + 1)
            for split in range(first_split, tl.load(of_groups + 2 * other + 3)):
                for first in range(begin * per_tile, end * per_tile, BLOCKS):
                    p = first + tl.arange(0, BLOCKS)
                    at = (split * blocks + p).to(tl.int64) * stride
                    some += tl.load(numbers + at, mask=p < end * per_tile, other=0.0)
            total += tl.load(relation + g * groups + other) * tl.sum(some)
    return total
