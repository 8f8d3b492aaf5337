"""K V and its derivatives on the rows' side in Triton; launched by triton.py.

As in FlashAttention a program owns a block of rows and visits columns tile by tile, so that no
matrix is stored. Rows and columns are packed as two groups of one layout (ops/triton/pack.py),
scaled so that the Gaussian is 2^e with e = z_i . z_j + b_i + b_j; values u and v likewise, neither
centred nor scaled. Values are 0 for padding, so that padded columns add nothing.

Split-K: a program visits one split of the columns and writes its sums; the finishing kernel adds
the splits in order, in float64. No sum depends on which program came first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cgm_fast.ops.triton.math import (
    add_to,
    add_weighted,
    kernel,
    nearest_tf32,
    parts,
    product,
    squared_distances,
)
from cgm_fast.ops.triton.radial import bounded, radial


@triton.jit
def _values(
    e, between, variance_sums, first, variance, kernel_weights, scales,
    SEVERAL: tl.constexpr, KERNEL: tl.constexpr,
):  # fmt: skip
    """k, and its slope -2 h dk/d|x - y|², h that of the first bandwidth, [ROWS, COLUMNS]."""
    if SEVERAL:
        h = tl.load(variance)
        value, slope = tl.zeros_like(e), tl.zeros_like(e)
        for s in range(scales):
            ratio, of_s = h / tl.load(variance + s), tl.load(kernel_weights + s)
            exponent = bounded(e * ratio, KERNEL)  # finite, lest it be multiplied with 0
            _less, whole, slope_s, _curvature = radial(exponent, KERNEL)
            value += of_s * whole
            slope += of_s * ratio * slope_s
            if variance_sums is not None:
                t = -0.6931471805599453 * exponent
                add_to(variance_sums + s, first, tl.sum(tl.sum(between * t * slope_s, 1)))
        return value, slope
    else:
        _less, whole, slope, _curvature = radial(e, KERNEL)
        return whole, slope


@kernel
def kernel_product_kernel(
    rows, columns, bias,  # packed x and y
    largest,  # [b]
    value_rows,  # [b, value_total, width], packed u and v, or v alone
    value_columns,  # [b, width, value_total]
    variance, kernel_weights,  # [s] or [b, s]; [s]
    products,  # [b, splits, n_pad, width]: sums of k v_j; or None
    slopes,  # [b, splits, n_pad]: sums of s_ij slope, s_ij = <u_i, v_j>; or None
    weighted_sums,  # [b, splits, n_pad, features]: sums of s_ij slope z_j; or None
    variance_sums,  # [b, splits, blocks, scales] float64: sums of s_ij t slope_s; or None
    d, n_pad, total, features, width, value_total, value_begin, span, splits, scales,
    variance_item,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr, VALUES: tl.constexpr,
    TURN: tl.constexpr, WIDE: tl.constexpr, CHUNKED: tl.constexpr, SEVERAL: tl.constexpr,
    PRECISION: tl.constexpr, PARTS: tl.constexpr, FAR: tl.constexpr, KERNEL: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """A block of rows against `span` columns, of products VALUES numbers.

    |a|² + |b|² - 2ab loses what |a|² has over the distance: where some |z|² is beyond FAR, this is
    done with plain differences. So it is always if EXACT: where the kernel has a kink, rows that
    coincide have to be at no distance. SEVERAL is the general way: any KERNEL, any number of
    bandwidths and what they weigh.
    """
    blocks = n_pad // ROWS
    block, item = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    split, chunk = tl.program_id(1), tl.program_id(2)
    rows += item * total * features
    columns += item * total * features
    bias += item * total
    value_rows += item * value_total * width
    value_columns += item * value_total * width
    variance += item * variance_item
    part = item * splits + split
    if variance_sums is not None:
        variance_sums += (part * blocks + block) * scales
    start = n_pad + split * span
    end = tl.minimum(start + span, total)
    at = part * n_pad + block * ROWS + tl.arange(0, ROWS)
    is_wide = True
    if not EXACT:
        widest = tl.full([], 1.0, columns.dtype.element_ty)
        if SEVERAL:
            for s in range(scales):
                widest = tl.maximum(widest, tl.load(variance) / tl.load(variance + s))
        is_wide = tl.load(largest + item) * widest > FAR
    if is_wide:
        _visit(
            rows, columns, bias, value_rows, value_columns, variance, kernel_weights, products,
            slopes, weighted_sums, variance_sums, at, block, chunk, start, end, value_begin - n_pad,
            d, total, features, width, value_total, scales,
            ROWS, COLUMNS, FEATURES, VALUES, TURN, WIDE, CHUNKED, SEVERAL, PRECISION, PARTS, KERNEL,
            True,
        )  # fmt: skip
    else:
        _visit(
            rows, columns, bias, value_rows, value_columns, variance, kernel_weights, products,
            slopes, weighted_sums, variance_sums, at, block, chunk, start, end, value_begin - n_pad,
            d, total, features, width, value_total, scales,
            ROWS, COLUMNS, FEATURES, VALUES, TURN, WIDE, CHUNKED, SEVERAL, PRECISION, PARTS, KERNEL,
            False,
        )  # fmt: skip


@triton.jit
def _visit(
    rows, columns, bias, value_rows, value_columns, variance, kernel_weights, products,
    slopes, weighted_sums, variance_sums, at, block, chunk, start, end, value_shift,
    d, total, features, width, value_total, scales,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr, VALUES: tl.constexpr,
    TURN: tl.constexpr, WIDE: tl.constexpr, CHUNKED: tl.constexpr, SEVERAL: tl.constexpr,
    PRECISION: tl.constexpr, PARTS: tl.constexpr, KERNEL: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The same for one batch item and one way to take distances. Column j has the packed values
    j + value_shift.

    Sums run in registers for TURN columns and are then added to the rest, in memory: over millions
    of columns they would stop growing. Where there are more features than FEATURES (WIDE) sums over
    z_j are too wide for registers, and join the rest after every tile.
    """
    BETWEEN: tl.constexpr = slopes is not None or variance_sums is not None
    dtype = columns.dtype.element_ty
    i = block * ROWS + tl.arange(0, ROWS)
    f, c = tl.arange(0, FEATURES), tl.arange(0, VALUES)
    b_i = tl.load(bias + i)
    at_i = i.to(tl.int64)[:, None] * features
    z_i, z_i_rest = parts(tl.load(rows + at_i + f[None, :]), PRECISION)
    u_at_i = i.to(tl.int64)[:, None] * width
    if BETWEEN and not CHUNKED:
        u_i, u_i_rest = parts(tl.load(value_rows + u_at_i + c[None, :]), PRECISION)
    slope = tl.zeros([ROWS], dtype)
    for turn in range(start, end, TURN):
        slope_part = tl.zeros([ROWS], dtype)
        sums = tl.zeros([ROWS, VALUES], dtype)
        weighted_sum = tl.zeros([ROWS, FEATURES], dtype)
        for first in range(turn, tl.minimum(turn + TURN, end), COLUMNS):
            j = first + tl.arange(0, COLUMNS)
            at_j = j.to(tl.int64)[:, None] * features
            of_j = j.to(tl.int64) + value_shift
            if EXACT:
                e = -0.5 * squared_distances(columns, i, j, d, total, ROWS, COLUMNS, 1)
            elif WIDE:
                e = tl.zeros([ROWS, COLUMNS], dtype)
                for begin in range(0, features, FEATURES):
                    some_i = tl.load(rows + at_i + (begin + f)[None, :])
                    some_j = tl.trans(tl.load(rows + at_j + (begin + f)[None, :]))
                    some_i, rest_i = parts(some_i, PRECISION)
                    e += product(some_i, rest_i, some_j, PRECISION)
                e += tl.load(bias + j)[None, :] + b_i[:, None]
            else:
                z_j = tl.trans(tl.load(rows + at_j + f[None, :]))
                e = product(z_i, z_i_rest, z_j, PRECISION)
                e += tl.load(bias + j)[None, :] + b_i[:, None]
            between = tl.zeros([ROWS, COLUMNS], dtype)
            if BETWEEN and CHUNKED:
                for begin in range(0, width, VALUES):
                    some_i = tl.load(value_rows + u_at_i + (begin + c)[None, :])
                    some_j = tl.load(value_rows + of_j[:, None] * width + (begin + c)[None, :])
                    some_i, rest_i = parts(some_i, PRECISION)
                    between += product(some_i, rest_i, tl.trans(some_j), PRECISION)
            elif BETWEEN:
                v_j = tl.load(value_rows + of_j[:, None] * width + c[None, :])
                between = product(u_i, u_i_rest, tl.trans(v_j), PRECISION)
            k, of_pair = _values(
                e, between, variance_sums, first == start, variance, kernel_weights, scales,
                SEVERAL, KERNEL,
            )  # fmt: skip
            if products is not None:
                if PARTS == 1:
                    k = nearest_tf32(k)  # tensor cores would cut it, which makes sums smaller
                to = value_columns + (chunk * VALUES + c).to(tl.int64)[:, None] * value_total
                v = tl.trans(tl.load(to + of_j[None, :]))
                sums = add_weighted(sums, k, v, PARTS, PRECISION)
            if slopes is not None:
                w = between * of_pair
                if PARTS == 1:  # as the product has it: each w_ij (z_i - z_j) then is a whole one
                    w = nearest_tf32(w)
                slope_part += tl.sum(w, 1)
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
        if products is not None:
            there = products + at[:, None] * width + (chunk * VALUES + c)[None, :]
            again = tl.zeros([ROWS, VALUES], tl.int32) + turn > start
            tl.store(there, sums + tl.load(there, mask=again, other=0.0))
        if slopes is not None:
            slope += slope_part
            if not WIDE:
                there = weighted_sums + at[:, None] * features + f[None, :]
                again = tl.zeros([ROWS, FEATURES], tl.int32) + turn > start
                tl.store(there, weighted_sum + tl.load(there, mask=again, other=0.0))
        tl.debug_barrier()  # and in the next turn
    if slopes is not None:
        tl.store(slopes + at, slope)


@kernel
def kernel_product_finish_kernel(
    rows, variance,
    products, slopes, weighted_sums,  # as above, or None
    out, grad_x,  # [b, n, p] and [b, n, d], or None
    n, d, p, n_pad, total, features, width, product_splits, splits, variance_item,
    ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """Add the splits of a block of rows in order, FEATURES numbers of each row."""
    blocks = n_pad // ROWS
    block, item = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    i = block * ROWS + tl.arange(0, ROWS)
    f = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    if products is not None:
        there = (i < n)[:, None] & (f < p)[None, :]
        product_sum = tl.zeros([ROWS, FEATURES], tl.float64)
        for split in range(product_splits):
            at = ((item * product_splits + split) * n_pad + i)[:, None] * width + f[None, :]
            product_sum += tl.load(products + at, mask=there, other=0.0).to(tl.float64)
        tl.store(out + (item * n + i)[:, None] * p + f[None, :], product_sum, mask=there)
    if slopes is not None:
        there = (i < n)[:, None] & (f < d)[None, :]
        slope = tl.zeros([ROWS], tl.float64)
        weighted_sum = tl.zeros([ROWS, FEATURES], tl.float64)
        for split in range(splits):
            at = (item * splits + split) * n_pad + i
            slope += tl.load(slopes + at).to(tl.float64)
            to = at[:, None] * features + f[None, :]
            weighted_sum += tl.load(weighted_sums + to, mask=there, other=0.0).to(tl.float64)
        z = tl.load(rows + (item * total + i)[:, None] * features + f[None, :], mask=there, other=0)
        # The packed rows are z = x sqrt(log2(e) / h), and half of the slope is d k / d|x - y|².
        h = tl.load(variance + item * variance_item).to(tl.float64)
        factor = -1.0 / (h * tl.sqrt(1.4426950408889634 / h))
        grad = factor * (slope[:, None] * z.to(tl.float64) - weighted_sum)
        tl.store(grad_x + (item * n + i)[:, None] * d + f[None, :], grad, mask=there)
