"""Squared distances made of a matrix product on the device, or of differences where that says so.

The host does not wait to see how wide the data is: a flag that lies on the device decides.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from cgm_fast.ops.triton.launch import FUSED

ROWS, COLUMNS, WARPS = 32, 64, 4
# `w` is left to be specialised: where it is a multiple of 16 loads are wide.
varied = functools.partial(
    triton.jit,
    do_not_specialize=[
        "c", "d", "first_row", "first_column", "left_rows", "right_rows", "all_rows", "scales",
        "blocks", "ratios_item", "relation_item", "small_item", "near_item", "near_scale",
    ],
)  # fmt: skip


@triton.jit
def squared(
    product,  # [ROWS, COLUMNS], a_i . b_j
    of_a, of_b,  # pointers to |a_i|² [ROWS] and |b_j|² [COLUMNS]
    a, b,  # pointers to the first features of rows and columns
    there_i, there_j, d, is_far,
):  # fmt: skip
    """|a_i - b_j|² [ROWS, COLUMNS], not negative; of `is_far` by differences."""
    if is_far:
        u = tl.zeros(product.shape, product.dtype)
        for f in range(0, d):
            a_f = tl.load(a + f, mask=there_i, other=0.0)
            b_f = tl.load(b + f, mask=there_j, other=0.0)
            difference = a_f[:, None] - b_f[None, :]
            u += difference * difference
    else:
        of_i = tl.load(of_a, mask=there_i, other=0.0)
        of_j = tl.load(of_b, mask=there_j, other=0.0)
        u = of_i[:, None] + of_j[None, :] - 2.0 * product
        u = tl.where(u < 0.0, 0.0, u)  # a NaN stays one
    return u


@varied
def distances_kernel(
    products,  # [b, c, w]: becomes the squared distances
    left, of_left,  # [b, left_rows, d], [b, left_rows]
    right, of_right,  # the same of the columns
    far,  # [1], int32
    c, w, d, first_row, first_column, left_rows, right_rows,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of pairs."""
    item = tl.program_id(2).to(tl.int64)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row, column = item * left_rows + first_row + i, item * right_rows + first_column + j
    at = products + (item * c + i.to(tl.int64))[:, None] * w + j[None, :]
    there = (i < c)[:, None] & (j < w)[None, :]
    product = tl.load(at, mask=there, other=0.0)
    u = squared(
        product, of_left + row, of_right + column, left + row * d, right + column * d, i < c,
        j < w, d, tl.load(far) != 0,
    )  # fmt: skip
    tl.store(at, u, mask=there)


def finish(
    products: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], far: Tensor,
    first: tuple[int, int],
) -> Tensor:  # fmt: skip
    """Squared distances in place of products.

    Args:
        products: [b, c, w], contiguous.
        rows: [b, n, d], contiguous, and their squares, [b, n].
        columns: The same, of m.
        far: [1] int32, whether by differences.
        first: Which row and which column the first product is of.
    """
    (items, c, w), (a, of_a), (b, of_b) = products.shape, rows, columns
    with torch.cuda.device_of(products):
        grid = triton.cdiv(w, COLUMNS), triton.cdiv(c, ROWS), items
        distances_kernel[grid](
            products, a, of_a, b, of_b, far, c, w, a.shape[-1], *first, a.shape[1], b.shape[1],
            ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS, **FUSED,
        )  # fmt: skip
    return products
