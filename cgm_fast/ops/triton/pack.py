"""Samples as the Triton kernels read them: centred, scaled, padded, in rows and in columns.

Rows of x come first, rows of y from n_pad on; both are padded so that a block of rows belongs to
one sample. With bias b = -|z|²/2, -|z_i - z_j|²/2 is z_i . z_j + b_i + b_j. Tensor cores want both
operands of a product to run along what is summed, hence rows and columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cgm_fast.ops.triton.launch import FUSED, Numbers, round_up
from cgm_fast.ops.triton.math import kernel, nearest_tf32
from cgm_fast.ops.triton.tiles import MOST_FEATURES, ROWS, Blocks

_SUM_ROWS, _SUM_PARTS = 64, 64  # of a block for the centre, and how many programs share them


@triton.jit
def _read(source, item, row, f, count, d, by_item, by_row, by_feature, dtype):
    """Rows [R] and features [F] of one sample, 0 beyond it; any dtype, any strides."""
    at = item * by_item + row.to(tl.int64)[:, None] * by_row + f.to(tl.int64)[None, :] * by_feature
    inside = (row >= 0) & (row < count)
    return tl.load(source + at, mask=inside[:, None] & (f < d)[None, :], other=0.0).to(dtype)


@kernel
def sum_kernel(
    x, y,  # [b, n, d] and [b, m, d]
    sums,  # [b, parts, features]
    largest,  # [b]: zeroed for the packing kernel
    n, m, d, features, parts,
    x_item, x_row, x_feature, y_item, y_row, y_feature,
    ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """Sums over rows, for the centre: a program takes every parts-th block of them."""
    part, item = tl.program_id(0) % parts, (tl.program_id(0) // parts).to(tl.int64)
    f = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    dtype = sums.dtype.element_ty
    total = tl.zeros([FEATURES], dtype)
    for first in range(part * ROWS, n, parts * ROWS):
        row = first + tl.arange(0, ROWS)
        total += tl.sum(_read(x, item, row, f, n, d, x_item, x_row, x_feature, dtype), 0)
    for first in range(part * ROWS, m, parts * ROWS):
        row = first + tl.arange(0, ROWS)
        total += tl.sum(_read(y, item, row, f, m, d, y_item, y_row, y_feature, dtype), 0)
    tl.store(sums + (item * parts + part) * features + f, total)
    if (part == 0) & (tl.program_id(1) == 0):
        tl.store(largest + item, 0)


@kernel
def pack_kernel(
    x, y,  # [b, n, d] and [b, m, d]
    x_weights, y_weights,  # [b, n] and [b, m], or None
    sums,  # [b, parts, features], or None to leave the samples where they are
    variance,  # [s] or [b, s]; the first bandwidth sets the scale
    constants,  # begins with what rows of x and of y weigh
    rows,  # [b, total, features]; half ones as they came, neither centred nor scaled
    columns,  # [b, features, total], the same in the compute dtype
    bias, weight,  # [b, total]
    counter,  # [b]: zeroed for the finishing kernel
    largest,  # [b]: the bits of the largest |z|², which order like integers; or None
    n, m, d, n_pad, total, features, parts, variance_item,
    x_item, x_row, x_feature, y_item, y_row, y_feature,
    ROWS: tl.constexpr, FEATURES: tl.constexpr, PARTS: tl.constexpr, TF32: tl.constexpr,
):  # fmt: skip
    """Centre, scale, pad and transpose a block of rows; TF32 rounds them, and then is exact."""
    blocks = total // ROWS
    block, item = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    dtype = columns.dtype.element_ty
    half: tl.constexpr = rows.dtype.element_ty != columns.dtype.element_ty
    i = block * ROWS + tl.arange(0, ROWS)
    row_of_x, row_of_y = tl.where(i < n_pad, i, n), i - n_pad
    scale = tl.sqrt(1.4426950408889634 / tl.load(variance + item * variance_item))
    part = tl.arange(0, PARTS)
    square = tl.zeros([ROWS], dtype)
    valid = (row_of_x < n) | ((row_of_y >= 0) & (row_of_y < m))
    for first in range(0, features, FEATURES):
        f = first + tl.arange(0, FEATURES)
        at = (item * parts + part)[:, None] * features + f[None, :]
        centre = tl.zeros([FEATURES], dtype)
        if sums is not None:
            centre = tl.sum(tl.load(sums + at, mask=(part < parts)[:, None], other=0.0), 0) / (
                n + m
            )
        z = _read(x, item, row_of_x, f, n, d, x_item, x_row, x_feature, dtype)
        z += _read(y, item, row_of_y, f, m, d, y_item, y_row, y_feature, dtype)
        if not half:
            z = (z - centre[None, :]) * scale
        if TF32:
            z = nearest_tf32(z)
        z = tl.where(valid[:, None] & (f < d)[None, :], z, 0.0)
        scaled = z * scale if half else z
        square += tl.sum(scaled * scaled, 1)
        tl.store(rows + (item * total + i)[:, None] * features + f[None, :], z)
        tl.store(columns + (item * features + f)[None, :] * total + i[:, None], z)
    a = tl.where(i < n_pad, tl.load(constants), -tl.load(constants + 1))
    if x_weights is not None:
        a *= tl.load(x_weights + item * n + row_of_x, mask=row_of_x < n, other=1.0)
    if y_weights is not None:
        in_y = (row_of_y >= 0) & (row_of_y < m)
        a *= tl.load(y_weights + item * m + row_of_y, mask=in_y, other=1.0)
    tl.store(bias + item * total + i, -0.5 * square)
    tl.store(weight + item * total + i, tl.where(valid, a, 0.0))
    if largest is not None:
        bits: tl.constexpr = tl.int32 if dtype == tl.float32 else tl.int64
        tl.atomic_max(largest + item, tl.max(square).to(bits, bitcast=True))
    if block == 0:
        tl.store(counter + item, 0)


class Packed(NamedTuple):
    """Two samples, x [b, n, d] and y [b, m, d], stacked, centred on their mean and scaled.

    Half numbers are neither: only as they came are their products exact.
    """

    rows: Tensor  # [b, total, features]
    columns: Tensor  # [b, features, total], in the compute dtype
    bias: Tensor  # [b, total]
    weight: Tensor  # [b, total], 0 for padding
    counter: Tensor  # [b], zeros: for kernels whose last block has more to do
    largest: Tensor  # [b, parts], the largest |z|² (scaled); not for `differences`
    n: int
    m: int
    d: int
    n_pad: int
    total: int

    @property
    def features(self) -> int:
        """d, padded."""
        return self.rows.shape[2]


def pack(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    variance: Tensor,
    constants: Tensor,
    blocks: Blocks,
    numbers: Numbers,
    differences: bool = False,
) -> Packed:
    """Pack x [b, n, d] and y [b, m, d] in two launches, for tiles of `blocks`.

    Args:
        x: Of any floating dtype, with any strides.
        y: Like x.
        x_weights: [b, n] in the compute dtype, contiguous, or None.
        y_weights: [b, m].
        variance: [s] or [b, s]; samples are scaled by sqrt(log2(e) / variance[..., 0]).
        constants: Begins with the scale of x's weights and of y's, whose sign is turned.
        blocks: Tile of the kernels that follow.
        numbers: How they are held.
        differences: For plain differences alone: not centred, and one launch less.
    """
    b, n, d = x.shape
    m, dtype = y.shape[1], numbers.compute
    half = numbers.rows.itemsize == 2
    features, unit = round_up(d, blocks.features), max(blocks.rows, blocks.columns)
    n_pad, some = round_up(n, unit), min(blocks.features, MOST_FEATURES)
    total = n_pad + round_up(m, unit)
    parts = min(_SUM_PARTS, -(-max(n, m) // _SUM_ROWS))
    strides = (*x.stride(), *y.stride())
    sums = bits = None
    largest = (x.new_zeros if half else x.new_empty)((b, 1), dtype=dtype)
    if not differences:
        bits = largest.view(torch.int32 if dtype == torch.float32 else torch.int64)
    if not (differences or half):
        sums = x.new_empty((b, parts, features), dtype=dtype)
        sum_kernel[b * parts, features // some](
            x, y, sums, bits, n, m, d, features, parts, *strides,
            ROWS=_SUM_ROWS, FEATURES=some, **FUSED,
        )  # fmt: skip
    packed = Packed(
        rows=x.new_empty((b, total, features), dtype=numbers.rows),
        columns=x.new_empty((b, features, total), dtype=dtype),
        bias=x.new_empty((b, total), dtype=dtype),
        weight=x.new_empty((b, total), dtype=dtype),
        counter=x.new_empty(b, dtype=torch.int32),
        largest=largest,
        n=n, m=m, d=d, n_pad=n_pad, total=total,
    )  # fmt: skip
    pack_kernel[(b * total // ROWS,)](
        x, y, x_weights, y_weights, sums, variance, constants,
        packed.rows, packed.columns, packed.bias, packed.weight, packed.counter, bits,
        n, m, d, n_pad, total, features, parts, item_stride(variance), *strides,
        ROWS=ROWS, FEATURES=some, PARTS=_SUM_PARTS,
        TF32=numbers.rounded, **FUSED,
    )  # fmt: skip
    return packed


def item_stride(variance: Tensor) -> int:
    """From one batch item's bandwidths to the next: 0 where they share them."""
    return variance.stride(0) if variance.dim() == 2 else 0
