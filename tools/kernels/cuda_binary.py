"""What the compiled module holds for GPUs: `python -m tools.kernels.cuda_binary`.

Registers and stack of every kernel; and for the loops over columns of mmd's kernels the
instructions of a pair of rows by the unit that executes them, against the floor:
one exp2, six operations, and d + d multiply-adds at 128 lanes a clock for few features
(mmd_rows.cuh), the products on tensor cores (mmd_tensor_visit.cuh). A model from the machine code,
as in cost.py: no GPU is needed, and none has confirmed it.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tools.kernels.compiled import nvidia_tool
from tools.kernels.cost import FLOOR_OPERATIONS, RATES, TENSOR, UNITS
from tools.kernels.machine_code import loops_of, opcode

THREADS = 256
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


class Pair(NamedTuple):
    """Instructions for a pair of rows, by unit, and the floor."""

    counts: dict[str, float]
    floor: dict[str, float]
    """Clocks that a pair takes at least, by unit."""
    besides: Mapping[str, float] = MappingProxyType({})
    """Clocks of units that count no instructions."""

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.counts.values())

    def clocks(self) -> dict[str, float]:
        """Clocks of a multiprocessor for a pair, by unit."""
        of_unit = {unit: self.counts.get(unit, 0) / (32 * rate) for unit, rate in RATES.items()}
        return {**of_unit, "issue": self.total / (32 * RATES["issue"]), **self.besides}

    @property
    def share(self) -> float:
        """The floor over this code's time."""
        return max(self.floor.values()) / max(self.clocks().values())

    def row(self) -> str:
        """Of a table: instructions, units, which of them bounds, and the floor's share."""
        clocks = self.clocks()
        of_units = " | ".join(f"{1000 * clocks.get(unit, 0):.0f}" for unit in UNITS_SHOWN)
        bound = max(clocks, key=lambda unit: clocks[unit])
        return f"{self.total:.0f} | {of_units} | {bound} | {self.share:.0%} |"


UNITS_SHOWN = ("issue", "fp32", "int", "exp2", "memory", "tensor")


def by_unit(names: list[str], pairs: float) -> dict[str, float]:
    """Instructions for a pair by unit, where a warp's instructions serve so many times 32 pairs."""
    found = Counter(
        next(unit for pattern, unit in UNITS if re.match(pattern, name)) for name in names
    )
    return {unit: number / pairs for unit, number in found.items()}


def innermost(lines: list[str]) -> Iterator[list[str]]:
    """The instructions of every loop that holds no other."""
    loops, _ = loops_of(lines)
    for loop in loops:
        if not any(loop.holds(other) for other in loops):
            yield [name for line in lines[loop.start : loop.end + 1] if (name := opcode(line))]


def floor_of(operations: float) -> dict[str, float]:
    """Of a pair with so many operations of FP32: one exp2 besides."""
    return {"fp32": operations / (32 * RATES["fp32"]), "exp2": 1 / (32 * RATES["exp2"])}


def pair_of(lines: list[str], d: int, products: bool) -> Pair:
    """Instructions for a pair in the loop over columns, with gradient.

    Args:
        lines: Of a mmd_rows_kernel for one bandwidth.
        d: Features that it holds.
        products: Whether distances are taken from products, or from differences.

    Raises:
        ValueError: there is no such loop.
    """
    for names in innermost(lines):
        plain = Counter(name.partition(".")[0] for name in names)
        # Seven multiply-adds are 2^e and 2^e - 1. An unrolled loop visits two pairs.
        times, rest = divmod(plain["FFMA"], 2 * d + 7)
        differences = plain["FADD"] >= times * (d + 5)
        if times not in (1, 2) or rest or plain["STS"] or differences == products:
            continue
        # A lane has a row of its own, so that an instruction is one of 32 pairs.
        return Pair(by_unit(names, times), floor_of(2 * d + FLOOR_OPERATIONS))
    raise ValueError(f"no loop over columns for {d} features by products: {products}")


def pair_on_tensor_cores(lines: list[str], d: int, numbers: str) -> Pair:
    """The same of a mmd_tensor_kernel for one bandwidth, whose warp takes 16 rows and 8 columns.

    Memory's clocks are those of the 128 bytes that shared memory gives in one.

    Args:
        lines: Of the kernel.
        d: Features that it holds.
        numbers: What it multiplies.

    Raises:
        ValueError: there is no such loop.
    """
    half = numbers.endswith("float16")
    parts = {"tf32x3": (3, 3), "tf32": (1, 1)}.get(numbers, (1, 2))
    products = parts[0] * d // (16 if half else 8) + parts[1] * d // 8
    for names in innermost(lines):
        times, rest = divmod(sum(name.startswith("HMMA") for name in names), products)
        if times == 0 or rest:
            continue
        pairs = 4 * times
        loads = [name for name in names if name.startswith("LDS")]
        wide = sum(4 if ".128" in name else 2 if ".64" in name else 1 for name in loads)
        tensor = parts[0] * d / TENSOR["half" if half else "tf32"] + parts[1] * d / TENSOR["tf32"]
        return Pair(
            by_unit(names, pairs),
            {**floor_of(FLOOR_OPERATIONS), "tensor": tensor},
            {"tensor": tensor, "memory": wide / (32 * pairs)},
        )
    raise ValueError(f"no loop over columns for {d} features of {numbers}")


def main() -> None:
    """Print both tables."""
    print("| kernel | architecture | registers | stack, bytes | blocks a multiprocessor |")
    print("| --- | --- | ---: | ---: | ---: |")
    for kernel in sorted(kernels()):
        name, architecture, registers, stack = kernel
        print(f"| {name} | {architecture} | {registers} | {stack} | {kernel.blocks} |")
    of_kernels = listings("sm_90")
    heading = " | ".join(("instructions a pair", *UNITS_SHOWN, "bound", "floor"))
    ruler = "---: | " * (1 + len(UNITS_SHOWN)) + "--- | ---: |"
    print(f"\n| d | distances by | {heading} |\n| ---: | --- | {ruler}")
    for d in (4, 8, 12, 16, 32, 64):
        lines = of_kernels[f"mmd_rows_kernel<float, {d}, false>"]
        if d <= 32:
            print(f"| {d} | products | {pair_of(lines, d, products=True).row()}")
        print(f"| {d} | differences | {pair_of(lines, d, products=False).row()}")
    print(f"\n| d | numbers | {heading} |\n| ---: | --- | {ruler}")
    for d in (16, 32, 64):
        for numbers in NUMBERS:
            lines = of_kernels[f"mmd_tensor_kernel<{d}, {numbers}, false>"]
            print(f"| {d} | {numbers} | {pair_on_tensor_cores(lines, d, numbers).row()}")


if __name__ == "__main__":
    main()
