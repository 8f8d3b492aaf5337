"""What a pair costs between matrix products: `python -m tools.kernels.tile_cost`.

The kernel of `mmd`'s matrix-product route (ops/mmd/triton_tiles.py) is compiled for compute
capability 9.0, and the instructions of its loop over rows counted, but for the loop over features
within it, which only data that is many bandwidths wide takes. A model, as in cost.py.
"""

from __future__ import annotations

import re
from collections import Counter

from tools.kernels.compiled import between_products, compiled, modes, target_of
from tools.kernels.cost import RATES, UNITS
from tools.kernels.machine_code import Loop, listing, loops_of, opcode


def instructions(lines: list[str]) -> Counter[str]:
    """Of the outermost loop, by unit."""
    loops, _ = loops_of(lines)
    outer = max(loops, key=lambda loop: loop.end - loop.start)

    def takes_differences(loop: Loop) -> bool:
        return outer.holds(loop) and not any(
            "SHFL" in line for line in lines[loop.start : loop.end]
        )

    spared = [loop for loop in loops if takes_differences(loop)]
    count: Counter[str] = Counter()
    for number in range(outer.start, outer.end + 1):
        name = opcode(lines[number])
        if name is None or any(loop.start <= number <= loop.end for loop in spared):
            continue
        count[next(unit for pattern, unit in UNITS if re.match(pattern, name))] += 1
    return count


def main() -> None:
    """Print a line for each precision."""
    for held in modes("float32", "9.0"):
        for variant in between_products(held):
            if variant.name != "mmd_tile_kernel":
                continue
            kernel, blocks = compiled(variant, target_of("90")[0]), variant.blocks
            count = instructions(listing(kernel))
            pairs = blocks.rows * blocks.columns
            every = sum(count.values())
            clocks = every * blocks.warps / RATES["issue"] / pairs
            print(
                f"{held.precision:7} {every * blocks.warps * 32 / pairs:5.1f} instructions a pair, "
                f"{1000 * clocks:.0f} thousandths of a multiprocessor's clock; of them "
                + ", ".join(f"{unit} {share / every:.0%}" for unit, share in count.most_common())
            )


if __name__ == "__main__":
    main()
