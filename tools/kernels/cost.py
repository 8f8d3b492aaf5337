"""What bounds the Triton kernels, from their machine code: `python -m tools.kernels.cost`.

The first pass of mmd is compiled for compute capability 9.0 and disassembled; the instructions of
its loop over columns are counted by the unit that executes them. A unit's clocks for a pair of rows
against its rate say which unit is the slowest, and how far the code is from the floor:
one exp2, six operations and the products. Loads of a loop that does not load ahead are waited for,
by as many programs as a multiprocessor holds together. It is a model: what a scheduler makes of it,
and waits for products, are not in it. No GPU is needed, and none has confirmed it.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from cgm_fast.ops.triton.tiles import FEATURES, WIDE, Key, table
from tools.kernels.compiled import (
    Variant,
    compiled,
    nvidia_tool,
    programs,
    resources,
    target_of,
    variants,
)
from tools.kernels.machine_code import Loop, column_loop, listing, loops_of, opcode

# Of a multiprocessor of compute capability 9.0, per clock: instructions of 32 threads. (CUDA
# programming guide, arithmetic instructions; multiply-adds of tensor cores from the data sheet.)
RATES = {"fp32": 4.0, "int": 2.0, "exp2": 0.5, "memory": 1.0, "issue": 4.0}
TENSOR = {"tf32": 1024.0, "half": 2048.0}
"""Multiply-adds per clock."""
L2_BYTES = 24.0
"""That a multiprocessor gets in a clock of what all do: 5.5 TB/s of 132 at 1.75 GHz."""
LATENCY = 700.0
"""Clocks from a load to its use where L2 has it, with the barriers on the way."""
FLOOR_OPERATIONS = 6
WIDE_FEATURES = 512
"""The number of features for which a tile that holds a part of them is counted."""

UNITS = (
    (r"FFMA|FADD|FMUL|IMAD|FSWZADD", "fp32"),
    (r"MUFU", "exp2"),
    (r"LD|ST|SHFL|ATOM|RED|BAR|MEMBAR|FENCE|LDSM|STSM", "memory"),
    (r"HGMMA|HMMA|WARPGROUP|DEPBAR|BRA|NOP|U[A-Z]", "issue"),
    (r".", "int"),
)


class Cost(NamedTuple):
    """Clocks of a multiprocessor for a pair of rows, by unit."""

    clocks: dict[str, float]
    instructions: float
    programs: int
    floor: dict[str, float]

    @property
    def bound(self) -> str:
        """The slowest unit, or the wait for memory where that is longer."""
        return max(self.clocks, key=lambda unit: self.clocks[unit])

    @property
    def total(self) -> float:
        """Of the slowest unit, and what is waited beside it."""
        units = [value for unit, value in self.clocks.items() if unit != "latency"]
        return max(units) + self.clocks["latency"]

    @property
    def share(self) -> float:
        """The floor at its slowest unit over the code's time."""
        return max(self.floor.values()) / self.total


def waits(lines: list[str], loop: Loop) -> int:
    """How often a tile waits for global memory: for loads that are not ahead of their use, all
    between two barriers or products together."""
    found, waiting = 0, False
    for line in lines[loop.start : loop.end + 1]:
        name = (opcode(line) or "").partition(".")[0]
        if name == "LDG" and not waiting:
            found, waiting = found + 1, True
        elif name in ("BAR", "HMMA", "HGMMA"):
            waiting = False
    return found


def bytes_ahead(line: str) -> int:
    """What one thread's instruction loads ahead."""
    name = opcode(line) or ""
    if not name.startswith("LDGSTS"):
        return 0
    return 16 if ".128" in name else 8 if ".64" in name else 4


def cost(variant: Variant, features: int) -> Cost:
    """Compile a variant of mmd's first pass and count."""
    kernel, tool = compiled(variant, target_of("90")[0]), nvidia_tool("nvdisasm")
    if tool is None:
        raise SystemExit("this triton brings no nvdisasm")
    lines = listing(kernel.asm["cubin"], tool)
    loop = column_loop(lines, features == WIDE)
    assert loop is not None, variant
    inner = [other for other in loops_of(lines)[0] if loop.holds(other)]
    blocks, held = variant.blocks, variant.held
    d = features or WIDE_FEATURES
    times = d // blocks.features
    count: Counter[str] = Counter()
    loaded = waited = 0
    for number in range(loop.start, loop.end + 1):
        name = opcode(lines[number])
        if name is None:
            continue
        repeats = times if any(part.start <= number <= part.end for part in inner) else 1
        unit = next(unit for pattern, unit in UNITS if re.match(pattern, name))
        count[unit] += repeats
        count["issue"] += repeats if unit != "issue" else 0
        loaded += repeats * bytes_ahead(lines[number])
    waited = waits(lines, loop) + sum((times - 1) * waits(lines, part) for part in inner)
    pairs = blocks.rows * blocks.columns
    clocks = {unit: count[unit] * blocks.warps / rate / pairs for unit, rate in RATES.items()}
    clocks["L2"] = loaded * 32 * blocks.warps / L2_BYTES / pairs
    exact = held.precision == "tf32x3"
    half = held.rows.itemsize == 2
    first = d / TENSOR["half"] if half else d * (3 if exact else 1) / TENSOR["tf32"]
    second = d * (held.parts or (3 if exact else 1)) / TENSOR["tf32"]
    clocks["tensor"] = first + second
    # A program that waits leaves the multiprocessor to the others that it holds.
    registers, _ = resources(kernel)
    together = programs(blocks.warps, registers, kernel.metadata.shared) or 1
    busy = max(clocks.values())
    clocks["latency"] = max(0.0, (busy + waited * LATENCY / pairs) / together - busy)
    floor = {
        "exp2": 1 / (32 * RATES["exp2"]),
        "fp32": FLOOR_OPERATIONS / (32 * RATES["fp32"]),
        "tensor": first + second,
    }
    return Cost(clocks, count["issue"] * blocks.warps * 32 / pairs, together, floor)


def main() -> None:
    """Print the table for every tile of mmd's first pass at 9.0."""
    units = ("issue", "fp32", "int", "exp2", "memory", "L2", "tensor", "latency")
    print(
        "| d | numbers | precision | programs | instructions a pair | "
        + " | ".join(units)
        + " | bound | floor |"
    )
    print("| ---: | --- | --- | ---: | ---: |" + " ---: |" * len(units) + " --- | ---: |")
    for numbers in ("float32", "tf32", "half"):
        for features in (*FEATURES, WIDE):
            key = Key("mmd_fwd", numbers, features, "9.0")
            if key not in table():
                continue
            for variant in variants(key, table()[key]):
                found = cost(variant, features)
                allowed = "highest" if variant.held.precision == "tf32x3" else "high"
                clocks = " | ".join(f"{1000 * found.clocks[unit]:.0f}" for unit in units)
                name = "half" if numbers == "half" else "float32"
                print(
                    f"| {features or WIDE_FEATURES} | {name} | {allowed} | {found.programs} "
                    f"| {found.instructions:.0f} | {clocks} | {found.bound} | {found.share:.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
