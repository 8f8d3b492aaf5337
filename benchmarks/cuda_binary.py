"""What the compiled module holds for GPUs: `python -m benchmarks.cuda_binary`.

Registers and stack of every kernel; and for the loops over columns of mmd's kernels
for few features (mmd_rows.cuh) the instructions of a pair of rows by the unit that executes them,
against the floor of DESIGN's table in float32: d + d multiply-adds, one exp2 and six operations, at
128 lanes a clock. A model from the machine code, as in cost.py: no GPU is needed, and none has
confirmed it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from benchmarks.compiled import nvidia_tool
from benchmarks.cost import FLOOR_OPERATIONS, RATES, UNITS, loops_of, opcode

THREADS = 256
REGISTERS = 65536
"""Of a multiprocessor."""


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
    """A mangled kernel's name and template arguments: mmd_rows_kernel<float, 16, false>."""
    found = re.match(r"_ZN8cgm_fast4cuda\d+(\w+?_kernel)I(\w+?)EEv", name)
    if found is None:
        return name
    kernel, arguments = found.groups()
    words = {"f": "float", "d": "double", "Lb0E": "false", "Lb1E": "true"}
    parts = re.findall(r"Li\d+E?|Lb[01]E?|f|d", arguments)
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


class Pair(NamedTuple):
    """Instructions for a pair of rows, by unit, and what the floor's share of the time is."""

    counts: dict[str, float]

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.counts.values())

    def clocks(self) -> dict[str, float]:
        """Clocks of a multiprocessor for a pair, by unit."""
        of_unit = {unit: self.counts.get(unit, 0) / (32 * rate) for unit, rate in RATES.items()}
        return {**of_unit, "issue": self.total / (32 * RATES["issue"])}

    def share(self, d: int) -> float:
        """The floor over this code's time."""
        floor = {
            "fp32": (2 * d + FLOOR_OPERATIONS) / (32 * RATES["fp32"]),
            "exp2": 1 / (32 * RATES["exp2"]),
        }
        return max(floor.values()) / max(self.clocks().values())


def pair_of(lines: list[str], d: int, products: bool) -> Pair:
    """Instructions for a pair in the loop over columns, with gradient.

    Args:
        lines: Of a mmd_rows_kernel for one bandwidth.
        d: Features that it holds.
        products: Whether distances are taken from products, or from differences.

    Raises:
        ValueError: there is no such loop.
    """
    loops, _ = loops_of(lines)
    for loop in loops:
        if any(loop.holds(other) for other in loops):
            continue
        names = [name for line in lines[loop.start : loop.end + 1] if (name := opcode(line))]
        plain = Counter(name.partition(".")[0] for name in names)
        # Seven multiply-adds are 2^e and 2^e - 1. An unrolled loop visits two pairs.
        times, rest = divmod(plain["FFMA"], 2 * d + 7)
        differences = plain["FADD"] >= times * (d + 5)
        if times not in (1, 2) or rest or plain["STS"] or differences == products:
            continue
        count = Counter(
            next(unit for pattern, unit in UNITS if re.match(pattern, name)) for name in names
        )
        # A lane has a row of its own, so that an instruction is one of 32 pairs.
        return Pair({unit: number / times for unit, number in count.items()})
    raise ValueError(f"no loop over columns for {d} features by products: {products}")


def main() -> None:
    """Print both tables."""
    print("| kernel | architecture | registers | stack, bytes | blocks a multiprocessor |")
    print("| --- | --- | ---: | ---: | ---: |")
    for kernel in sorted(kernels()):
        name, architecture, registers, stack = kernel
        print(f"| {name} | {architecture} | {registers} | {stack} | {kernel.blocks} |")
    units = ("issue", "fp32", "int", "exp2", "memory")
    print(
        "\n| d | distances by | instructions a pair | " + " | ".join(units) + " | bound | floor |"
    )
    print("| ---: | --- | ---: |" + " ---: |" * len(units) + " --- | ---: |")
    of_kernels = listings("sm_90")
    for d in (4, 8, 12, 16, 32, 64):
        for products in (True, False):
            if products and d > 32:
                continue
            pair = pair_of(of_kernels[f"mmd_rows_kernel<float, {d}, false>"], d, products)
            clocks = pair.clocks()
            of_units = " | ".join(f"{1000 * clocks[unit]:.0f}" for unit in units)
            bound = max(clocks, key=lambda unit: clocks[unit])
            way = "products" if products else "differences"
            print(
                f"| {d} | {way} | {pair.total:.0f} | {of_units} | {bound} | {pair.share(d):.0%} |"
            )


if __name__ == "__main__":
    main()
