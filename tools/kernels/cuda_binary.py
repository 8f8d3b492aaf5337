"""What the compiled module holds for GPUs: `python -m tools.kernels.cuda_binary`.

Registers and stack of every kernel; and for a whole tile of mmd's kernels (cuda_tiles.py) the
instructions of a pair of rows by the unit that executes them, against the floor: one exp2, six
operations, and d + d multiply-adds at 128 lanes a clock, or the products on tensor cores. A model
from the machine code, as in cost.py: no GPU is needed, and none has confirmed it.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from tools.kernels.compiled import nvidia_tool
from tools.kernels.cost import TENSOR
from tools.kernels.cuda_tiles import THREADS, Tile, by_rows, of_wide_rows, on_tensor_cores

REGISTERS = 65536
"""Of a multiprocessor."""
NUMBERS = ("tf32x3", "tf32", "bfloat16", "float16")
"""What the kernel on tensor cores multiplies, in the order of its enumeration."""


class Kernel(NamedTuple):
    """One kernel for one architecture."""

    name: str
    architecture: str
    registers: int
    stack: int
    """Bytes of local memory of a thread, which spilled registers would need."""

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor's registers are enough for; they come in eights."""
        return REGISTERS // (THREADS * -(-self.registers // 8) * 8)


def module() -> Path:
    """The compiled module.

    Raises:
        RuntimeError: it is not there, or was built without CUDA, or tools are missing.
    """
    try:
        from cgm_fast import _native
    except ImportError as error:
        raise RuntimeError(str(error)) from error
    if not _native.build_info()["cuda_architectures"]:
        raise RuntimeError("cgm_fast was built without CUDA kernels")
    for tool in ("cuobjdump", "nvdisasm"):
        if nvidia_tool(tool) is None:
            raise RuntimeError(f"this triton brings no {tool}")
    return Path(_native.__file__)


def run(tool: str, *arguments: str | Path, folder: str | None = None) -> str:
    """What a program of the CUDA toolkit prints."""
    words = [str(nvidia_tool(tool)), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=True, cwd=folder).stdout


def short(name: str) -> str:
    """A kernel's name and template arguments, as in mmd_rows_kernel<float, 16, false>."""
    found = re.match(r"_ZN8cgm_fast4cuda\d+(\w+?_kernel)I(\w+?)EEv", name)
    if found is None:
        return name
    kernel, arguments = found.groups()
    words = {"f": "float", "d": "double", "Lb0E": "false", "Lb1E": "true"}
    numbers = {f"LNS0_7NumbersE{at}": name for at, name in enumerate(NUMBERS)}
    words |= numbers
    parts = re.findall(r"LNS0_7NumbersE\d|Li\d+E?|Lb[01]E?|f|d", arguments)
    named = [words.get(part) or words.get(part + "E") or part.strip("LiE") for part in parts]
    return f"{kernel}<{', '.join(named)}>"


def kernels() -> list[Kernel]:
    """Every kernel of the module."""
    found, architecture = [], ""
    lines = run("cuobjdump", "-res-usage", module()).splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if match := re.match(r"arch = (\w+)", line):
            architecture = match.group(1)
        if match := re.match(r"\s*Function (\w+):", line):
            usage = dict(re.findall(r"(\w+):(\d+)", after))
            stack = int(usage["STACK"]) + int(usage["LOCAL"])
            found.append(Kernel(short(match.group(1)), architecture, int(usage["REG"]), stack))
    return found


@functools.cache  # disassembling takes seconds
def listings(architecture: str) -> dict[str, list[str]]:
    """The machine code of every kernel, line by line."""
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        run("cuobjdump", "-xelf", "all", module(), folder=folder)
        for cubin in sorted(Path(folder).glob(f"*.{architecture}.cubin")):
            name = None
            for line in run("nvdisasm", "-c", cubin).splitlines():
                if match := re.match(r"\.text\.(\w+):", line):
                    name = short(match.group(1))
                    found[name] = []
                elif name is not None:
                    found[name].append(line)
    return found


SHOWN = ("issue", "fp32", "int", "exp2", "memory", "tensor")
"""Units, in the order of the tables."""


def row(tile: Tile) -> str:
    """Of a table: instructions, clocks of the units, the slowest of them, and the floor's share."""
    clocks = tile.clocks()
    of_units = " | ".join(f"{1000 * clocks[unit]:.0f}" for unit in SHOWN)
    return (
        f"{tile.total(in_loop=True):.0f} | {tile.total():.0f} | {of_units} | {tile.bound} "
        f"| {tile.share:.0%} |"
    )


CLOCK, MULTIPROCESSORS, L2 = 1.755e9, 132, 5.5e12
"""Of an H100: per second, and bytes per second."""
ROUTES = (
    ("row chunks, cuBLAS in float32, and a pass", 128, 0.85, 1, True),
    ("the same where tf32 is allowed", TENSOR["tf32"], 0.6, 1, True),
    ("a tile of `mma.sync`, 3×tf32", TENSOR["tf32"], 0.6, 3, False),
    ("a tile of `wgmma` with TMA, 3×tf32", TENSOR["tf32"], 0.8, 3, False),
)
"""Ways to many features: their unit's multiply-adds per clock, what share of it is assumed, how
many products a product takes, and whether a matrix of pairs is read and written besides."""


def predictions(lines: list[str]) -> None:
    """Print what value and gradient of 2 x 16384 rows would take by every route, in ms."""
    pairs, features = float((2 * 16384) ** 2), (300, 2048)
    print("\n| | share | d = 300 | d = 2048 |\n| --- | ---: | ---: | ---: |")
    for name, rate, share, products, has_pass in ROUTES:
        times = []
        for d in features:
            clocks = pairs * 2 * d * products / (rate * share)
            times.append(clocks / (CLOCK * MULTIPROCESSORS) + has_pass * pairs * 8 / L2)
        print(f"| {name} | {share:.0%} | " + " | ".join(f"{1000 * t:.0f}" for t in times) + " |")
    clocks_of = [max(of_wide_rows(lines, d).clocks().values()) for d in features]
    own = [1000 * pairs * clocks / (CLOCK * MULTIPROCESSORS) for clocks in clocks_of]
    print(
        "| mmd_wide.cuh, all of it issued without a wait | | "
        + " | ".join(f"{time:.0f}" for time in own)
        + " |"
    )


def main() -> None:
    """Print both tables."""
    print("| kernel | architecture | registers | stack, bytes | blocks a multiprocessor |")
    print("| --- | --- | ---: | ---: | ---: |")
    for kernel in sorted(kernels()):
        name, architecture, registers, stack = kernel
        print(f"| {name} | {architecture} | {registers} | {stack} | {kernel.blocks} |")
    of_kernels = listings("sm_90")
    heading = " | ".join(("in the loop", "a pair", *SHOWN, "bound", "floor"))
    ruler = "---: | " * (2 + len(SHOWN)) + "--- | ---: |"
    print(f"\n| d | distances by | {heading} |\n| ---: | --- | {ruler}")
    for d in (4, 8, 10, 16, 32, 64):
        lines = of_kernels[f"mmd_rows_kernel<float, {d}, false>"]
        if d <= 32:
            print(f"| {d} | products | {row(by_rows(lines, d, products=True))}")
        print(f"| {d} | differences | {row(by_rows(lines, d, products=False))}")
    lines = of_kernels["mmd_wide_kernel<float, true>"]
    for d in (128, 300, 512, 2048):
        print(f"| {d} | differences | {row(of_wide_rows(lines, d))}")
    print(f"\n| d | numbers | {heading} |\n| ---: | --- | {ruler}")
    for d in (16, 32, 64):
        for numbers in NUMBERS:
            lines = of_kernels[f"mmd_tensor_kernel<{d}, {numbers}, false>"]
            print(f"| {d} | {numbers} | {row(on_tensor_cores(lines, d, numbers))}")
    predictions(of_kernels["mmd_wide_kernel<float, true>"])


if __name__ == "__main__":
    main()
