"""What bounds the Triton kernels, from their machine code: `python -m tools.kernels.cost`.

The first pass of mmd is compiled for compute capability 9.0 and disassembled; the instructions of
its loop over columns are counted by the unit that executes them. A unit's clocks for a pair of rows
against its rate say which unit is the slowest, and how far the code is from the floor:
one exp2, six operations and the products. It is a model: latencies, memory and what a
scheduler makes of it are not in it. No GPU is needed, and none has confirmed it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from typing import Any, NamedTuple

from cgm_fast.ops.triton.tiles import FEATURES, WIDE, Key, table
from tools.kernels.compiled import Variant, compiled, nvidia_tool, target_of, variants

# Of a multiprocessor of compute capability 9.0, per clock: instructions of 32 threads. (CUDA
# programming guide, arithmetic instructions; multiply-adds of tensor cores from the data sheet.)
RATES = {"fp32": 4.0, "int": 2.0, "exp2": 0.5, "memory": 1.0, "issue": 4.0}
TENSOR = {"tf32": 1024.0, "half": 2048.0}
"""Multiply-adds per clock."""
FLOOR_OPERATIONS = 6
WIDE_FEATURES = 256
"""The number of features for which a tile that holds a part of them is counted."""

UNITS = (
    (r"FFMA|FADD|FMUL|IMAD|FSWZADD", "fp32"),
    (r"MUFU", "exp2"),
    (r"LD|ST|SHFL|ATOM|RED|BAR|MEMBAR|FENCE|LDSM|STSM", "memory"),
    (r"HGMMA|HMMA|WARPGROUP|DEPBAR|BRA|NOP|U[A-Z]", "issue"),
    (r".", "int"),
)


class Loop(NamedTuple):
    """Lines [start, end] of a listing that run again and again."""

    start: int
    end: int

    def holds(self, other: Loop) -> bool:
        """Whether the other lies within it."""
        return self != other and self.start <= other.start and other.end <= self.end


class Cost(NamedTuple):
    """Clocks of a multiprocessor for a pair of rows, by unit."""

    clocks: dict[str, float]
    instructions: float
    floor: dict[str, float]

    @property
    def bound(self) -> str:
        """The slowest unit."""
        return max(self.clocks, key=lambda unit: self.clocks[unit])

    @property
    def share(self) -> float:
        """The floor over the code's time, both at their slowest unit."""
        return max(self.floor.values()) / max(self.clocks.values())


def listing(kernel: Any) -> list[str]:
    """The machine code of a kernel, line by line."""
    tool = nvidia_tool("nvdisasm")
    if tool is None:
        raise SystemExit("this triton brings no nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        done = subprocess.run([str(tool), "-c", file.name], capture_output=True, text=True)
    return done.stdout.splitlines()


def opcode(line: str) -> str | None:
    """The instruction of a line, without its predicate and operands."""
    match = re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line)
    return match.group(1) if match else None


def skipped(lines: list[str], loop: Loop, labels: dict[str, int]) -> set[int]:
    """Lines of a loop that a branch jumps over and that wait for all threads: the tile's diagonal.

    They run for a few of many tiles; what else is jumped over is counted.
    """
    found: set[int] = set()
    for at in range(loop.start, loop.end):
        if opcode(lines[at]) == "BRA" and (label := re.search(r"\.L_x_\d+", lines[at])):
            there = labels[label.group()]
            body = range(at + 1, there)
            names = [opcode(lines[line]) or "" for line in body]
            waits = any(name.startswith("BAR") for name in names)
            if there <= loop.end and waits and not any("MMA" in name for name in names):
                found.update(body)
    return found


def loops_of(lines: list[str]) -> tuple[list[Loop], dict[str, int]]:
    """Backward branches, and where the labels are."""
    labels = {
        match.group(1): number
        for number, line in enumerate(lines)
        if (match := re.match(r"(\.L_x_\d+):", line))
    }
    found = []
    for number, line in enumerate(lines):
        if opcode(line) == "BRA" and (label := re.search(r"\.L_x_\d+", line)):
            start = labels[label.group()]
            if start < number - 1:  # not the endless loop behind the end
                found.append(Loop(start, number))
    return found, labels


def column_loop(lines: list[str], loops: list[Loop]) -> tuple[Loop, list[Loop]]:
    """The loop over columns that takes distances from products, and the loops within it.

    It is the outermost one in the loop over turns. The other way to take distances has a loop over
    features without a product.
    """

    def multiplies(loop: Loop) -> bool:
        return any("HGMMA" in line or "HMMA" in line for line in lines[loop.start : loop.end])

    candidates = [
        loop
        for loop in loops
        if multiplies(loop) and all(multiplies(other) for other in loops if loop.holds(other))
    ]
    turns = max(
        (loop for loop in candidates if any(loop.holds(other) for other in candidates)),
        key=lambda loop: loop.end - loop.start,
    )
    within = [loop for loop in candidates if turns.holds(loop)]
    column = max(within, key=lambda loop: loop.end - loop.start)
    return column, [loop for loop in within if column.holds(loop)]


def cost(variant: Variant, features: int) -> Cost:
    """Compile a variant of mmd's first pass and count."""
    lines = listing(compiled(variant, target_of("90")[0]))
    loops, labels = loops_of(lines)
    loop, inner = column_loop(lines, loops)
    blocks, held = variant.blocks, variant.held
    d = features or WIDE_FEATURES
    times = d // blocks.features
    count: Counter[str] = Counter()
    spared = skipped(lines, loop, labels)
    for number in range(loop.start, loop.end + 1):
        name = opcode(lines[number])
        if name is None or number in spared:
            continue
        repeats = times if any(part.start <= number <= part.end for part in inner) else 1
        unit = next(unit for pattern, unit in UNITS if re.match(pattern, name))
        count[unit] += repeats
        count["issue"] += repeats if unit != "issue" else 0
    pairs = blocks.rows * blocks.columns
    clocks = {unit: count[unit] * blocks.warps / rate / pairs for unit, rate in RATES.items()}
    exact = held.precision == "tf32x3"
    half = held.rows.itemsize == 2
    first = d / TENSOR["half"] if half else d * (3 if exact else 1) / TENSOR["tf32"]
    second = d * (held.parts or (3 if exact else 1)) / TENSOR["tf32"]
    clocks["tensor"] = first + second
    floor = {
        "exp2": 1 / (32 * RATES["exp2"]),
        "fp32": FLOOR_OPERATIONS / (32 * RATES["fp32"]),
        "tensor": first + second,
    }
    return Cost(clocks, count["issue"] * blocks.warps * 32 / pairs, floor)


def main() -> None:
    """Print the table for every tile of mmd's first pass at 9.0."""
    units = ("issue", "fp32", "int", "exp2", "memory", "tensor")
    print(
        "| d | numbers | precision | instructions a pair | "
        + " | ".join(units)
        + " | bound | floor |"
    )
    print("| ---: | --- | --- | ---: |" + " ---: |" * len(units) + " --- | ---: |")
    for numbers in ("float32", "half"):
        for features in (*FEATURES, WIDE):
            key = Key("mmd_fwd", numbers, features, "9.0")
            if key not in table():
                continue
            for variant in variants(key, table()[key]):
                if "," in variant.name:
                    continue  # several bandwidths: a loop more
                found = cost(variant, features)
                allowed = "highest" if variant.held.precision == "tf32x3" else "high"
                clocks = " | ".join(f"{1000 * found.clocks[unit]:.0f}" for unit in units)
                print(
                    f"| {features or WIDE_FEATURES} | {numbers} | {allowed} "
                    f"| {found.instructions:.0f} | {clocks} | {found.bound} | {found.share:.0%} |"
                )


if __name__ == "__main__":
    main()
