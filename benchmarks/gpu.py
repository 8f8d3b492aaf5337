"""On a CUDA GPU: a clock that waits, a call's time without the host, its launches, the rates.

Nothing here is imported for its effect: a machine without a GPU can import it, and cannot call it.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], Any]

ROUND_SECONDS = 5e-3
"""A round repeats a shorter step until it takes this long: waiting for the GPU at the round's end,
about 10 µs, does not show then."""
ROUNDS = 20
FEWEST_ROUNDS = 3
LONG_SECONDS = 1.0
"""Of a graph that takes longer, one replay is enough."""

# Numbers of CUdevice_attribute: the highest clocks in kHz, the width of the memory's bus in bits.
CLOCK, MEMORY_CLOCK, BUS_WIDTH = 13, 36, 37


def clock() -> float:
    """Seconds, once the GPU has finished all that it was given: the timer of every CUDA row.

    So the calls of a round follow one another as in a program, and only its end waits.
    """
    torch.cuda.synchronize()
    return time.perf_counter()


def attach_profiler() -> None:
    """Make the profiler's library known to the driver, before anything is timed.

    It stays there after its first use, which may make launches dearer: so they are for all rows.
    """
    # As torch.profiler sets them where there are CUDA graphs: to attach anew after one crashes.
    os.environ["DISABLE_CUPTI_LAZY_REINIT"] = "1"
    os.environ["TEARDOWN_CUPTI"] = "0"
    kernels(lambda: torch.zeros(8, device="cuda") + 1)


def measure(step: Step, seconds: float, peak: int | None, captures: bool) -> dict[str, Any]:
    """What a row of a GPU has beyond the time of a call, for `extra_info`.

    Args:
        step: Warm.
        seconds: For how long to replay it.
        peak: Bytes that a call takes.
        captures: False for what must not be tried: a capture that fails may leave torch's random
            numbers unusable for the rest of the process.
    """
    return {
        "device_seconds": device_seconds(step, seconds, peak or 0) if captures else None,
        "launches": kernels(step),
    }


def device_seconds(step: Step, seconds: float, peak: int = 0) -> float | None:
    """Median time of a call replayed as a CUDA graph, back to back: no Python, no launches.

    None where it cannot be captured because it waits for the GPU, or does not fit another time.
    """
    torch.cuda.empty_cache()  # capturing does so too; a graph has memory of its own
    if peak > 0.9 * available_memory():
        return None
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what finds out that it waits calls itself a prototype
        try:
            with torch.cuda.stream(stream):
                step()  # libraries have handles and memory per stream
                refuse_waiting(step)
            with torch.cuda.graph(graph, stream=stream):
                step()
        except RuntimeError:
            return None
        finally:
            torch.cuda.synchronize()
    return replayed(graph.replay, seconds)


def refuse_waiting(step: Step) -> None:
    """Run a step; RuntimeError if torch waits for the GPU in it, as a captured one must not."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode(before)


def replayed(replay: Step, seconds: float) -> float:
    """Median seconds of one replay, between events on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def each_of(count: int) -> float:
        start.record()
        for _ in range(count):
            replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / (1e3 * count)

    once = each_of(1)
    if once > LONG_SECONDS:
        return once
    once = each_of(1)  # the first brought the graph to the GPU
    count, rounds = plan(once, seconds)
    return statistics.median(each_of(count) for _ in range(rounds))


def plan(once: float, seconds: float) -> tuple[int, int]:
    """Replays of a round, and rounds, for a graph that takes `once` and a time to fill."""
    once = max(once, 1e-6)  # of an empty graph perhaps nothing
    count = max(1, math.ceil(ROUND_SECONDS / once))
    return count, min(ROUNDS, max(FEWEST_ROUNDS, round(seconds / (once * count))))


def kernels(step: Step) -> int | None:
    """How many kernels a call launches; None where the profiler sees none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that events of earlier cycles are gone
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            step()
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        try:
            trace = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        except ValueError:  # a name in it that JSON cannot hold
            return None
    return kernels_of(trace) or None


def kernels_of(trace: dict[str, Any]) -> int:
    """Kernels in a Chrome trace, where copies, fills and annotations are of other categories."""
    return sum(event.get("cat") == "kernel" for event in trace["traceEvents"])


def available_memory() -> float:
    """Bytes that torch can still hand out: the driver's, and those it holds back itself."""
    free, _ = torch.cuda.mem_get_info()
    return float(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())


def properties() -> dict[str, Any]:
    """What `floors.gpu_rates` needs; None for what the driver does not say."""
    nvidia = torch.version.hip is None
    width, transfers = driver_attribute(BUS_WIDTH), driver_attribute(MEMORY_CLOCK)
    khz = driver_attribute(CLOCK)
    device = torch.cuda.current_device()
    return {
        # AMD's numbers look alike and mean something else.
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if nvidia else None,
        "multiprocessors": torch.cuda.get_device_properties(device).multi_processor_count,
        "clock_hz": None if khz is None else 1e3 * khz,
        # Two transfers a clock, of all kinds of memory by the driver's way to count.
        "bytes_per_second": None if not (width and transfers) else 2e3 * transfers * width / 8,
    }


def driver_attribute(number: int) -> int | None:
    """An attribute of the current device from the driver; not every torch has these."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # no NVIDIA driver, or none of this name
        return None
    device, value = ctypes.c_int(), ctypes.c_int()
    if driver.cuDeviceGet(ctypes.byref(device), torch.cuda.current_device()):
        return None
    if driver.cuDeviceGetAttribute(ctypes.byref(value), number, device):
        return None
    return value.value if value.value > 0 else None
