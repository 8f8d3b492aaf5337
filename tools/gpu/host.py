"""What a GPU call costs on the host, on a machine without a GPU: `python tools/gpu/host.py`.

The kernels of either kind do nothing: CUDA C++'s are empty functions behind the bindings
(no_kernels.cpp), Triton's go through its own launcher to a driver that does nothing (libcuda.c).
Tensors are the CPU's, whose allocator takes about as long as torch's for a GPU. What a GPU adds and
this leaves out: to ask torch for the current device, the stream, and whether it is capturing.

Times are the thread's own, in microseconds, of the fastest of many rounds, beside an
`autograd.Function` that does nothing; the rounds of all calls take turns, so that a busy machine
slows all of them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def build_no_kernels(folder: Path) -> Path:
    """The module of empty kernels, compiled if its sources changed since."""
    import pybind11

    sources = [ROOT / "csrc/bindings_cuda.cpp", ROOT / "csrc/bindings_plans.cpp"]
    sources.append(HERE / "no_kernels.cpp")
    content = hashlib.sha256(sys.version.encode())
    for path in [*sources, *sorted((ROOT / "csrc").glob("*.h"))]:
        content.update(path.read_bytes())
    out = (
        folder / content.hexdigest()[:16] / f"emulated_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    )
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        include = [ROOT / "csrc", sysconfig.get_paths()["include"], pybind11.get_include()]
        subprocess.run(
            [os.environ.get("CXX", "g++"), "-std=c++17", "-O2", "-fPIC", "-shared",
             "-fvisibility=hidden", *(f"-I{path}" for path in include), *sources, "-o", out],
            check=True,
        )  # fmt: skip
    return out


def calls(names: list[str]) -> dict[str, Callable[[], Any]]:
    """A forward and backward call of each op by each implementation, at a batch's size."""
    import torch

    import cgm_fast
    from cgm_fast.testing import prototypes, samples

    class Trivial(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, y: Any) -> Any:
            ctx.save_for_backward(torch.empty_like(x), torch.empty_like(y))
            return x.new_empty(())

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            of_x, of_y = ctx.saved_tensors
            return of_x * grads[0], of_y * grads[0]

    x, y = (part.requires_grad_() for part in samples(64, 64, 10))
    r, g, _ = prototypes(64, 10, 10)  # no labels, which are looked at on a CPU alone
    r, g = r.requires_grad_(), g.requires_grad_()
    noise = torch.randn(2, 64, 10)
    found: dict[str, Callable[[], Any]] = {
        "trivial": lambda: torch.autograd.grad(Trivial.apply(x, y), (x, y))
    }
    for name in names:
        of_op: dict[str, Callable[[], Any]] = {
            "mmd": lambda name=name: torch.autograd.grad(cgm_fast.mmd(x, y, backend=name), (x, y)),
            "prototype_margin": lambda name=name: torch.autograd.grad(
                cgm_fast.prototype_margin(r, g, backend=name).loss, (r, g)
            ),
            "cgm_loss": lambda name=name: torch.autograd.grad(
                cgm_fast.cgm_loss(r, g, noise=noise, backend=name).loss, (r, g)
            ),
        }
        found |= {f"{op} {name}": call for op, call in of_op.items()}
    return found


def main() -> int:
    """Print a row for each call."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--calls", type=int, default=5, help="of a round")
    parser.add_argument("--only", default="", help="a part of the names")
    parser.add_argument("--profile", action="store_true", help="where the time goes, by function")
    given = parser.parse_args()
    names = ["cuda"]
    folder = ROOT / "build" / "no_kernels"
    os.environ["CGM_FAST_CUDA_EMULATION"] = str(build_no_kernels(folder))
    if shutil.which(os.environ.get("CC", "cc")):
        sys.path.insert(0, str(HERE))
        import torch
        import triton_cache

        # Autograd looks for GPUs at its first backward pass: none, if before the stub is there.
        torch.ones(1, requires_grad=True).sum().backward()
        triton_cache.install_stub(triton_cache.compile_stub(folder / "driver"))
        triton_cache.serve_the_cpu()
        names.append("triton")
    found = {
        name: call for name, call in calls(names).items() if given.only in name or name == "trivial"
    }
    for call in found.values():
        for _ in range(3):
            call()
    if given.profile:
        import cProfile
        import pstats

        for name, call in found.items():
            print(name)
            profile = cProfile.Profile()
            profile.enable()
            for _ in range(2000):
                call()
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(28)
        return 0
    best = dict.fromkeys(found, float("inf"))
    for _ in range(given.rounds):
        for name, call in found.items():
            begin = time.thread_time()
            for _ in range(given.calls):
                call()
            best[name] = min(best[name], (time.thread_time() - begin) / given.calls)
    for name, seconds in best.items():
        print(f"{name:24} {1e6 * seconds:7.1f}  {seconds / best['trivial']:5.2f} x trivial")
    return 0


if __name__ == "__main__":
    sys.exit(main())
