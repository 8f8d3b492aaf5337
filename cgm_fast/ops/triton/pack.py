"""Rows as the Triton kernels read them: centred, scaled, padded, in rows and in columns.

Groups are packed one after another, each padded to whole tiles, so that a block of rows, and a
split of the columns, belongs to one group. With bias b = -|z|²/2, -|z_i - z_j|²/2 is
z_i . z_j + b_i + b_j. Tensor cores want both operands of a product to run along what is summed,
hence rows and columns.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cgm_fast.ops.gpu import constants
from cgm_fast.ops.triton.launch import FUSED, Numbers, round_up
from cgm_fast.ops.triton.math import PADDING, kernel, nearest_tf32, place, split_tf32
from cgm_fast.ops.triton.tiles import MOST_FEATURES, ROWS, Blocks

_SUM_ROWS, _SUM_PARTS = 64, 64  # of a block for the centre, and how many programs share them


@triton.jit
def _read(source, item, row, f, count, d, by_item, by_row, by_feature, dtype):
    """Rows [R] and features [F] of one tensor, 0 beyond it; any dtype, any strides."""
    at = item * by_item + row.to(tl.int64)[:, None] * by_row + f.to(tl.int64)[None, :] * by_feature
    inside = (row >= 0) & (row < count)
    return tl.load(source + at, mask=inside[:, None] & (f < d)[None, :], other=0.0).to(dtype)


@kernel
def sum_kernel(
    x, y,  # [b, n, d], and [b, m, d] or None: the rows one after another
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
    if y is not None:
        for first in range(part * ROWS, m, parts * ROWS):
            row = first + tl.arange(0, ROWS)
            total += tl.sum(_read(y, item, row, f, m, d, y_item, y_row, y_feature, dtype), 0)
    tl.store(sums + (item * parts + part) * features + f, total)
    if (part == 0) & (tl.program_id(1) == 0):
        tl.store(largest + item, 0)


@kernel
def pack_kernel(
    x, y,  # [b, n, d], and [b, m, d] or None: the rows one after another
    row_weights,  # [b, n + m], or None for ones
    sums,  # [b, parts, features], or None to leave the rows where they are
    variance,  # [s] or [b, s]; the first bandwidth sets the scale
    tiles,  # [total / unit, 3], of a layout
    rows,  # [b, total, features]; half ones as they came, neither centred nor scaled
    columns,  # [b, features, total], the same in the compute dtype
    # Rows less their nearest tf32 numbers, which then are `rows`; and both by columns; or None.
    row_rests, column_heads, column_rests,
    bias, weight,  # [b, total]; of padding PADDING and 0
    counter,  # [b]: zeroed for the finishing kernel
    largest,  # [b]: the bits of the largest |z|², which order like integers; or None
    n, m, d, summed, total, unit, features, parts, variance_item,
    x_item, x_row, x_feature, y_item, y_row, y_feature,
    ROWS: tl.constexpr, FEATURES: tl.constexpr, PARTS: tl.constexpr, TF32: tl.constexpr,
):  # fmt: skip
    """Centre, scale, pad and transpose a block of rows; TF32 rounds them, and then is exact.

    So many rows are `summed`.
    """
    blocks = total // ROWS
    block, item = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    dtype = columns.dtype.element_ty
    half: tl.constexpr = rows.dtype.element_ty != columns.dtype.element_ty
    i = block * ROWS + tl.arange(0, ROWS)
    stacked, valid = place(tiles, unit, block * ROWS, ROWS)
    from_x = tl.where(valid, stacked, n)
    scale = tl.sqrt(1.4426950408889634 / tl.load(variance + item * variance_item))
    part = tl.arange(0, PARTS)
    square = tl.zeros([ROWS], dtype)
    for first in range(0, features, FEATURES):
        f = first + tl.arange(0, FEATURES)
        at = (item * parts + part)[:, None] * features + f[None, :]
        centre = tl.zeros([FEATURES], dtype)
        if sums is not None:
            centre = tl.sum(tl.load(sums + at, mask=(part < parts)[:, None], other=0.0), 0) / summed
        z = _read(x, item, from_x, f, n, d, x_item, x_row, x_feature, dtype)
        if y is not None:
            from_y = tl.where(valid, stacked - n, m)
            z += _read(y, item, from_y, f, m, d, y_item, y_row, y_feature, dtype)
        if not half:
            z = (z - centre[None, :]) * scale
        if TF32:
            z = nearest_tf32(z)
        z = tl.where(valid[:, None] & (f < d)[None, :], z, 0.0)
        scaled = z * scale if half else z
        square += tl.sum(scaled * scaled, 1)
        at_row = (item * total + i)[:, None] * features + f[None, :]
        at_column = (item * features + f)[None, :] * total + i[:, None]
        tl.store(columns + at_column, z)
        if row_rests is not None:
            z, rest = split_tf32(z)
            tl.store(row_rests + at_row, rest)
            tl.store(column_heads + at_column, z)
            tl.store(column_rests + at_column, rest)
        tl.store(rows + at_row, z)
    w = tl.where(valid, 1.0, 0.0).to(dtype)
    if row_weights is not None:
        w = tl.load(row_weights + item * (n + m) + stacked, mask=valid, other=0.0)
    tl.store(bias + item * total + i, tl.where(valid, -0.5 * square, PADDING))
    tl.store(weight + item * total + i, w)
    if largest is not None:
        bits: tl.constexpr = tl.int32 if dtype == tl.float32 else tl.int64
        tl.atomic_max(largest + item, tl.max(square).to(bits, bitcast=True))
    if block == 0:
        tl.store(counter + item, 0)


class Layout(NamedTuple):
    """Where groups of rows lie when each is padded to tiles of `unit` rows."""

    sizes: tuple[int, ...]
    unit: int
    """A multiple of what a kernel takes of rows, and of columns, at once."""
    begins: tuple[int, ...]
    """[G + 1], packed rows before each group, and all."""
    tiles: tuple[int, ...]
    """[total / unit, 3], row by row: a tile's group, the stacked row that its first is, and how
    many of its rows are the group's."""

    @property
    def total(self) -> int:
        """Packed rows."""
        return self.begins[-1]

    def packed(self, stacked: int) -> int:
        """Where a stacked row lies."""
        for begin, size in zip(self.begins, self.sizes, strict=False):
            if stacked < size:
                return begin + stacked
            stacked -= size
        raise IndexError("beyond the last row")

    def positions(self, device: torch.device) -> Tensor:
        """Where all stacked rows lie, [M] int64."""
        shifts, before = [], 0
        for begin, size in zip(self.begins, self.sizes, strict=False):
            shifts.append(begin - before)
            before += size
        shift, size_of = (
            constants(tuple(values), torch.int64, device) for values in (shifts, self.sizes)
        )
        moved = torch.repeat_interleave(shift, size_of, output_size=before)
        return moved.add_(torch.arange(before, device=device))


@functools.lru_cache(maxsize=256)
def layout_of(sizes: tuple[int, ...], blocks: Blocks) -> Layout:
    """Groups of these sizes for tiles of `blocks`."""
    unit = max(blocks.rows, blocks.columns)
    begins, tiles, before = [0], [], 0
    for group, size in enumerate(sizes):
        padded = round_up(size, unit)
        for first in range(0, padded, unit):
            tiles += [group, before + first, min(unit, size - first)]
        begins.append(begins[-1] + padded)
        before += size
    return Layout(sizes, unit, tuple(begins), tuple(tiles))


class Splits(NamedTuple):
    """Columns dealt out in splits (split-K), each within one group."""

    total: int
    bounds: tuple[int, ...]
    """[total + 1, 2]: a split's first column, in tiles of COLUMNS, and its group."""
    groups: tuple[int, ...]
    """[G + 1, 2]: a group's first tile of `Layout.unit`, and its first split."""

    def of_groups(self) -> list[int]:
        """How many splits each group has."""
        return [end - begin for begin, end in pairwise(self.groups[1::2])]


@functools.lru_cache(maxsize=256)
def splits_of(layout: Layout, columns: int, wanted: int) -> Splits:
    """About `wanted` splits, or one for each group where there are more; whole tiles of columns."""
    span = round_up(-(-layout.total // max(len(layout.sizes), wanted)), columns)
    bounds: list[int] = []
    groups = []
    for group, (begin, end) in enumerate(pairwise(layout.begins)):
        groups += [begin // layout.unit, len(bounds) // 2]
        for first in range(begin, end, span):
            bounds += [first // columns, group]
    total = len(bounds) // 2
    bounds += [layout.total // columns, len(layout.sizes)]
    groups += [layout.total // layout.unit, total]
    return Splits(total, tuple(bounds), tuple(groups))


class Parts(NamedTuple):
    """Rows as sums of two tf32 numbers, which tensor cores take from memory as they are; the larger
    one of a row is in `Packed.rows`."""

    row_rests: Tensor | None = None  # [b, total, features]
    column_heads: Tensor | None = None  # [b, features, total]
    column_rests: Tensor | None = None

    @classmethod
    def like(cls, rows: Tensor, columns: Tensor) -> Parts:
        """Room for them."""
        return cls(*(torch.empty_like(value) for value in (rows, columns, columns)))


class Packed(NamedTuple):
    """Rows of G groups, centred on their mean and scaled.

    Half numbers are neither: only as they came are their products exact.
    """

    rows: Tensor  # [b, total, features]; in parts the tf32 numbers nearest to them
    columns: Tensor  # [b, features, total], in the compute dtype
    parts: Parts
    bias: Tensor  # [b, total]
    weight: Tensor  # [b, total], of a row; 0 for padding
    counter: Tensor  # [b], zeros: for kernels whose last block has more to do
    largest: Tensor | None  # [b], the largest |z|² (scaled), where it is wanted
    layout: Layout
    d: int

    @property
    def features(self) -> int:
        """d, padded."""
        return self.rows.shape[2]

    @property
    def total(self) -> int:
        """Rows, padded."""
        return self.rows.shape[1]

    @property
    def tiles(self) -> Tensor:
        """The layout's."""
        return constants(self.layout.tiles, torch.int32, self.rows.device)

    def operands(self) -> dict[str, Tensor]:
        """What a kernel that meets rows with columns takes of it, by its parameters' names."""
        return {
            "rows": self.rows, "columns": self.columns, "bias": self.bias, "weight": self.weight,
        }  # fmt: skip


def pack(
    samples: tuple[Tensor, ...],
    weights: Tensor | None,
    variance: Tensor,
    layout: Layout,
    blocks: Blocks,
    numbers: Numbers,
    differences: bool = False,
    centre_of_y: bool = False,
    in_parts: bool = False,
) -> Packed:
    """Pack rows in two launches, for tiles of `blocks`.

    Args:
        samples: z [b, M, d], or two tensors of which that is made; of any floating dtype, with any
            strides.
        weights: [b, M] in the compute dtype, contiguous, or None for ones.
        variance: [s] or [b, s]; rows are scaled by sqrt(log2(e) / variance[..., 0]).
        layout: Of groups that have M rows together.
        blocks: Tile of the kernels that follow.
        numbers: How they are held.
        differences: For plain differences alone: not centred, and one launch less.
        centre_of_y: Centre on the mean of the second tensor, so that a NaN of the first stays in
            its row.
        in_parts: Also as sums of two tf32 numbers.
    """
    x, y = samples[0], samples[1] if len(samples) > 1 else None
    b, n, d = x.shape
    m, dtype = 0 if y is None else y.shape[1], numbers.compute
    half = numbers.rows.itemsize == 2
    features, some = round_up(d, blocks.sums), min(blocks.features, MOST_FEATURES)
    parts = min(_SUM_PARTS, -(-max(n, m) // _SUM_ROWS))
    strides = {
        f"{name}_{of}": step
        for name, value in (("x", x), ("y", y))
        for of, step in zip(
            ("item", "row", "feature"), (0, 0, 0) if value is None else value.stride(), strict=True
        )
    }
    sums = bits = None
    summed = m if centre_of_y else n + m
    largest = (x.new_zeros if half else x.new_empty)((b, 1), dtype=dtype)
    if not differences:
        bits = largest.view(torch.int32 if dtype == torch.float32 else torch.int64)
    sizes = {"n": n, "m": m, "d": d, "features": features, "parts": parts}
    if not (differences or half):
        sums = x.new_empty((b, parts, features), dtype=dtype)
        sum_kernel[b * parts, features // some](
            x=x, y=y, sums=sums, largest=bits, **(sizes | {"n": 0} if centre_of_y else sizes),
            **strides, ROWS=_SUM_ROWS, FEATURES=some, **FUSED,
        )  # fmt: skip
    rows = x.new_empty((b, layout.total, features), dtype=numbers.rows)
    columns = x.new_empty((b, features, layout.total), dtype=dtype)
    packed = Packed(
        rows=rows, columns=columns,
        parts=Parts.like(rows, columns) if in_parts else Parts(),
        bias=x.new_empty((b, layout.total), dtype=dtype),
        weight=x.new_empty((b, layout.total), dtype=dtype),
        counter=x.new_empty(b, dtype=torch.int32),
        largest=largest, layout=layout, d=d,
    )  # fmt: skip
    pack_kernel[(b * layout.total // ROWS,)](
        x=x, y=y, row_weights=weights, sums=sums, variance=variance, tiles=packed.tiles,
        **packed.operands(), **packed.parts._asdict(), counter=packed.counter, largest=bits,
        summed=summed, total=layout.total, unit=layout.unit, variance_item=item_stride(variance),
        **sizes, **strides,
        ROWS=ROWS, FEATURES=some, PARTS=_SUM_PARTS, TF32=numbers.rounded, **FUSED,
    )  # fmt: skip
    return packed


def item_stride(value: Tensor, dims: int = 1) -> int:
    """From one item's numbers, of so many dimensions, to the next's: 0 where items share them."""
    return value.stride(0) if value.dim() > dims and value.shape[0] > 1 else 0
