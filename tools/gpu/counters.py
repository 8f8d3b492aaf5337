"""What bounds each kernel, by Nsight Compute: `python counters.py REPORT`.

Without a REPORT this is what ncu runs: two calls of each op at a few sizes, by each implementation.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

KERNELS = "regex:mmd|prototype|cgm_|pack_kernel|sum_kernel"
SECTIONS = (
    "LaunchStats", "Occupancy", "SpeedOfLight", "WarpStateStats", "MemoryWorkloadAnalysis",
    "InstructionStats",
)  # fmt: skip
SHOWN = (
    "gpu__time_duration.sum", "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active", "launch__registers_per_thread",
    "launch__grid_size",
)  # fmt: skip
MMD = ((64, 10), (1024, 10), (16384, 10), (16384, 64), (4096, 300))
MARGIN = ((64, 10, 10), (4096, 100, 64), (16384, 1000, 64))
CGM_LOSS = ((64, 10, 10), (256, 10, 10), (1024, 10, 10))
FEW = 1100
"""Rows at most on a stand-in for a GPU."""


def calls(backends: tuple[str, ...], device: str) -> None:
    """What is profiled: two calls each, of which the second finds everything warm."""
    import torch

    import cgm_fast
    from cgm_fast.testing import prototypes, samples

    def twice(function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
        leaves = [value.requires_grad_() for value in inputs]
        for _ in range(2):
            torch.autograd.grad(function(*leaves), leaves)

    most = FEW if device != "cuda" else 10**9
    for backend in backends:
        for n, d in MMD:
            if n <= most:
                call = lambda x, y: cgm_fast.mmd(x, y, backend=backend)  # noqa: B023, E731
                twice(call, samples(n, n, d, device=device))
        for b, k, d in MARGIN:
            if b <= most:
                call = lambda r, g: cgm_fast.prototype_margin(r, g, backend=backend).loss  # noqa: B023, E731
                twice(call, prototypes(b, k, d, device=device)[:2])
        for b, k, d in CGM_LOSS:
            call = lambda r, g: cgm_fast.cgm_loss(r, g, backend=backend).loss  # noqa: B023, E731
            twice(call, prototypes(b, k, d, device=device)[:2])


def profile(report: Path, device: str) -> int:
    """Run this file under ncu, then print its main counters, a line for each launch."""
    sections = [word for name in SECTIONS for word in ("--section", name)]
    status = subprocess.run(
        [
            "ncu", "--clock-control", "none", *sections, "--kernel-name", KERNELS, "-f",
            "-o", str(report.with_suffix("")), sys.executable, "-P", __file__, "--device", device,
        ]
    ).returncode  # fmt: skip
    if report.exists():
        subprocess.run(
            ["ncu", "--import", str(report), "--page", "raw", "--csv", "--metrics", ",".join(SHOWN)]
        )
    return status


def main() -> int:
    """With a report, profile; without, be profiled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, nargs="?")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", action="append")
    options = parser.parse_args()
    if options.report is not None:
        return profile(options.report, options.device)
    calls(tuple(options.backend or ("cuda", "triton")), options.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
