"""The kernel of a tile of pairs on a GPU, in one pass: see matmul.py, whose products come before it
and after it, and matmul_tile.py, which is the same in plain PyTorch.

A program has some columns and walks over the tile's rows: sums over these go into the columns' own
places, which nobody else writes in this launch, and launches are in order. Sums over columns are
left as parts. No sum depends on which program came first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cgm_fast.ops.triton.distances import squared, varied
from cgm_fast.ops.triton.launch import FUSED
from cgm_fast.ops.triton.math import nearest_tf32
from cgm_fast.ops.triton.radial import is_near, radial

ROWS, COLUMNS, WARPS = 16, 64, 4


@triton.jit
def _add(at, value, there):
    """To float64 numbers in memory that only this program writes, each by one of its threads."""
    before = tl.load(at, mask=there, other=0.0)
    tl.store(at, before + value.to(at.dtype.element_ty), mask=there)
    tl.debug_barrier()  # before whoever reads them in the next turn


@varied
def mmd_tile_kernel(
    tile,  # [b, c, w]: z_i . z_j; becomes Γ w_i w_j slope, 0 where j <= i
    z, squares,  # [b, all_rows, d], [b, all_rows]
    far,  # [1] int32: whether distances are differences
    ratios, kernel_weights,  # [s] or [b, s]: the first σ² over each; [s]
    weights,  # [b, all_rows], or None for ones
    gammas,  # [all_rows] or [b, all_rows]: Γ of the tile's rows with every row
    # Float64, of each row so far: [b, all_rows], and [b, s, all_rows] twice; all strided.
    small, near, far_sums,
    slope_sums, inside_sums,  # the same, [b, all_rows]; or None
    of_rows,  # [b, 2, blocks, c]: these two again, of the tile's rows by the columns of a program
    by_h,  # [b, blocks, s]: sums of h dk/dh, or None
    c, w, d, first_row, first_column, all_rows, scales, blocks, ratios_item, relation_item,
    small_item, near_item, near_scale,
    KERNEL: tl.constexpr, VANISHES: tl.constexpr, EXACT: tl.constexpr, ROUND: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Values, sums and weights of some columns with all rows of the tile."""
    item, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    dtype = tile.dtype.element_ty
    ratios += item * ratios_item
    if EXACT:
        is_far = True
    else:
        is_far = tl.load(far) != 0
    j = block * COLUMNS + tl.arange(0, COLUMNS)
    there_j = j < w
    column = first_column + j
    gamma = tl.load(gammas + item * relation_item + column, mask=there_j, other=0.0)
    if weights is not None:
        w_j = tl.load(weights + item * all_rows + column, mask=there_j, other=0.0)
    else:
        w_j = tl.full([COLUMNS], 1.0, dtype)
    small_sum, slope_sum = tl.zeros([COLUMNS], dtype), tl.zeros([COLUMNS], dtype)
    inside_sum = tl.zeros([COLUMNS], dtype)
    for first in range(0, c, ROWS):
        i = first + tl.arange(0, ROWS)
        there_i, row = i < c, first_row + i
        there = there_i[:, None] & there_j[None, :]
        counted = there & (row[:, None] < column[None, :])
        at = tile + (item * c + i.to(tl.int64))[:, None] * w + j[None, :]
        product = tl.load(at, mask=there, other=0.0)
        at_i, at_j = item * all_rows + row, item * all_rows + column
        u = squared(
            product, squares + at_i, squares + at_j, z + at_i * d, z + at_j * d, there_i, there_j,
            d, is_far,
        )  # fmt: skip
        e = tl.where(counted, -1.4426950408889634 * u, 0.0)
        if weights is not None:
            w_i = tl.load(weights + item * all_rows + row, mask=there_i, other=0.0)
        else:
            w_i = tl.full([ROWS], 1.0, dtype)
        w_counted = tl.where(counted, w_i[:, None], 0.0)
        pair = w_counted * (gamma * w_j)[None, :]
        value, slope, less = tl.zeros_like(e), tl.zeros_like(e), tl.zeros_like(e)
        for s in range(scales):
            ratio, of_s = tl.load(ratios + s), tl.load(kernel_weights + s)
            less_s, whole, slope_s, _curvature = radial(e * ratio, KERNEL)
            at_s = item * near_item + s * near_scale + column
            if VANISHES:
                is_near_s = is_near(e * ratio, less_s, KERNEL)
                value += of_s * tl.where(is_near_s, less_s, whole)
                of_near = tl.where(is_near_s, w_counted, 0.0)
                if far_sums is not None:
                    _add(far_sums + at_s, tl.sum(w_counted - of_near, 0), there_j)
                _add(near + at_s, tl.sum(of_near, 0), there_j)
            else:
                value += of_s * less_s
                _add(near + at_s, tl.sum(w_counted, 0), there_j)
            slope += of_s * ratio * slope_s
            if inside_sums is not None:
                less += of_s * less_s
            if by_h is not None:
                of_h = tl.sum(tl.sum((-0.6931471805599453 * of_s) * ratio * e * slope_s * pair, 1))
                part = by_h + (item * blocks + block) * scales + s
                before = tl.load(part, mask=first > 0, other=0.0)
                tl.debug_barrier()  # all have read what one is about to replace
                tl.store(part, before + of_h)
                tl.debug_barrier()
        small_sum += tl.sum(value * w_counted, 0)
        weight = slope * pair
        if ROUND:
            weight = nearest_tf32(weight)  # as the products have it, and so the sums
        tl.store(at, weight, mask=there)
        at_part = of_rows + (item * 2 * blocks + block) * c + i
        if slope_sums is not None:
            slope_sum += tl.sum(weight, 0)
            tl.store(at_part, tl.sum(weight, 1), mask=there_i)
        if inside_sums is not None:
            of_pair = tl.where(counted, gamma[None, :] * less, 0.0)
            inside_sum += tl.sum(of_pair * w_i[:, None], 0)
            tl.store(at_part + blocks * c, tl.sum(of_pair * w_j[None, :], 1), mask=there_i)
    _add(small + item * small_item + column, small_sum, there_j)
    if slope_sums is not None:
        _add(slope_sums + item * all_rows + column, slope_sum, there_j)
    if inside_sums is not None:
        _add(inside_sums + item * all_rows + column, inside_sum, there_j)


class Sums(NamedTuple):
    """Of a batch: what the tiles of one group of rows add to, as matmul.py has it."""

    small: Tensor
    """[b, M] float64, a view."""
    near: Tensor
    """[b, s, M] float64, a view."""
    far: Tensor | None
    """The same."""
    slopes: Tensor | None
    """[b, M] float64"""
    inside: Tensor | None
    """[b, M] float64"""
    by_h: Tensor | None
    """[b, s] float64"""


class Operands(NamedTuple):
    """Of a batch, and of the group that a tile's rows are of."""

    z: Tensor
    """[b, M, d], contiguous."""
    squares: Tensor
    """[b, M]"""
    far: Tensor
    """[1] int32, whether distances are differences."""
    ratios: Tensor
    """[s] or [b, s], the first σ² over each."""
    kernel_weights: Tensor
    """[s]"""
    weights: Tensor | None
    """[b, M]"""
    gammas: Tensor
    """[1, M] or [b, M], Γ of the group with every row."""


class Way(NamedTuple):
    """What does not change from tile to tile."""

    kernel: str
    vanishes: bool
    """Whether it goes to 0."""
    exact: bool
    """Whether distances are differences always."""
    rounded: bool
    """Whether weights are rounded to tf32."""


def visit(tile: Tensor, rows: slice, columns: slice, given: Operands, sums: Sums, way: Way) -> None:
    """Make weights of a tile's products, [b, c, w] and contiguous; add what its pairs come to."""
    (b, c, w), (_, all_rows, d), scales = tile.shape, given.z.shape, given.ratios.shape[-1]
    blocks = triton.cdiv(w, COLUMNS)
    parts = tile.new_empty((b, 2, blocks, c))
    by_h = None if sums.by_h is None else tile.new_empty((b, blocks, scales))
    with torch.cuda.device_of(tile):
        mmd_tile_kernel[blocks, b](
            tile, **given._asdict(), small=sums.small, near=sums.near, far_sums=sums.far,
            slope_sums=sums.slopes, inside_sums=sums.inside, of_rows=parts, by_h=by_h,
            c=c, w=w, d=d, first_row=rows.start, first_column=columns.start, all_rows=all_rows,
            scales=scales, blocks=blocks,
            ratios_item=given.ratios.stride(0) if given.ratios.dim() == 2 else 0,
            relation_item=given.gammas.stride(0) if len(given.gammas) > 1 else 0,
            small_item=sums.small.stride(0), near_item=sums.near.stride(0),
            near_scale=sums.near.stride(1),
            KERNEL=way.kernel, VANISHES=way.vanishes, EXACT=way.exact, ROUND=way.rounded,
            ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS, **FUSED,
        )  # fmt: skip
    wide = sums.small.dtype
    if sums.slopes is not None:
        sums.slopes[:, rows] += parts[:, 0].sum(1, dtype=wide)
    if sums.inside is not None:
        sums.inside[:, rows] += parts[:, 1].sum(1, dtype=wide)
    if by_h is not None and sums.by_h is not None:
        sums.by_h.add_(by_h.sum(1, dtype=wide))
