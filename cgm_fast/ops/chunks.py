"""What the reference implementations share: how many pairs of rows they hold at once, in which
precision they add up, on any device."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch

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


def wide_dtype(device: torch.device) -> torch.dtype:
    """The dtype for sums over rows: float64, or float32 where the device has none (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Half-precision matrix products would break the numerics contract."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
