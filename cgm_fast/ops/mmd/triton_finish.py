"""MMD² in Triton: the sums of triton_kernels.py over splits and blocks, to results."""

from __future__ import annotations

import triton
import triton.language as tl

from cgm_fast.ops.triton.math import group_of, kernel, place


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
    rows, row_rests, weight, variance, kernel_weights,
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
            at_z = (item * total + i)[:, None] * features + f[None, :]
            z = tl.load(rows + at_z).to(values.dtype.element_ty)
            if row_rests is not None:
                z += tl.load(row_rests + at_z)
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
