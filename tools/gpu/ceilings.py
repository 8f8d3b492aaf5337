"""What the card does at best, by torch and Triton alone: `python ceilings.py [FILE]`.

Copies in device memory, products at each precision, exponentials in registers, launches. The rates
that a kernel is compared with are these, not a data sheet's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def milliseconds(call: Callable[[], Any], count: int = 10) -> float:
    """Mean time of a call on the device, of `count` back to back after three to warm up."""
    for _ in range(3):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / count


def copies() -> dict[str, float]:
    """Bytes read and written, of 2 GiB."""
    x = torch.randn(1 << 29, device="cuda")
    y = torch.empty_like(x)
    return {"copy_TB_s": 2 * 4 * x.numel() / milliseconds(lambda: y.copy_(x)) / 1e9}


def products() -> dict[str, float]:
    """Multiply-adds of a matrix product of 8192 rows, on random numbers."""
    found = {}
    for name, dtype, precision in (
        ("fp32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bf16", torch.bfloat16, "highest"),
        ("fp64", torch.float64, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        n = 4096 if name == "fp64" else 8192
        a, b = torch.randn(2, n, n, device="cuda").to(dtype)
        found[f"{name}_Tmac_s"] = n**3 / milliseconds(lambda a=a, b=b: a @ b, 5) / 1e9
    return found


def exponentials() -> dict[str, float]:
    """exp2 of numbers that stay in registers, by Triton."""
    from chain import NUMBERS, chain_kernel

    programs, count = 4096, 1024
    out = torch.empty(programs * NUMBERS, device="cuda")
    taken = milliseconds(lambda: chain_kernel[(programs,)](out, count, NUMBERS))
    return {"exp2_T_s": 2 * out.numel() * count / taken / 1e9}


def launches() -> dict[str, float]:
    """Microseconds of a kernel that does next to nothing: launched by torch, and in a graph."""
    x = torch.zeros(32, device="cuda")
    count = 2000
    x.add_(1)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        x.add_(1)
    torch.cuda.synchronize()
    eager = 1e6 * (time.perf_counter() - start) / count
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(100):
            x.add_(1)
    return {"launch_us": eager, "graph_node_us": 10 * milliseconds(graph.replay)}


def clocks() -> dict[str, str]:
    """What the driver says of clocks and power, just after the products."""
    fields = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu"
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    return dict(zip(fields.split(","), done.stdout.strip().split(", "), strict=False))


def main(path: Path | None) -> int:
    """Every part on its own; what fails is in the result too."""
    found: dict[str, Any] = {"device": torch.cuda.get_device_name()}
    failed = 0
    for part in (copies, products, clocks, launches, exponentials):
        try:
            found |= part()
        except Exception as error:  # the others are still worth knowing
            found[part.__name__] = f"{type(error).__name__}: {error}"[:300]
            failed = 1
        if path is not None:
            path.write_text(json.dumps(found, indent=1) + "\n")
    for name, value in found.items():
        print(name, f"{value:.4g}" if isinstance(value, float) else value)
    return failed


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # left out by -P
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
