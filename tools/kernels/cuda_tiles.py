"""What a whole tile takes of mmd's CUDA C++ kernels: fetched, prepared, visited, added up.

Counted in the machine code of the loop over tiles: every instruction of it once, those of loops
within it as often as these go round for a tile that is full, less what such a tile jumps over: the
other ways to copy samples, to take distances, and the end of a group. Where neither way of a choice
is known to be the rare one both are counted. It is a model: latencies are not in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tools.kernels.cost import RATES, UNITS, Loop, loops_of, opcode

THREADS, WARP = 256, 32
RARE = re.compile(r"D(ADD|MUL|FMA|SETP)|LDG?$|LDG?\.|STG|F2F\.F64|I2F\.F64|CALL")
"""Of a group's end, of samples that have to be converted, of tiles' places."""

Trips = Callable[[Loop, list[str]], float]
"""How often a tile goes round a loop, of which these are the own instructions."""


class Instruction(NamedTuple):
    """One of a listing, and how often a thread executes it for a tile."""

    name: str
    times: float
    in_columns: bool
    """Whether in the loop over columns."""


class Tile(NamedTuple):
    """Instructions that a thread executes for a tile."""

    instructions: list[Instruction]
    pairs: float
    """Pairs of rows of a tile for each thread."""
    broadcast: bool
    """Whether lanes read the same in the loop over columns: a load takes one clock there."""

    def total(self, in_columns: bool = False) -> float:
        """For a pair; in the loop over columns alone."""
        of = (q.times for q in self.instructions if q.in_columns or not in_columns)
        return sum(of) / self.pairs

    def clocks(self) -> dict[str, float]:
        """Clocks of a multiprocessor for a pair, by unit."""
        found: Counter[str] = Counter()
        for name, times, in_columns in self.instructions:
            unit = next(unit for pattern, unit in UNITS if re.match(pattern, name))
            wavefronts = 1 if in_columns and self.broadcast else width_of(name)
            found[unit] += times * (wavefronts if unit == "memory" else 1)
            found["issue"] += times if unit != "issue" else 0
        return {unit: found[unit] / (WARP * rate * self.pairs) for unit, rate in RATES.items()}


def width_of(name: str) -> int:
    """Clocks of shared memory, 128 bytes each, that lanes need whose addresses follow another."""
    shared = name.startswith(("LDS", "STS", "LDGSTS"))
    return (4 if ".128" in name else 2 if ".64" in name else 1) if shared else 1


def loops(lines: list[str]) -> list[Loop]:
    """Those of a kernel; code behind its end, where shuffles of a part of a warp are, is none."""
    ends = [at for at, line in enumerate(lines) if opcode(line) == "EXIT" and "@" not in line]
    return [
        loop
        for loop in dict.fromkeys(loops_of(lines)[0])
        if not any(loop.start <= at <= loop.end for at in ends)
    ]


def own_lines(loop: Loop, within: list[Loop]) -> Iterator[int]:
    """Lines of a loop that are of no loop in it."""
    inner = [other for other in within if loop.holds(other)]
    return (
        at
        for at in range(loop.start, loop.end + 1)
        if not any(other.start <= at <= other.end for other in inner)
    )


def jumped_over(lines: list[str], loop: Loop) -> Iterator[range]:
    """What a forward branch within the loop jumps over."""
    labels = loops_of(lines)[1]
    for at in range(loop.start, loop.end):
        if opcode(lines[at]) == "BRA" and (label := re.search(r"\.L_x_\d+", lines[at])):
            there = labels[label.group()]
            if at < there <= loop.end:
                yield range(at + 1, there)


def tile_of(
    lines: list[str], column: Loop, trips: Trips, pairs: float, *, packed: bool, broadcast: bool
) -> Tile:
    """Count the loop over tiles, which is the one around the loop over columns.

    Args:
        lines: Of a kernel.
        column: Its loop over columns.
        trips: Of the loops beside it; what is 0 a tile jumps over.
        pairs: Of a tile for each thread.
        packed: Whether samples are copied by sixteen bytes.
        broadcast: See `Tile`.
    """
    all_loops = loops(lines)
    around = [loop for loop in all_loops if loop.holds(column)]
    tile = min(around, key=lambda loop: loop.end - loop.start)
    inner = [loop for loop in all_loops if tile.holds(loop)]
    own_names = {
        loop: [name for at in own_lines(loop, all_loops) if (name := opcode(lines[at]))]
        for loop in inner
    }
    times = {loop: trips(loop, own_names[loop]) for loop in inner}
    kept = [loop for loop in inner if times[loop]]

    spared: set[int] = set()
    for body in jumped_over(lines, tile):
        names = [name for at in body if (name := opcode(lines[at]))]
        copies = {".128" in name for name in names if name.startswith("LDGSTS")}
        reads = {".128" in name for name in names if name.startswith("LDS")}
        if any(name.startswith(("F", "STS", "BAR", "LDGSTS")) for name in names):
            reads = set()  # they are not what chooses between ways to read
        kept_within = packed in copies or any(loop.start in body for loop in kept)
        rare = any(RARE.match(name) for name in names) or any(
            loop.start in body and not times[loop] for loop in inner
        )
        other_way = {not packed} in (copies, reads)
        if other_way or (rare and not kept_within):
            spared.update(body)

    found = []
    for at in range(tile.start, tile.end + 1):
        name = opcode(lines[at])
        if name is None or at in spared:
            continue
        repeats = 1.0
        for loop in inner:
            if loop.start <= at <= loop.end:
                repeats *= times[loop]
        if repeats:
            found.append(Instruction(name, repeats, column.start <= at <= column.end))
    return Tile(found, pairs, broadcast)
