"""MMD² and its gradient in Triton: sums over columns. Launched by triton.py, derived in README.md.

Rows are first packed (ops/triton/pack.py), scaled so that the Gaussian is 2^e with
e = z_i . z_j + b_i + b_j. A weight w_j is 0 for padding.

Split-K: columns are dealt out in splits, each within one group. A program takes a block of rows,
which are of one group too, and a split, and writes sums over its columns; the finishing kernel
(triton_finish.py) multiplies them with the groups' relation and adds the splits in order, in
float64. No sum depends on which program came first.

Half samples come neither centred nor scaled, so that their products are exact: there
e = log2(e)/h (z_i . z_j) + b_i + b_j.

The loop over columns is kept free of barriers, branches and loops within it: with any of them
Triton does not load the next tiles while it computes (software pipelining, by cp.async).
"""

from __future__ import annotations

import triton
import triton.language as tl

from cgm_fast.ops.triton.math import (
    add_weighted,
    cut,
    kernel,
    parts,
    product,
    product_of_parts,
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
def _add_bandwidth(
    e, w_j, s, value, slope, near, of_variance, variance, kernel_weights,
    NEAR: tl.constexpr, TRAINED: tl.constexpr, KERNEL: tl.constexpr,
):  # fmt: skip
    """A tile's values, slopes and near pairs with those in bandwidth s added."""
    ratio = tl.load(variance) / tl.load(variance + s)
    of_s = tl.load(kernel_weights + s)
    less, whole, slope_s, _curvature = radial(e * ratio, KERNEL)
    small, near_in_s = _small(e * ratio, less, whole, NEAR, KERNEL)
    if TRAINED:
        part = tl.sum((-0.6931471805599453 * ratio) * e * slope_s * w_j[None, :], 1)
        here = tl.arange(0, of_variance.shape[1]) == s
        of_variance += tl.where(here[None, :], part[:, None], 0.0)
    return value + of_s * small, slope + of_s * ratio * slope_s, near + near_in_s, of_variance


@triton.jit
def _values(
    e, w_j, of_variance, variance, kernel_weights, scales,
    ONES: tl.constexpr, SEVERAL: tl.constexpr, SCALES: tl.constexpr, NEAR: tl.constexpr,
    TRAINED: tl.constexpr, KERNEL: tl.constexpr,
):  # fmt: skip
    """w_j (k - k(0)), or w_j k of far pairs, w_j times the slope -2 h dk/du, h that of the first
    bandwidth, in how many bandwidths the pair is near, [ROWS, COLUMNS]; and `of_variance`
    [ROWS, bandwidths or more] with the tile's sums of w_j t slope_s added.

    SCALES is the number of bandwidths, or 0 for a loop over them. With ONES no w_j is needed: 1
    each, and padding is so far away that its k is 0.
    """
    if SEVERAL:
        value, slope, near = tl.zeros_like(e), tl.zeros_like(e), tl.zeros_like(e)
        if SCALES:
            for s in tl.static_range(SCALES):
                value, slope, near, of_variance = _add_bandwidth(
                    e, w_j, s, value, slope, near, of_variance, variance, kernel_weights,
                    NEAR, TRAINED, KERNEL,
                )  # fmt: skip
        else:
            for s in range(scales):
                value, slope, near, of_variance = _add_bandwidth(
                    e, w_j, s, value, slope, near, of_variance, variance, kernel_weights,
                    NEAR, TRAINED, KERNEL,
                )  # fmt: skip
    else:
        less, whole, slope, _curvature = radial(e, KERNEL)
        value, near = _small(e, less, whole, NEAR, KERNEL)
    if ONES:
        return value, slope, near, of_variance
    else:
        return value * w_j[None, :], slope * w_j[None, :], near, of_variance


@triton.jit
def _exponents(
    rows, row_rests, bias, z_i, z_i_rest, b_i, at_i, j, unit, features,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr, HELD: tl.constexpr,
    HALF: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """e [ROWS, COLUMNS] from products, FEATURES at a time if those of the rows are not HELD."""
    at_j = j.to(tl.int64)[:, None] * features
    if HELD:
        e = _products(rows, row_rests, z_i, z_i_rest, at_j, 0, FEATURES, PRECISION)
    else:
        e = tl.zeros([ROWS, COLUMNS], bias.dtype.element_ty)
        for begin in range(0, features, FEATURES):
            some, rest = _some(rows, row_rests, at_i, begin, FEATURES)
            e += _products(rows, row_rests, some, rest, at_j, begin, FEATURES, PRECISION)
    if HALF:
        e *= unit
    return e + (tl.load(bias + j)[None, :] + b_i[:, None])


@triton.jit
def _some(rows, row_rests, at, begin, FEATURES: tl.constexpr):
    """FEATURES of rows, and what is to be added to them; where nothing is, the rows again."""
    f = begin + tl.arange(0, FEATURES)
    z = tl.load(rows + at + f[None, :])
    rest = z
    if row_rests is not None:
        rest = tl.load(row_rests + at + f[None, :])
    return z, rest


@triton.jit
def _products(
    rows, row_rests, z_i, z_i_rest, at_j, begin, FEATURES: tl.constexpr, PRECISION: tl.constexpr
):
    """<z_i, z_j> of FEATURES."""
    z_j, z_j_rest = _some(rows, row_rests, at_j, begin, FEATURES)
    if row_rests is not None:
        return product_of_parts(z_i, z_i_rest, tl.trans(z_j), tl.trans(z_j_rest))
    else:
        z_i, z_i_rest = parts(z_i, PRECISION)
        return product(z_i, z_i_rest, tl.trans(z_j), PRECISION)


@triton.jit
def _add_tile(
    e, i, j, columns, column_heads, column_rests, weight, variance, kernel_weights, weighted_sums,
    at, total, features, scales,
    value, near, far, slope, gross, stretch, of_variance, z_0, z_1, z_2, z_3,
    SUMS: tl.constexpr, CHUNKS: tl.constexpr, WIDE: tl.constexpr, GRADIENT: tl.constexpr,
    WEIGHTED: tl.constexpr, SEVERAL: tl.constexpr, SCALES: tl.constexpr, NEAR: tl.constexpr,
    TRAINED: tl.constexpr, CHECKED: tl.constexpr, PRECISION: tl.constexpr, PARTS: tl.constexpr,
    KERNEL: tl.constexpr,
):  # fmt: skip
    """The sums of a block of rows with a tile's added; over z_j there are CHUNKS (1, 2 or 4) of
    them, SUMS features each, for at once they would take too many registers.

    A row's pair with itself is left out: its gradient vanishes, and where all other pairs are many
    bandwidths apart its rounding would be all there is.
    """
    COUNTED: tl.constexpr = SEVERAL or WEIGHTED
    ONES: tl.constexpr = NEAR and not COUNTED
    own = i[:, None] == j[None, :]
    if ONES:
        e = tl.where(own, -2048.0, e)  # k = 0: nothing more is to be masked
        w_j = e  # not read
    else:
        e = tl.where(own, 0.0, e)
        w_j = tl.load(weight + j)
    v, w, of_near, of_variance = _values(
        e, w_j, of_variance, variance, kernel_weights, scales,
        ONES, SEVERAL, SCALES, NEAR, TRAINED, KERNEL,
    )  # fmt: skip
    v_sum = tl.sum(v, 1)
    value += v_sum
    if COUNTED:
        if WEIGHTED:
            of_far = tl.where(own, 0.0, scales - of_near)
            far += tl.sum(of_far * w_j[None, :], 1)
        of_near = tl.where(own, 0.0, of_near)
        near += tl.sum(of_near * w_j[None, :], 1)
    if GRADIENT or CHECKED or not COUNTED:
        if not ONES:
            w = tl.where(own, 0.0, w)
        if GRADIENT and PARTS == 1:
            w = cut(w)  # as the product has it: each w_ij (z_i - z_j) then is a whole one
        w_sum = tl.sum(w, 1)
        slope += w_sum
        if CHECKED:
            if WEIGHTED:  # weights may be negative
                gross += tl.sum(tl.abs(w), 1)
                stretch -= tl.sum(tl.abs(w) * e, 1)
            else:
                stretch -= tl.sum(w * e, 1)
        if not COUNTED:  # as many pairs are near as k was lessened by 1 for
            near += tl.floor(w_sum - v_sum + 0.5)
    if GRADIENT:
        to = tl.arange(0, SUMS).to(tl.int64)[:, None] * total + j[None, :]
        if WIDE:
            for begin in range(0, features, SUMS):
                there = at[:, None] * features + (begin + tl.arange(0, SUMS))[None, :]
                so_far = _add_weighted(
                    tl.load(weighted_sums + there), w, columns, column_heads, column_rests, to,
                    PARTS, PRECISION,
                )  # fmt: skip
                tl.store(weighted_sums + there, so_far)
                to += SUMS * total
            tl.debug_barrier()  # what one thread wrote another may read in the next tile
        else:
            more = SUMS * total
            z_0 = _add_weighted(
                z_0, w, columns, column_heads, column_rests, to, PARTS, PRECISION
            )  # fmt: skip
            if CHUNKS > 1:
                z_1 = _add_weighted(
                    z_1, w, columns, column_heads, column_rests, to + more, PARTS, PRECISION
                )
            if CHUNKS > 2:
                z_2 = _add_weighted(
                    z_2, w, columns, column_heads, column_rests, to + 2 * more, PARTS, PRECISION
                )
                z_3 = _add_weighted(
                    z_3, w, columns, column_heads, column_rests, to + 3 * more, PARTS, PRECISION
                )
    return value, near, far, slope, gross, stretch, of_variance, z_0, z_1, z_2, z_3


@triton.jit
def _add_weighted(
    sums, w, columns, column_heads, column_rests, to, PARTS: tl.constexpr, PRECISION: tl.constexpr
):
    """sums [ROWS, FEATURES] + w [ROWS, COLUMNS] @ z, z the columns at `to` [FEATURES, COLUMNS]."""
    if column_rests is not None:
        z, z_rest = tl.trans(tl.load(column_heads + to)), tl.trans(tl.load(column_rests + to))
        head = cut(w)
        return sums + product_of_parts(head, w - head, z, z_rest)
    else:
        return add_weighted(sums, w, tl.trans(tl.load(columns + to)), PARTS, PRECISION)


@triton.jit
def _add_to_memory(there, sums, again):
    """Sums in memory; those that are there are added, unless these are the first."""
    mask = tl.zeros(sums.shape, tl.int32) + again > 0
    tl.store(there, sums + tl.load(there, mask=mask, other=0.0))


@kernel
def mmd_fwd_kernel(
    rows, columns, row_rests, column_heads, column_rests, bias, weight,  # packed
    variance, kernel_weights,  # [s] or [b, s]; [s]
    of_splits,  # [splits + 1, 2]: `Splits.bounds`
    values,  # [b, splits, total]: sums of w_j (k - k(0)), of w_j k for far pairs
    nears,  # [b, splits, total]: sums of w_j over near pairs
    fars,  # the same over far pairs, or None: those that near pairs leave
    slopes,  # [b, splits, total]: sums of w_j slope
    weighted_sums,  # [b, splits, total, features]: sums of w_j slope z_j
    variance_sums,  # [b, splits, blocks, scales] float64: sums of w_i w_j t slope_s; or None
    d, total, features, splits, scales, variance_item, first_block, some_blocks,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr, SUMS: tl.constexpr,
    CHUNKS: tl.constexpr, TURN: tl.constexpr, WIDE: tl.constexpr, GRADIENT: tl.constexpr,
    SEVERAL: tl.constexpr, SCALES: tl.constexpr, ROOM: tl.constexpr, NEAR: tl.constexpr,
    PRECISION: tl.constexpr, PARTS: tl.constexpr, FAR: tl.constexpr, CANCELLED: tl.constexpr,
    KERNEL: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A block of rows against a split of columns, two products a tile.

    |a|² + |b|² - 2ab loses what |a|² has over the distance. Where no row of the block is beyond FAR
    exponents from the centre this is little. Elsewhere a turn of columns is taken by products
    first, with the sum of slope t; where that is less than 1 / CANCELLED of the sum of
    slope |z_i|², pairs that matter are close, and the turn is taken again by plain differences.
    (A column that is farther away than that makes no error: |z_j|² <= 2 |z_i|² + 2 |z_i - z_j|².)

    If EXACT there are differences only: where the kernel has a kink, rows that coincide have to be
    at no distance. PARTS is what weights go into a product as (add_weighted). SEVERAL is the
    general way: any KERNEL, any number of bandwidths and what they weigh; SCALES as in `_values`,
    ROOM for the bandwidths' sums.

    Sums run in registers for TURN columns and are then added to the rest, in memory: over millions
    of columns they would stop growing. Where features are more than CHUNKS of SUMS (WIDE) sums over
    z_j are too wide for registers, and join the rest after every tile; nothing is taken again.
    """
    block = tl.program_id(0) % some_blocks + first_block
    item, split = (tl.program_id(0) // some_blocks).to(tl.int64), tl.program_id(1)
    rows += item * total * features
    columns += item * total * features
    if row_rests is not None:
        row_rests += item * total * features
        column_heads += item * total * features
        column_rests += item * total * features
    bias += item * total
    weight += item * total
    variance += item * variance_item
    start, end, _group = split_columns(of_splits, split, COLUMNS)
    i = block * ROWS + tl.arange(0, ROWS)
    at = (item * splits + split) * total + i

    dtype = columns.dtype.element_ty
    WEIGHTED: tl.constexpr = fars is not None
    TRAINED: tl.constexpr = variance_sums is not None
    HALF: tl.constexpr = rows.dtype.element_ty != columns.dtype.element_ty
    CHECKED: tl.constexpr = not (EXACT or WIDE)
    ONES: tl.constexpr = NEAR and not (SEVERAL or WEIGHTED)
    unit = 1.4426950408889634 / tl.load(variance)  # of half samples' products
    b_i, w_i = tl.load(bias + i), tl.load(weight + i)
    at_i = i.to(tl.int64)[:, None] * features
    HELD: tl.constexpr = FEATURES == SUMS * CHUNKS and not WIDE
    z_i, z_i_rest = b_i, b_i  # not read, unless all features are held
    if HELD and not EXACT:
        z_i, z_i_rest = _some(rows, row_rests, at_i, 0, FEATURES)
    SOME: tl.constexpr = COLUMNS // 2 if COLUMNS > 16 else COLUMNS  # fewer registers
    inside = False
    if not EXACT:
        widest = tl.full([], 1.0, dtype)
        if SEVERAL:
            for s in range(scales):
                widest = tl.maximum(widest, tl.load(variance) / tl.load(variance + s))
        inside = tl.max(tl.where(w_i == 0.0, 0.0, -2.0 * b_i)) * widest <= FAR
    if WIDE and GRADIENT:
        for begin in range(0, features, SUMS):
            there = at[:, None] * features + (begin + tl.arange(0, SUMS))[None, :]
            tl.store(weighted_sums + there, tl.zeros([ROWS, SUMS], dtype))
        tl.debug_barrier()

    value, slope = tl.zeros([ROWS], dtype), tl.zeros([ROWS], dtype)
    near, far = tl.zeros([ROWS], dtype), tl.zeros([ROWS], dtype)
    of_variance = tl.zeros([ROWS, ROOM], dtype)
    for turn in range(start, end, TURN):
        stop = tl.minimum(turn + TURN, end)
        of_value, of_slope = tl.zeros([ROWS], dtype), tl.zeros([ROWS], dtype)
        of_near, of_far = tl.zeros([ROWS], dtype), tl.zeros([ROWS], dtype)
        gross, stretch = tl.zeros([ROWS], dtype), tl.zeros([ROWS], dtype)
        of_scales = tl.zeros([ROWS, ROOM], dtype)
        z_0, z_1 = tl.zeros([ROWS, SUMS], dtype), tl.zeros([ROWS, SUMS], dtype)
        z_2, z_3 = tl.zeros([ROWS, SUMS], dtype), tl.zeros([ROWS, SUMS], dtype)
        if not EXACT:
            some = stop
            if WIDE:
                some = tl.where(inside, stop, turn)
            for first in range(turn, some, COLUMNS):
                j = first + tl.arange(0, COLUMNS)
                e = _exponents(
                    rows, row_rests, bias, z_i, z_i_rest, b_i, at_i, j, unit, features,
                    ROWS, COLUMNS, FEATURES, HELD, HALF, PRECISION,
                )  # fmt: skip
                (
                    of_value, of_near, of_far, of_slope, gross, stretch, of_scales,
                    z_0, z_1, z_2, z_3,
                ) = _add_tile(
                    e, i, j, columns, column_heads, column_rests, weight, variance,
                    kernel_weights, weighted_sums, at, total, features, scales,
                    of_value, of_near, of_far, of_slope, gross, stretch, of_scales,
                    z_0, z_1, z_2, z_3,
                    SUMS, CHUNKS, WIDE, GRADIENT, WEIGHTED, SEVERAL, SCALES, NEAR,
                    TRAINED, CHECKED, PRECISION, PARTS, KERNEL,
                )  # fmt: skip
            by_products = inside
            if CHECKED:
                if not WEIGHTED:
                    gross = of_slope
                lost = tl.sum(tl.abs(w_i) * (-2.0 * b_i * gross))
                kept = tl.sum(tl.abs(w_i) * stretch)
                # A NaN, an outlier's among them, is no reason to believe in products.
                by_products = (kept == kept) & (inside | (lost <= CANCELLED * kept))
                of_value = tl.where(by_products, of_value, 0.0)
                of_slope = tl.where(by_products, of_slope, 0.0)
                of_near = tl.where(by_products, of_near, 0.0)
                of_far = tl.where(by_products, of_far, 0.0)
                of_scales = tl.where(by_products, of_scales, 0.0)
                z_0, z_1 = tl.where(by_products, z_0, 0.0), tl.where(by_products, z_1, 0.0)
                z_2, z_3 = tl.where(by_products, z_2, 0.0), tl.where(by_products, z_3, 0.0)
            begin = tl.where(by_products, stop, turn)
        else:
            begin = turn
        for first in tl.range(begin, stop, SOME, num_stages=1):
            j = first + tl.arange(0, SOME)
            e = -0.5 * squared_distances(columns, i, j, d, total, ROWS, SOME, 1)
            if HALF:
                e *= unit
            if ONES:  # as the bias of padding is
                e = tl.where(tl.load(weight + j)[None, :] == 0.0, -2048.0, e)
            (
                of_value, of_near, of_far, of_slope, gross, stretch, of_scales, z_0, z_1, z_2, z_3,
            ) = _add_tile(
                e, i, j, columns, column_heads, column_rests, weight, variance,
                kernel_weights, weighted_sums, at, total, features, scales,
                of_value, of_near, of_far, of_slope, gross, stretch, of_scales, z_0, z_1, z_2, z_3,
                SUMS, CHUNKS, WIDE, GRADIENT, WEIGHTED, SEVERAL, 0, NEAR,
                TRAINED, False, PRECISION, PARTS, KERNEL,
            )  # fmt: skip
        value += of_value
        near += of_near
        far += of_far
        slope += of_slope
        of_variance += of_scales
        if GRADIENT and not WIDE:
            there = weighted_sums + at[:, None] * features + tl.arange(0, SUMS)[None, :]
            _add_to_memory(there, z_0, turn > start)
            if CHUNKS > 1:
                _add_to_memory(there + SUMS, z_1, turn > start)
            if CHUNKS > 2:
                _add_to_memory(there + 2 * SUMS, z_2, turn > start)
                _add_to_memory(there + 3 * SUMS, z_3, turn > start)
            tl.debug_barrier()  # what one thread wrote another may read in the next turn
    tl.store(values + at, value)
    tl.store(nears + at, near)
    if WEIGHTED:
        tl.store(fars + at, far)
    if GRADIENT:
        tl.store(slopes + at, slope)
    if TRAINED:
        s = tl.arange(0, ROOM)
        there = ((item * splits + split) * (total // ROWS) + block) * scales + s
        sums = tl.sum(w_i.to(tl.float64)[:, None] * of_variance.to(tl.float64), 0)
        tl.store(variance_sums + there, sums, mask=s < scales)
