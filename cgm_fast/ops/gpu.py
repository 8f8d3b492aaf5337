"""What implementations that run on GPUs share: the current device, constants, how large it is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops.memory import NoMemory


@functools.cache
def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor on the device, for a copy per call would wait for it.

    Kept for good: a CUDA graph may hold the address.
    """
    return torch.tensor(values, dtype=dtype, device=device)


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a function with its first tensor's device as the current one, where kernels launch."""

    @functools.wraps(function)
    def wrapped(first: Tensor, *args: Any) -> Any:
        for value in (first, *args):
            if isinstance(value, Tensor) and value._is_zerotensor():
                raise NoMemory(f"zeros of shape {list(value.shape)} have no address")
        with torch.cuda.device_of(first):
            return function(first, *args)

    return wrapped


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many a GPU has; a few for the CPU, on which kernels are interpreted or emulated."""
    if device.type != "cuda":
        return 8
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def tf32_allowed() -> bool:
    """Whether the user lets products of float32 numbers be taken from tf32 ones."""
    # torch 2.9's own name for it, which the older ones set too; those raise where it was used.
    chosen = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if chosen is not None:
        return bool(chosen == "tf32")
    return torch.get_float32_matmul_precision() != "highest"
