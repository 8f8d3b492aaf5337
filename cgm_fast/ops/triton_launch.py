"""How Triton kernels are configured and given their constants: one table, one function each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor


class Blocks(NamedTuple):
    """Tile of a kernel that meets rows with columns."""

    rows: int
    columns: int
    features: int
    """Features held at once: all of them, padded, or a part where there are more."""
    warps: int
    stages: int


# By padded features and bytes of a number. No GPU has timed them yet: chosen so that at compute
# capability 9.0 nothing spills and two programs or more fit a multiprocessor (tests/ops/aot.py).
NARROW = {
    (16, 4): Blocks(64, 32, 16, 4, 3),
    (32, 4): Blocks(64, 32, 32, 4, 2),
    (64, 4): Blocks(64, 32, 64, 4, 1),
    (16, 8): Blocks(32, 32, 16, 4, 1),
    (32, 8): Blocks(32, 32, 32, 4, 1),
    (64, 8): Blocks(32, 32, 64, 8, 1),
}
WIDE = {4: Blocks(64, 64, 32, 8, 2), 8: Blocks(32, 32, 32, 8, 1)}


def choose(d: int, dtype: torch.dtype) -> Blocks:
    """The tile for d features computed in `dtype`; power-of-two buckets share a binary."""
    return NARROW.get((max(16, triton.next_power_of_2(d)), dtype.itemsize), WIDE[dtype.itemsize])


# Three products for the exponents and two sums: half the columns.
SECOND = {4: Blocks(32, 32, 32, 4, 1), 8: Blocks(32, 32, 32, 8, 1)}


def choose_second(dtype: torch.dtype) -> Blocks:
    """The tile of the second-order pass; its sizes divide those of `choose`."""
    return SECOND[dtype.itemsize]


def round_up(value: int, unit: int) -> int:
    """The least multiple of `unit` that is not below `value`."""
    return (value + unit - 1) // unit * unit


def precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies, by what the user allows: `torch.get_float32_matmul_precision()`.

    "highest": three products of tf32 parts, which is float32's accuracy (plain float32 on AMD);
    "high" and "medium": tf32. float64 is always exact.
    """
    if dtype == torch.float64:
        return "ieee"
    if fast_products(dtype):
        return "tf32"
    return "ieee" if torch.version.hip else "tf32x3"


def fast_products(dtype: torch.dtype) -> bool:
    """Whether the user trades accuracy of products in `dtype` for speed."""
    return dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"


@functools.cache
def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor on the device: Triton passes floats as float32, and a copy per call
    would wait for the device. Kept for good: a CUDA graph may hold the address.
    """
    return torch.tensor(values, dtype=dtype, device=device)


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a function with its first tensor's device as the current one, where Triton launches."""

    @functools.wraps(function)
    def wrapped(first: Tensor, *args: Any) -> Any:
        with torch.cuda.device_of(first):
            return function(first, *args)

    return wrapped


def parallel(rows: int, device: torch.device) -> int:
    """How many programs keep the device busy for each of `rows` blocks of rows."""
    if device.type != "cuda":
        return 1
    units = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, 2 * units // rows)
