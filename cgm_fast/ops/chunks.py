"""What the reference implementations share: how many pairs of rows they hold at once, in which
precision they add up, on any device."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

# A CPU's: half a dozen temporaries of so many pairs fit in its cache.
_CPU_PAIRS = 1 << 18
# Of another device's memory, all temporaries together: a 64th, but no more or less than this.
_SHARE, _LEAST, _MOST = 64, 64 << 20, 2 << 30


def pairs_per_chunk(device: torch.device, bytes_per_pair: int) -> int:
    """Pairs to take at once, of which each needs so many bytes in temporaries.

    A CPU is fastest where temporaries stay in its cache. Elsewhere every chunk costs a few dozen
    kernel launches, so that chunks are as large as a modest share of the memory allows. The share
    is of what the device has, not of what is free: to ask for that would change results from call
    to call.
    """
    if device.type == "cpu":
        return _CPU_PAIRS
    return max(1, _budget(device) // bytes_per_pair)


@functools.cache
def _budget(device: torch.device) -> int:
    """Bytes for temporaries: constant, and known without waiting for the device."""
    total = 0
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    return min(max(total // _SHARE, _LEAST), _MOST) if total else 4 * _LEAST


class TileSize(NamedTuple):
    """Rows by columns, no fewer of these, that meet at once by matrix products."""

    rows: int
    columns: int


@functools.cache
def tile_size(device: torch.device, columns: int) -> TileSize:
    """Of so many columns in all; such that a tile, which a dozen passes visit, stays in a cache.

    A CPU's is half a megabyte, of which a core's second level holds two or three; products are then
    within a few percent of the fastest. It has fewer rows where half of their own tile would be a
    good part of all pairs. On a GPU a launch costs as much as a million pairs, and a product wants
    a few hundred rows: all columns, and as many rows as two thirds of the device's cache hold, 32
    MB of an H100's 50.
    """
    if device.type == "cpu":
        return TileSize(min(max(columns // 8 // 32 * 32, 64), 256), 512)
    return TileSize(max(64, _cached_pairs(device) // columns // 64 * 64), columns)


@functools.cache
def _cached_pairs(device: torch.device) -> int:
    """Of float32 numbers."""
    size = 0
    if device.type == "cuda":
        size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
    return max(size, 24 << 20) * 2 // 3 // 4


def variances_of(
    numbers: Sequence[float], variance: Tensor | None, items: int, batch: slice
) -> list[float | Tensor]:
    """h of each bandwidth, for some of so many items.

    Args:
        numbers: [s], of all items; what counts where there is no tensor.
        variance: [s], [1, s] or [items, s], in the dtype that is computed in; or None.
        items: The problem's.
        batch: Which of them.

    Returns:
        [s] of numbers or of [b, 1, 1].
    """
    if variance is None:
        return list(numbers)
    return [of_s[:, None, None] for of_s in variance.expand(items, -1)[batch].unbind(1)]


def wide_dtype(device: torch.device) -> torch.dtype:
    """The dtype for sums over rows: float64, or float32 where the device has none (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Half-precision matrix products would break the numerics contract."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
