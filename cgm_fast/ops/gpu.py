"""What implementations that run on GPUs share: the current device, constants, how large it is."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from cgm_fast.ops.memory import NoMemory
from cgm_fast.ops.records import tensor_fields

_Made = TypeVar("_Made")
_Key = tuple[tuple[float, ...], torch.dtype, torch.device]
_LOCK = threading.Lock()
_MOST_CONSTANTS = 1024
_constants: dict[_Key, Tensor] = {}  # the oldest first
_captured: set[_Key] = set()


def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor on the device, for a copy per call would wait for it.

    About a thousand are kept, and for good those that a CUDA graph was captured with: it holds
    their address.
    """
    key = values, dtype, device
    found = _constants.get(key)
    if found is not None and not capturing(device):
        return found
    with _LOCK:
        found = _constants.get(key)
        if found is None:
            found = outside_graphs(lambda: torch.tensor(values, dtype=dtype, device=device), device)
            _constants[key] = found
        if capturing(device):
            _captured.add(key)
        elif len(_constants) - len(_captured) > _MOST_CONSTANTS:
            _drop_half()
    return found


def _drop_half() -> None:
    old = [key for key in _constants if key not in _captured][: _MOST_CONSTANTS // 2]
    for device in {key[2] for key in old if key[2].type == "cuda"}:
        torch.cuda.synchronize(device)  # kernels under way read them
    for key in old:
        del _constants[key]


class Known(dict[Any, Any]):
    """What has been worked out for calls of a kind, with the constants that it holds.

    While a CUDA graph is captured nothing is looked up here: a graph has to say for itself which
    constants it needs for good.
    """

    def of(self, key: Any, device: torch.device, make: Callable[..., _Made], *args: Any) -> _Made:
        """The value under a key, made of `args` if it is not there."""
        found: _Made | None = self.get(key)
        if found is None or capturing(device):
            found = make(*args)
            if len(self) >= _MOST_CONSTANTS:
                with _LOCK:
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)  # kernels under way read the constants
                    self.clear()
            self[key] = found
        return found


def capturing(device: torch.device) -> bool:
    """Whether launches become part of a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def outside_graphs(make: Callable[[], _Made], device: torch.device) -> _Made:
    """What lasts, such as a tensor: made outside of CUDA graphs, and ready for every stream.

    What is allocated in a capture, or in the call that `torch.compile(mode="reduce-overhead")`
    makes before it, lies in the graph's own memory, which the graph uses again. So another thread
    allocates it, on a stream of its own.
    """
    if device.type != "cuda":
        return make()

    def work() -> _Made:
        _allow_allocation()
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            value = make()
        stream.synchronize()
        return value

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


def _allow_allocation() -> None:
    """Let this thread allocate while another one captures.

    A capture in the default mode, "global", forbids it to all threads that have not said so.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # not NVIDIA's, or another system's
        return
    driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(ctypes.c_int(_RELAXED)))


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a function of a problem and other records with the device of its first tensor, where
    kernels launch, as the current one."""

    @functools.wraps(function)
    def wrapped(problem: Any, *rest: Any) -> Any:
        for record in (problem, *rest):
            of: Any = type(record)
            for value in record[: tensor_fields(of)]:
                if value is not None and value._is_zerotensor():
                    raise NoMemory(f"zeros of shape {list(value.shape)} have no address")
        device = problem[0].device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return function(problem, *rest)
        with torch.cuda.device(device):
            return function(problem, *rest)

    return wrapped


def raw_stream(device: torch.device) -> int:
    """The handle of the stream that torch is using on the device; 0 for the CPU."""
    if device.type != "cuda":
        return 0
    if _raw_stream is not None:  # which Triton asks too; a stream as an object costs 2 µs
        return int(_raw_stream(device.index))
    return int(torch.cuda.current_stream(device).cuda_stream)


_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many a GPU has; a few for the CPU, on which kernels are interpreted or emulated."""
    if device.type != "cuda":
        return 8
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def tf32_allowed() -> bool:
    """Whether the user lets products of float32 numbers be taken from tf32 ones."""
    # torch 2.9's own name for it, which the older ones set too; those raise where it was used.
    if _precision is not None:
        return bool(_precision("cuda", "matmul") == "tf32")
    chosen = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if chosen is not None:
        return bool(chosen == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


# What that name looks up, as the attribute of an object with attributes of its own.
_precision = getattr(torch._C, "_get_fp32_precision_getter", None)
