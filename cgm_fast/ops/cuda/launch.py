"""How the CUDA C++ kernels are launched: where they are, on which stream, with what workspace."""

from __future__ import annotations

import functools
import os
import sys
import threading
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from cgm_fast.ops.gpu import capturing, multiprocessors, outside_graphs
from cgm_fast.ops.gpu import raw_stream as stream

EMULATION = "CGM_FAST_CUDA_EMULATION"
"""Names, for tests, a module of the kernels compiled for the CPU (tests/emulation)."""


def _module() -> ModuleType:
    path = os.environ.get(EMULATION)
    if path is None:
        from cgm_fast import _native

        return _native
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("emulated_cuda", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{EMULATION}={path} is not a module")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def kernels() -> ModuleType:
    """The compiled module."""
    return _module()


ROWS = 32
"""Rows of a block, where nothing else is said."""
LEAST_ROWS = 4
MOST_FEATURES = {torch.float32: 64, torch.float64: 16}
"""Of kernels that keep a row in a lane's registers (csrc/cuda/mmd_rows.cuh)."""


def rows_of_block(batch: int, sizes: tuple[int, ...], device: torch.device) -> int:
    """Rows for a block of these kernels: fewer where there are too few for all multiprocessors."""
    rows = ROWS
    while rows > LEAST_ROWS and batch * tiles(sizes, rows) < multiprocessors(device):
        rows //= 2
    return rows


def tiles(sizes: tuple[int, ...], width: int) -> int:
    """Blocks of so many rows, or tiles of so many columns, that lie within one group each."""
    return sum(-(-size // width) for size in sizes)


def why_no_module(error: ImportError) -> str:
    """Why the compiled module cannot be imported, and what to do."""
    # CMakeLists.txt leaves it where there is none: of an editable install not beside the sources.
    notes = [Path(folder) / "_no_native.txt" for folder in sys.modules["cgm_fast"].__path__]
    reason = next((note.read_text() for note in notes if note.exists()), str(error))
    return (
        f"the compiled module cgm_fast._native cannot be imported ({reason}); reinstall with a C++ "
        "compiler and without CGM_FAST_PURE"
    )


def why_unavailable() -> str | None:
    """What is missing, or None if kernels can be launched."""
    try:
        module = kernels()
    except ImportError as error:
        return why_no_module(error)
    if not hasattr(module, "mmd_fwd_cuda"):
        left_out = module.build_info()["cuda_left_out"]
        return (
            f"cgm_fast was built without CUDA kernels ({left_out}); reinstall with nvcc (CUDA 12 "
            "or newer) on the PATH or in CUDACXX, and CGM_FAST_CUDA=ON in the environment"
        )
    if EMULATION in os.environ:
        return None
    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU"
    if torch.version.hip:
        return "this GPU is AMD's"
    if max(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())) < (8, 0):
        return "compute capability 8.0 or higher is needed"
    problem: str | None = module.cuda_problem()
    return problem and f"the CUDA run-time of the build cannot be used: {problem}"


_LOCK = threading.Lock()
_POOL = 1 << 18
_pools: dict[torch.device, Tensor] = {}
_next: dict[torch.device, int] = {}
_of_stream: dict[tuple[torch.device, int], tuple[int, Tensor]] = {}


def counters(count: int, device: torch.device) -> Tensor:
    """`count` zeros for blocks to count themselves with; a kernel leaves zeros behind.

    Calls on one stream run one after another and share theirs. A CUDA graph may be replayed beside
    anything else: each captured call gets its own, for good; where none are left, a memset.
    """
    captured = capturing(device)
    key = device, stream(device)
    if not captured:
        most, known = _of_stream.get(key, (0, None))
        if known is not None and most >= count:
            return known
    with _LOCK:
        if device not in _pools:
            _pools[device] = outside_graphs(
                lambda: torch.zeros(_POOL, dtype=torch.int32, device=device), device
            )
            _next[device] = 0
        begin = _next[device]
        if begin + count > _POOL:
            return torch.zeros(count, dtype=torch.int32, device=device)
        _next[device] = begin + count
        found = _pools[device][begin : begin + count]
        if not captured:
            _of_stream[key] = count, found
    return found
