"""What a whole tile takes of mmd's CUDA C++ kernels: fetched, prepared, visited, added up.

Counted in the machine code of the loop over tiles, for a thread: every instruction of it once,
those of loops within it as often as these go round for a tile that is full, less what such a tile
jumps over: the other ways to copy samples and to take distances, and the end of a group. Where it
is not known which of two ways is taken both are counted. It is a model: latencies are not in it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from tools.kernels.cost import FLOOR_OPERATIONS, RATES, TENSOR, UNITS
from tools.kernels.machine_code import Loop, loops_of, opcode

THREADS, WARP, WARPS = 256, 32, 8
RARE = re.compile(r"D(ADD|MUL|FMA|SETP)|LDG?$|LDG?\.|STG|F2F\.F64|I2F\.F64|CALL")
"""Of a group's end, of samples that have to be converted, of tiles' places."""


class Instruction(NamedTuple):
    """One of a listing, and how often a thread executes it for a tile."""

    name: str
    times: float
    in_loop: bool
    """Whether in the loops over columns (or features)."""


class Tile(NamedTuple):
    """Instructions that a thread executes for a tile."""

    instructions: list[Instruction]
    pairs: float
    """Pairs of rows of a tile for each thread."""
    floor: dict[str, float]
    """Clocks that a pair takes a multiprocessor at least, by unit."""
    tensor: float = 0
    """Clocks of the tensor cores for a pair."""
    of_load: float | None = None
    """Clocks of shared memory for a load in the loop over columns, or as the width says."""

    def total(self, in_loop: bool = False) -> float:
        """Instructions of a pair; those of the loop over columns alone."""
        return sum(q.times for q in self.instructions if q.in_loop or not in_loop) / self.pairs

    def clocks(self) -> dict[str, float]:
        """Clocks of a multiprocessor for a pair, by unit."""
        found: Counter[str] = Counter()
        for name, times, in_loop in self.instructions:
            unit = next(unit for pattern, unit in UNITS if re.match(pattern, name))
            wavefronts = self.of_load if in_loop and self.of_load else wavefronts_of(name)
            found[unit] += times * (wavefronts if unit == "memory" else 1)
            found["issue"] += times if unit != "issue" else 0
        clocks = {unit: found[unit] / (WARP * rate * self.pairs) for unit, rate in RATES.items()}
        return {**clocks, "tensor": self.tensor}

    @property
    def bound(self) -> str:
        """The slowest unit."""
        clocks = self.clocks()
        return max(clocks, key=lambda unit: clocks[unit])

    @property
    def share(self) -> float:
        """The floor over this code's time."""
        return max(self.floor.values()) / max(self.clocks().values())


def wavefronts_of(name: str) -> int:
    """Clocks of shared memory, 128 bytes each, where every lane has an address of its own."""
    if not name.startswith(("LDS", "STS", "LDGSTS")):
        return 1
    return 4 if ".128" in name else 2 if ".64" in name else 1


def floor_of(operations: float) -> dict[str, float]:
    """Of a pair with so many operations of FP32: one exp2 besides."""
    return {"fp32": operations / (WARP * RATES["fp32"]), "exp2": 1 / (WARP * RATES["exp2"])}


def real_loops(lines: list[str]) -> list[Loop]:
    """Those of a kernel: not jumps back from code behind its end, where slow ways are."""
    ends = [at for at, line in enumerate(lines) if opcode(line) == "EXIT" and "@" not in line]
    return [
        loop
        for loop in dict.fromkeys(loops_of(lines)[0])
        if not any(loop.start <= at <= loop.end for at in ends)
    ]


def names_of(lines: list[str], loop: Loop, within: list[Loop]) -> list[str]:
    """Instructions of a loop that are of no loop in it."""
    inner = [other for other in within if loop.holds(other)]
    return [
        name
        for at in range(loop.start, loop.end + 1)
        if (name := opcode(lines[at])) and not any(q.start <= at <= q.end for q in inner)
    ]


def plain(names: list[str]) -> Counter[str]:
    """How many there are of each, without what follows a dot."""
    return Counter(name.partition(".")[0] for name in names)


def jumped_over(lines: list[str], loop: Loop) -> Iterator[range]:
    """What a forward branch within the loop jumps over."""
    labels = loops_of(lines)[1]
    for at in range(loop.start, loop.end):
        if opcode(lines[at]) == "BRA" and (label := re.search(r"\.L_x_\d+", lines[at])):
            there = labels[label.group()]
            if at < there <= loop.end:
                yield range(at + 1, there)


Trips = Callable[[list[str]], float]
"""How often a tile goes round a loop, of which these are the own instructions."""


def count(
    lines: list[str],
    columns: list[Loop],
    trips: Trips,
    *,
    packed: bool,
    times: float = 1,
    shares: Mapping[Loop, float] = MappingProxyType({}),
) -> list[Instruction]:
    """Count the loop around the loops over columns, of which a tile goes round `times`.

    Args:
        lines: Of a kernel.
        columns: Its loops over columns that a tile goes round.
        trips: Of every loop within; what is 0 is jumped over.
        packed: Whether samples are copied, and read, by sixteen bytes.
        times: How often a tile goes round.
        shares: Of the times, those that meet what a branch has around one of these loops alone.
    """
    loops = real_loops(lines)
    around = [loop for loop in loops if all(loop.holds(column) for column in columns)]
    tile = min(around, key=lambda loop: loop.end - loop.start)
    repeats = {q: trips(names_of(lines, q, loops)) for q in loops if tile.holds(q)}

    spared: set[int] = set()
    often = dict.fromkeys(range(tile.start, tile.end + 1), times)
    for body in jumped_over(lines, tile):
        alone = [share for loop, share in shares.items() if loop.start in body]
        if len(alone) == 1:
            often.update({at: min(often[at], times * alone[0]) for at in body})
        names = [name for at in body if (name := opcode(lines[at]))]
        copies = {".128" in name for name in names if name.startswith("LDGSTS")}
        reads = {".128" in name for name in names if name.startswith("LDS")}
        if any(name.startswith(("F", "H", "STS", "BAR", "LDGSTS")) for name in names):
            reads = set()  # it is no choice between ways to read
        inner = [loop for loop in repeats if loop.start in body]
        taken = packed in copies or any(repeats[loop] for loop in inner)
        rare = any(map(RARE.match, names)) or any(not repeats[loop] for loop in inner)
        if {not packed} in (copies, reads) or (rare and not taken):
            spared.update(body)

    found = []
    for at in range(tile.start, tile.end + 1):
        if (name := opcode(lines[at])) and at not in spared:
            within = [trip for loop, trip in repeats.items() if loop.start <= at <= loop.end]
            here = times * math.prod(within) if within else often[at]
            in_loop = any(column.start <= at <= column.end for column in columns)
            if here:
                found.append(Instruction(name, here, in_loop))
    return found


def by_rows(lines: list[str], d: int, *, products: bool) -> Tile:
    """A tile of a mmd_rows_kernel for one bandwidth, with gradient; d features, which it holds.

    Raises:
        ValueError: there is no such loop.
    """
    loops = real_loops(lines)
    stride = -(-d // 4) * 4
    sharing = stride // 4 if (stride // 4).bit_count() == 1 else 1
    room = (36 if d == 32 else 24) * 256 // stride
    of_tile = room // (THREADS // sharing) * (THREADS // sharing)  # as TileShape has it
    for column in loops:
        names = plain(names_of(lines, column, loops))
        # Five multiply-adds are 2^e - 1. An unrolled loop visits two pairs.
        twice, rest = divmod(names["FFMA"], 2 * d + 5)
        differences = names["FADD"] >= twice * (d + 2)
        if twice != (1 if differences else 2) or rest or differences == products:
            continue

        def trips(names: list[str], own: Counter[str] = names, twice: int = twice) -> float:
            if plain(names) == own:
                return of_tile / (WARPS * twice)
            copies = [".128" in name for name in names if name.startswith("LDGSTS")]
            if copies and all(copies):
                return of_tile * d / 4 / THREADS
            return 0

        found = count(lines, [column], trips, packed=True)  # as rows are that are one range
        # A lane has a row of its own, so that an instruction is one of 32 pairs, and all read the
        # same.
        floor = floor_of(2 * d + FLOOR_OPERATIONS)
        return Tile(found, of_tile / WARPS, floor, of_load=1)
    raise ValueError(f"no loop over columns for {d} features by products: {products}")


def on_tensor_cores(lines: list[str], d: int, numbers: str, *, packed: bool = True) -> Tile:
    """The same of a mmd_tensor_kernel, whose warp takes 16 rows and 8 columns.

    Raises:
        ValueError: there is no such loop.
    """
    half = numbers.endswith("float16")
    parts = {"tf32x3": (3, 3), "tf32": (1, 1)}.get(numbers, (1, 2))
    products = parts[0] * d // (16 if half else 8) + parts[1] * d // 8
    of_tile = 64 if d == 64 else 2048 // d
    loops = real_loops(lines)
    for column in loops:
        own = names_of(lines, column, loops)
        twice, rest = divmod(plain(own)["HMMA"], products)
        if twice == 0 or rest or any(column.holds(other) for other in loops):
            continue
        found = count(
            lines,
            [column],
            lambda names, own=own, twice=twice: of_tile / (8 * twice) if names == own else 0,
            packed=packed,
        )
        tensor = parts[0] * d / TENSOR["half" if half else "tf32"] + parts[1] * d / TENSOR["tf32"]
        floor = {**floor_of(FLOOR_OPERATIONS), "tensor": tensor}
        return Tile(found, of_tile / 2, floor, tensor)
    raise ValueError(f"no loop over columns for {d} features of {numbers}")


def of_wide_rows(lines: list[str], d: int) -> Tile:
    """The same of a mmd_wide_kernel for floats and the Gaussian, 32 rows and 128 columns.

    Raises:
        ValueError: there are no such loops.
    """
    chunks, loops = -(-d // 32), real_loops(lines)
    steps = 2 * chunks - 1
    own = {loop: names_of(lines, loop, loops) for loop in loops}
    found = [
        loop
        for loop, names in own.items()
        if plain(names)["FFMA"] == 64 and plain(names)["FADD"] >= 64  # 32 pairs and features, twice
    ]
    if len(found) != 2:
        raise ValueError("no loops over features and over columns")
    visits = [loop for loop, names in own.items() if {"MUFU", "FSET"} <= plain(names).keys()]

    def trips(names: list[str]) -> float:
        if names == own[found[0]]:  # four features at a time
            return -(-d // 4) / steps
        if names == own[found[1]]:  # eight columns
            return 8 * chunks / steps
        if any(names == own[loop] for loop in visits):
            return 1
        # Its rows, of which a warp has four, and their columns.
        if any(loop.holds(visit) for loop in loops for visit in visits if own[loop] == names):
            return 4 / steps if "F2F" in plain(names) else 1
        return 0

    shares = dict.fromkeys(found, chunks / steps) | dict.fromkeys(visits, 1 / steps)
    instructions = count(lines, found, trips, packed=True, times=steps, shares=shares)
    # All lanes read the same of rows (4 loads) and of weights (8); of columns they have their own,
    # four features (4 loads) or two (8 loads).
    of_load = (4 + 4 * 4 + 8 + 8 * 2) / (4 + 4 + 8 + 8)
    return Tile(instructions, 16, floor_of(2 * d + FLOOR_OPERATIONS), of_load=of_load)
