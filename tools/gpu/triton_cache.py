"""Fill Triton's cache for a GPU that is elsewhere: `python triton_cache.py FOLDER`.

FOLDER gets a stub of the driver (libcuda.c). Kernels are compiled for compute capability 9.0 and
launched into nothing, with the arguments that a run has. Run it under the Triton and Python of the
other machine, with TRITON_CACHE_DIR at the path that it has there: the cache names files by it.
What the other machine looks up differently it compiles anew.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
CAPABILITY = (9, 0)


def compile_stub(folder: Path) -> Path:
    """The stub as libcuda.so.1, and libcuda.so for the linker."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libcuda.so.1"
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-w", "-Wl,-soname,libcuda.so.1",
         str(HERE / "libcuda.c"), "-o", str(library)],
        check=True,
    )  # fmt: skip
    link = folder / "libcuda.so"
    link.unlink(missing_ok=True)
    link.symlink_to(library.name)
    return library


def install_stub(library: Path) -> ctypes.CDLL:
    """Triton's own driver for NVIDIA over the stub, as the active one."""
    os.environ["TRITON_LIBCUDA_PATH"] = str(library.parent)
    loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    from triton.backends.nvidia import driver as nvidia
    from triton.runtime import driver

    class WithoutDevice(nvidia.CudaDriver):
        def __init__(self) -> None:
            self.utils, self.launcher_cls = nvidia.CudaUtils(), nvidia.CudaLauncher
            self.get_device_capability = lambda device=0: CAPABILITY
            self.get_current_stream = self.get_current_device = lambda device=0: 0
            self.set_current_device = lambda device: None

    driver.set_active(WithoutDevice())
    return loaded


def serve_the_cpu() -> None:
    """Let the backend take CPU tensors, with the tiles and programs of the GPU."""
    from importlib import import_module

    from cgm_fast.ops import backends
    from cgm_fast.ops.triton import tiles

    backends.BACKENDS["triton"] = dataclasses.replace(
        backends.BACKENDS["triton"], devices=("cuda", "cpu"), why_unavailable=lambda: None
    )
    tiles.device_key = lambda device: "{}.{}".format(*CAPABILITY)
    choose, options = tiles.choose, tiles.Blocks.options
    gpu = SimpleNamespace(type="cuda")  # all that these ask of a device
    tiles.Blocks.options = lambda self, device: options(self, gpu)
    for op in ("mmd", "prototype_margin", "cgm_loss"):
        module = import_module(f"cgm_fast.ops.{op}.triton")
        if hasattr(module, "choose"):
            module.choose = lambda kernel, d, dtype, device, *rest: choose(
                kernel, d, dtype, gpu, *rest
            )


def calls() -> list[Callable[[], Any]]:
    """What a run calls: the small cases of the smoke test, and the shapes of benchmarks."""
    import cases
    import torch

    import cgm_fast
    from cgm_fast.testing import derivatives, prototypes, samples

    def mmd(d: int) -> None:
        derivatives(
            lambda x, y: cgm_fast.mmd(x, y, backend="triton"), samples(300, 200, d), order=1
        )

    def margin(k: int, d: int) -> None:
        r, g, _ = prototypes(300, k, d)
        call = lambda r, g: cgm_fast.prototype_margin(r, g, backend="triton").loss  # noqa: E731
        derivatives(call, (r, g), order=1)

    def cgm_loss(b: int, k: int, d: int, labelled: bool) -> None:
        r, g, labels = prototypes(b, k, d)
        given = labels if labelled else None
        noise = torch.randn(2, b, d)
        call = lambda r, g: cgm_fast.cgm_loss(r, g, given, noise=noise, backend="triton").loss  # noqa: E731
        derivatives(call, (r, g), order=1)

    found: list[Callable[[], Any]] = []
    for d in (2, 10, 16, 32, 64, 65, 300, 768, 2048):
        found += [lambda d=d: mmd(d), lambda d=d: margin(10, d), lambda d=d: margin(100, d)]
    for sizes in ((64, 10, 2), (64, 10, 10), (256, 10, 10), (512, 10, 10), (1024, 10, 10),
                  (100, 10, 300), (256, 100, 600)):  # fmt: skip
        for labelled in (False, True):
            found.append(lambda s=sizes, labelled=labelled: cgm_loss(*s, labelled))
    for op in ("mmd", "prototype_margin", "cgm_loss"):
        for case in cases.of(op, small=False):
            if max(case.sizes[:2]) <= 2048:
                found.append(lambda case=case: launch(cases, case))
    return found


def launch(cases: Any, case: Any) -> None:
    """A case of the smoke test, without looking at what it gives: nothing ran."""
    from cgm_fast.testing import derivatives

    call, _, inputs, _ = cases.functions(case, "triton", "cpu")
    derivatives(call, inputs, order=case.order)


def main(folder: Path) -> int:
    """Fill the cache; 0 if every call went through."""
    loaded = install_stub(compile_stub(folder.resolve()))
    serve_the_cpu()
    import torch

    failed = 0
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        for call in calls():
            try:
                call()
            except Exception as error:  # that kernel is then compiled at its first call there
                print(f"{type(error).__name__}: {error}"[:300])
                failed += 1
    count = ctypes.c_long.in_dll(loaded, "cgm_fast_launches").value
    print(f"{count} launches, {failed} calls failed")
    return int(failed > 0 or count == 0)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))  # left out by -P
    sys.exit(main(Path(sys.argv[1])))
