"""How blocks hand numbers to one another in the machine code, and how wide their loads are.

`python -m tools.kernels.sharing` prints it, of the CUDA C++ kernels in the compiled module.

A kernel's blocks leave sums in global memory and count themselves, and the last adds up what all
left. So there has to be a fence before the count on every path from a store, and what is loaded
behind the count, if others left it, has to come past L1, by a strong load: a weak one may give what
was there before. `Flow` follows every path.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tools.kernels import cuda_binary

INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
LABEL = re.compile(r"(\.L_x_\d+):")
ENDS = ("EXIT", "RET", "BRX", "JMX", "BPT")


class Instruction(NamedTuple):
    """One of a listing."""

    predicate: str | None
    name: str
    operands: str

    @property
    def loads(self) -> bool:
        """Whether from global memory to registers."""
        return self.name.startswith(("LDG.", "LD."))

    @property
    def copies(self) -> bool:
        """Whether from global memory to shared."""
        return self.name.startswith("LDGSTS")

    @property
    def stores(self) -> bool:
        """Whether to global memory."""
        return self.name.startswith(("STG.", "ST."))

    @property
    def counts(self) -> bool:
        """Whether it is an atomic operation on global memory."""
        return self.name.startswith(("ATOM.", "ATOMG.", "RED."))

    @property
    def fences(self) -> bool:
        """Whether it is a fence of the device."""
        return self.name.startswith("MEMBAR") and self.name.endswith((".GPU", ".SYS"))

    @property
    def local(self) -> bool:
        """Whether local memory is accessed: registers were too few."""
        return self.name.startswith(("LDL", "STL"))

    @property
    def weak(self) -> bool:
        """Whether it is a load that L1 may answer with what was there before."""
        return self.loads and "STRONG" not in self.name

    @property
    def width(self) -> int:
        """Bytes that a lane loads or stores; 0 of anything else."""
        if not (self.loads or self.copies or self.stores):
            return 0
        parts = self.name.split(".")
        for part, width in {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}.items():
            if part in parts:
                return width
        return 4


class Flow:
    """Instructions of a kernel, and which may follow which."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Of a listing (`cuda_binary.listings`)."""
        self.code: list[Instruction] = []
        labels: dict[str, int] = {}
        for line in lines:
            if match := LABEL.match(line):
                labels[match.group(1)] = len(self.code)
            elif match := INSTRUCTION.match(line):
                self.code.append(Instruction(*match.groups()))
        self.next: list[list[int]] = []
        for at, (predicate, name, operands) in enumerate(self.code):
            follows = []
            plain = name.split(".")[0]
            target = re.search(r"\.L_x_\d+", operands)
            if plain in ("BRA", "CALL") and target:
                follows.append(labels[target.group()])
            conditional = predicate is not None or re.match(r"!?U?P\d", operands)
            leaves = plain in ENDS or (plain == "BRA" and not conditional)
            if not (leaves and (predicate is None or plain == "BRA")) and at + 1 < len(self.code):
                follows.append(at + 1)
            self.next.append(follows)

    def reached(self, first: Iterable[int], without: Callable[[int], bool]) -> set[int]:
        """What may follow these, by paths on which nothing lies that is `without`."""
        found: set[int] = set()
        waiting = [at for at in first if not without(at)]
        while waiting:
            at = waiting.pop()
            if at in found:
                continue
            found.add(at)
            waiting += [after for after in self.next[at] if not without(after)]
        return found

    @functools.cached_property
    def counts(self) -> list[int]:
        """Where blocks are counted."""
        return [at for at, of in enumerate(self.code) if of.counts]

    @functools.cached_property
    def strong_loads(self) -> list[int]:
        """Loads past L1."""
        return [at for at, of in enumerate(self.code) if of.loads and not of.weak]

    def from_to(self, first: int, ends: Callable[[int], bool]) -> tuple[set[int], set[int]]:
        """What may follow an instruction before the first of these ends, and which end comes."""
        between = self.reached(self.next[first], ends)
        return between, {
            after for at in {first, *between} for after in self.next[at] if ends(after)
        }

    def unfenced_counts(self) -> list[int]:
        """Counts that some path comes to from a store without a fence."""
        stores = [at for at, of in enumerate(self.code) if of.stores]
        first = [after for at in stores for after in self.next[at]]
        found = self.reached(first, lambda at: self.code[at].fences)
        return [at for at in self.counts if at in found]

    def is_vote(self, at: int) -> bool:
        """Whether it is a barrier that tells all threads what one of them knows."""
        return self.code[at].name.startswith("BAR.RED")

    def unfenced_behind(self) -> list[int]:
        """Counts without a fence before the next vote, which the last block has to make."""
        return [
            count
            for count in self.counts
            if not any(self.code[at].fences for at in self.from_to(count, self.is_vote)[0])
        ]

    def behind_counts(self) -> set[int]:
        """What only the last block comes to: by way of the barrier that follows a count."""
        votes = {vote for count in self.counts for vote in self.from_to(count, self.is_vote)[1]}
        everything = self.reached([0], lambda at: False)
        return everything - self.reached([0], lambda at: at in votes)

    def weak_loads_behind_counts(self) -> list[int]:
        """Loads of the last block that L1 may answer."""
        return sorted(at for at in self.behind_counts() if self.code[at].weak)

    def wide_share(self) -> float:
        """Of the instructions that read what is there before the launch, those of 16 bytes."""
        loads = [of for of in self.code if of.copies or of.weak]
        return sum(of.width == 16 for of in loads) / len(loads) if loads else 1.0


def main() -> None:
    """Print what a table has room for."""
    heading = ("counts", "strong loads", "weak ones behind them", "of 16 bytes", "blocks")
    print("| kernel | architecture |", " | ".join(heading), "|")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for kernel in sorted(cuda_binary.kernels()):
        flow = Flow(cuda_binary.listings(kernel.architecture)[kernel.name])
        cells = (
            kernel.name, kernel.architecture, len(flow.counts), len(flow.strong_loads),
            len(flow.weak_loads_behind_counts()), f"{flow.wide_share():.0%}", kernel.blocks,
        )  # fmt: skip
        print("|", *(f"{cell} |" for cell in cells))


if __name__ == "__main__":
    main()
