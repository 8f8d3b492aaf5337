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

_ROWS, _COLUMNS = 32, 64
# `w` is left to be specialised: where it is a multiple of 16 loads are wide.
varied = functools.partial(
    triton.jit,
    do_not_specialize=[
        "c", "d", "first_row", "first_column", "a_rows", "b_rows", "rows", "scales", "blocks",
        "ratios_item", "relation_item",
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
    a, of_a,  # [b, a_rows, d], [b, a_rows]
    b, of_b,  # the same of the columns
    far,  # [1], int32
    c, w, d, first_row, first_column, a_rows, b_rows,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of pairs."""
    item = tl.program_id(2).to(tl.int64)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row, column = item * a_rows + first_row + i, item * b_rows + first_column + j
    at = products + (item * c + i.to(tl.int64))[:, None] * w + j[None, :]
    there = (i < c)[:, None] & (j < w)[None, :]
    product = tl.load(at, mask=there, other=0.0)
    u = squared(
        product, of_a + row, of_b + column, a + row * d, b + column * d, i < c, j < w, d,
        tl.load(far) != 0,
    )  # fmt: skip
    tl.store(at, u, mask=there)


def finish(
    products: Tensor, a: Tensor, of_a: Tensor, b: Tensor, of_b: Tensor, far: Tensor,
    first_row: int, first_column: int,
) -> Tensor:  # fmt: skip
    """Squared distances in place of products.

    Args:
        products: [b, c, w], contiguous: of rows from `first_row` on and columns from
            `first_column` on.
        a: [b, n, d], contiguous, the rows.
        of_a: [b, n], their squares.
        b: [b, m, d], contiguous, the columns.
        of_b: [b, m], their squares.
        far: [1] int32, whether by differences.
        first_row: Of `a`.
        first_column: Of `b`.
    """
    items, c, w = products.shape
    with torch.cuda.device_of(products):
        grid = triton.cdiv(w, _COLUMNS), triton.cdiv(c, _ROWS), items
        distances_kernel[grid](
            products, a, of_a, b, of_b, far, c, w, a.shape[-1], first_row, first_column,
            a.shape[1], b.shape[1], ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4, **FUSED,
        )  # fmt: skip
    return products
