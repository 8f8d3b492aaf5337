"""How a step is measured: rounds of it for the time, one call for the memory, and when not to."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu

ROUND_SECONDS = 2e-4
"""A round repeats a shorter step until it takes this long, so that the clock does not show."""
MOST_ROUNDS = 200
WARM_SECONDS = 0.2
"""For how long a step runs unmeasured, at least once."""
SLOW_SECONDS = 2.0
"""A step that takes longer than this gets SLOW_ROUNDS rounds."""
SLOW_ROUNDS = 3


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Within it, torch.get_float32_matmul_precision() is this."""
    before = torch.get_float32_matmul_precision()
    if precision == before:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of torch have another way to say it
        torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def synchronized(step: Callable[[], Any], device: str) -> Callable[[], Any]:
    """The step, and then waiting for the device to have finished it."""
    if device == "cpu":
        return step
    wait = torch.cuda.synchronize if device == "cuda" else torch.mps.synchronize

    def waiting() -> Any:
        result = step()
        wait()
        return result

    return waiting


def time_step(
    benchmark: Any, step: Callable[[], Any], seconds: float, min_rounds: int, device: str = "cpu"
) -> float:
    """Measure a warm step for about `seconds`; return the median in seconds.

    With --benchmark-disable the step runs once and the result is NaN. On a CUDA GPU the calls of
    a round follow one another without waiting; the benchmark's timer, `gpu.clock` (conftest.py),
    waits at its two ends.
    """
    if benchmark.disabled:
        benchmark.pedantic(step)
        return math.nan
    clock, round_seconds = time.perf_counter, ROUND_SECONDS
    if device == "cuda":
        clock, round_seconds = gpu.clock, gpu.ROUND_SECONDS
    once = math.inf
    until = clock() + min(WARM_SECONDS, seconds)
    while True:
        start = clock()
        step()
        now = clock()
        once = min(once, now - start)
        if now >= until:
            break
    iterations = max(1, math.ceil(round_seconds / once))
    least = SLOW_ROUNDS if once > SLOW_SECONDS else min_rounds
    rounds = min(MOST_ROUNDS, max(least, round(seconds / (once * iterations))))
    benchmark.pedantic(step, rounds=rounds, iterations=iterations)
    return float(benchmark.stats.stats.median)


def _resident(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def peak_memory(step: Callable[[], Any], device: str) -> int | None:
    """Bytes that one call needs at its peak beyond what is there before; None if unknown.

    Where the step has a number of its own (`peak_bytes`), that number.

    On a GPU, what torch's allocator handed out. On the CPU, the growth of the resident memory of
    the whole process, whoever allocated it: Linux keeps its peak and lets it be reset. What
    malloc holds back is given to the system first, so that it counts when it is used again.
    """
    if (planned := getattr(step, "peak_bytes", None)) is not None:
        return int(planned)
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    reset = Path("/proc/self/clear_refs")
    if device != "cpu" or not os.access(reset, os.W_OK):
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    try:
        reset.write_text("5")
        before = _resident("VmRSS")
        step()
        return max(0, _resident("VmHWM") - before)
    except OSError:
        return None


def available_memory(device: str = "cpu") -> float:
    """Bytes of memory that are free, or infinity where the system does not say."""
    if device == "cuda":
        return gpu.available_memory()
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return math.inf


@dataclass
class Limits:
    """Which cases are too large, foretold from the same peer's smaller ones in the same run."""

    seconds: float
    """The longest that one call may take."""
    memory: float
    """The most bytes that one call may need."""
    _seen: dict[tuple[str, ...], list[tuple[float, float, float]]] = field(default_factory=dict)

    def why_skip(
        self, key: tuple[str, ...], work: float, pairs: float, patience: float = 1.0
    ) -> str | None:
        """The reason not to run a case of this size, or None.

        Args:
            key: Op, peer and device.
            work: The arithmetic of the case, in the unit that `note` was given.
            pairs: What memory grows with, for a peer that stores all pairs; else 0.
            patience: How many times the longest call this one may take.
        """
        if not (seen := self._seen.get(key)):
            return None
        known_work, known_seconds, known_bytes_per_pair = max(seen)
        seconds = known_seconds * max(1.0, work / known_work)
        if seconds > (longest := patience * self.seconds):
            return f"would take about {seconds:.0f} s a call, allowed {longest:g}"
        needed = known_bytes_per_pair * pairs
        if needed > (allowed := min(self.memory, 0.8 * available_memory(key[2]))):
            return f"would need about {needed / 1e9:.1f} GB, allowed {allowed / 1e9:.1f}"
        return None

    def note(
        self, key: tuple[str, ...], work: float, pairs: float, seconds: float, memory: int | None
    ) -> None:
        """Remember what a case took."""
        per_pair = memory / pairs if memory and pairs else 0.0
        self._seen.setdefault(key, []).append((work, seconds, per_pair))
