"""Machine code as nvdisasm lists it: instructions and loops."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple


class Loop(NamedTuple):
    """Lines [start, end] of a listing that run again and again."""

    start: int
    end: int

    def holds(self, other: Loop) -> bool:
        """Whether the other lies within it."""
        return self != other and self.start <= other.start and other.end <= self.end


def listing(cubin: bytes, tool: Path) -> list[str]:
    """The machine code of a kernel, line by line; `tool` is nvdisasm."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([str(tool), "-c", file.name], capture_output=True, text=True)
    return done.stdout.splitlines()


def opcode(line: str) -> str | None:
    """The instruction of a line, without its predicate and operands."""
    match = re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line)
    return match.group(1) if match else None


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


def column_loop(lines: list[str], wide: bool = False) -> Loop | None:
    """The loop over columns of a kernel that takes distances from products and loads tiles ahead.

    A loop over features may lie within it, and with `wide` there are two. What lies around it also
    has the loop that takes distances from differences, with a product of its own.
    """
    loops = loops_of(lines)[0]
    multiply = [loop for loop in loops if names_in(lines, loop) & {"HMMA", "HGMMA", "DMMA"}]
    inner = [
        loop
        for loop in sorted(multiply)
        if "LDGSTS" in names_in(lines, loop) and not any(loop.holds(other) for other in multiply)
    ]
    if len(inner) <= wide:
        return None
    if wide:
        around = [loop for loop in multiply if all(loop.holds(part) for part in inner[:2])]
        return min(around, key=lambda loop: loop.end - loop.start, default=None)
    around = [
        loop
        for loop in multiply
        if loop.holds(inner[0])
        and all(
            other == inner[0] or other.holds(inner[0]) for other in multiply if loop.holds(other)
        )
    ]
    return max(around, key=lambda loop: loop.end - loop.start, default=inner[0])


def names_in(lines: list[str], loop: Loop) -> set[str]:
    """Instructions of a loop, without what is behind a dot."""
    return {
        name.partition(".")[0]
        for line in lines[loop.start : loop.end + 1]
        if (name := opcode(line))
    }


def local_accesses(lines: list[str]) -> int:
    """Loads and stores of what spilled."""
    return sum((opcode(line) or "").startswith(("LDL", "STL")) for line in lines)
