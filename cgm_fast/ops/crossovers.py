"""Where one implementation becomes faster than another: what the automatic choice tries first.

Elsewhere, and behind those that a row names, the order is that of `BACKENDS` (backends.py). Rows
stand from the general to the special: of those that fit a problem the last one counts.
"""

from __future__ import annotations

import functools
from typing import NamedTuple


class Row(NamedTuple):
    """Problems of so many features and rows or more, and who should have them."""

    device: str
    """A type of device."""
    op: str
    features: int
    """d, at least."""
    rows: int
    """Of the first tensor, at least; in a batch, of one item."""
    first: tuple[str, ...]
    basis: str
    """"measured" and on what, or "predicted" and from what."""
    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32", "float64")


# Beyond 64 features the CUDA C++ kernels of mmd keep nothing in registers. By the machine code a
# pair then takes them 16 times what it takes at 64, and the Triton kernels 4 times (d = 256, three
# tf32 products); from where these keep their sums in memory, products of matrices are ahead.
_CODE = "predicted, from the machine code for 9.0 (ops/mmd/README.md)"
TABLE = (
    Row("cuda", "mmd", 65, 0, ("triton", "matmul"), _CODE),
    Row("cuda", "mmd", 257, 1024, ("matmul", "triton"), _CODE),
    Row("cuda", "cgm_loss", 65, 0, ("triton", "matmul"), _CODE),
)


def least_features(device: str, op: str) -> int | None:
    """From how many features on a row may fit; None if there is no row."""
    return min(
        (row.features for row in TABLE if (row.device, row.op) == (device, op)), default=None
    )


@functools.cache
def first(device: str, op: str, dtype: str, features: int, rows: int) -> tuple[str, ...]:
    """Names of the implementations to try before the others."""
    found: tuple[str, ...] = ()
    for row in TABLE:
        of_problem = (row.device, row.op) == (device, op) and dtype in row.dtypes
        if of_problem and features >= row.features and rows >= row.rows:
            found = row.first
    return found
