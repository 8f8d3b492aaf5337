"""Write the table of Triton's tiles: `python -m tools.kernels.tiles [TARGET ...]` (`make tiles`).

For each kernel, kind of number, number of features and device the candidates are tried in turn.
One counts only if none of its variants spills (MMD's first pass: in its loop over columns) and all
fit the device's shared memory. Of these the
first is taken, for the candidates stand in the order in which a cost model prefers them; where a
GPU of the row's kind is at hand they are timed, and the fastest is.
"""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton

import cgm_fast
from cgm_fast.ops.triton.tiles import (
    FEATURES,
    OF_TILES,
    TABLE,
    WIDE,
    Blocks,
    Key,
    device_key,
    numbers_of,
    table,
)
from cgm_fast.testing import prototypes, samples
from tools.kernels.compiled import (
    F16,
    F32,
    F64,
    FIRST_PASS,
    SHARED,
    TARGETS,
    describe,
    target_of,
    variants,
)

KERNELS = {
    "mmd_fwd": ("float32", "tf32", "half", "float64"),
    "mmd_general": ("float32", "tf32", "half", "float64"),
    "mmd_hvp": ("float32", "float64"),
    "kernel_product": ("float32", "float64"),
    "prototype_margin": ("float32", "float64"),
}
DTYPES = {"half": F16, "tf32": F32, "float32": F32, "float64": F64}
COLUMNS = (*Key._fields, *OF_TILES, "triton", "chosen")


def candidates(key: Key) -> Iterator[Blocks]:
    """Tiles for a row of the table, best first.

    More rows mean fewer visits to the columns in L2, more warps fewer registers in each, and two
    programs on a multiprocessor compute while another waits; stages overlap loads with arithmetic.
    A tile of the Hessian-vector product, or a wide one, holds a part of the features.
    """
    wide = key.features == WIDE
    held, sums = (key.features,), key.features
    if wide:
        held = (32, 16)
    elif key.features > 64:  # less in parts would be read again for every tile
        held = (key.features, 32)
    if key.numbers == "float64":
        sizes = [(32, 32, 4, 1), (32, 32, 8, 1), (32, 16, 4, 1), (16, 16, 4, 1)]
    elif key.kernel in FIRST_PASS and key.features > 64:
        sizes = [(128, 32, 8, 1), (64, 32, 8, 1)]
    elif key.kernel in FIRST_PASS and not wide:
        sizes = [(128, 32, 8, 2), (64, 32, 8, 2)] if key.features <= 32 else []
        sizes += [(128, 32, 8, 1), (64, 32, 8, 1), (64, 16, 8, 1), (64, 32, 4, 1), (32, 32, 4, 1)]
    elif key.kernel in (*FIRST_PASS, "kernel_product"):
        columns = (64, 32) if wide else (32,)
        sizes = [(128, c, 8, 1) for c in columns]
        sizes += [(64, c, w, 1) for w in (4, 8) for c in columns] + [(32, 32, 4, 1)]
    else:
        sizes = [(64, 32, 4, 1), (64, 32, 8, 1), (32, 32, 4, 1), (32, 32, 8, 1), (32, 16, 4, 1)]
    for features in held:
        for rows, columns, warps, programs in sizes:
            for stages in (3, 2, 1):
                yield Blocks(rows, columns, features, sums or features, warps, stages, programs)


def fits(key: Key, blocks: Blocks) -> bool:
    """Whether all variants of a tile compile, without spills, within the shared memory."""
    target = target_of(next(name for name in TARGETS if target_of(name)[1] == key.device))[0]
    for variant in reversed(list(variants(key, blocks))):  # what takes most registers first
        try:
            found = describe(variant, target)
        except (triton.runtime.errors.OutOfResources, RuntimeError) as error:
            print(f"{key} {blocks}: {error}", file=sys.stderr)
            return False
        # None: there is no such loop, or no tool that shows it.
        in_loop = found["spilled"] if found["in_loop"] is None else found["in_loop"]
        spills = in_loop if key.kernel in FIRST_PASS else found["spilled"]
        if spills or found["shared"] > SHARED[key.device] // blocks.programs:
            return False
    return True


def work(key: Key) -> Callable[[], Any]:
    """A call that spends its time in a row's kernel."""
    d, dtype = key.features or 256, DTYPES[key.numbers]
    if key.kernel == "prototype_margin":
        r, g, _ = prototypes(1 << 16, 512, d, dtype=dtype, device="cuda")
        leaves = [value.requires_grad_() for value in (r, g)]

        def loss() -> torch.Tensor:
            return cgm_fast.prototype_margin(*leaves, backend="triton").loss
    else:
        n = 1 << 12 if key.numbers == "float64" else 1 << 14
        x, y = samples(n, n, d, dtype=dtype, device="cuda")
        leaves = [value.requires_grad_() for value in (x, y)]

        bandwidth = [1.0, 2.0, 4.0] if key.kernel == "mmd_general" else None

        def loss() -> torch.Tensor:
            return cgm_fast.mmd(*leaves, bandwidth=bandwidth, backend="triton")

    if key.kernel == "kernel_product":
        values = torch.randn(n, 32, dtype=dtype, device="cuda")
        product = cgm_fast.kernel_product(*leaves, values, backend="triton")
        return lambda: torch.autograd.grad(product, leaves, values, retain_graph=True)
    if key.kernel != "mmd_hvp":
        return loss
    gradients = torch.autograd.grad(loss(), leaves, create_graph=True)
    product = sum(part.square().sum() for part in gradients)
    return lambda: torch.autograd.grad(product, leaves, retain_graph=True)


def fastest(key: Key, found: list[Blocks]) -> tuple[Blocks, float]:
    """The tile whose call takes the least time, in milliseconds, on the GPU at hand."""
    tiles = table()
    before, best = tiles.get(key), (found[0], math.inf)
    for blocks in found:
        tiles[key] = blocks
        median = triton.testing.do_bench(work(key), quantiles=[0.5])
        best = min(best, (blocks, median), key=lambda pair: pair[1])
    if before is not None:
        tiles[key] = before
    return best


def choose(key: Key) -> tuple[Blocks, str] | None:
    """A row's tile and what it was chosen by; None where all features do not fit at once."""
    timed = torch.cuda.is_available() and device_key(torch.device("cuda")) == key.device
    found = []
    for blocks in candidates(key):
        if fits(key, blocks):
            found.append(blocks)
            if not timed:
                return blocks, "compiled"
    if not found:
        return None
    blocks, median = fastest(key, found)
    return blocks, f"{median:.3g} ms on {torch.cuda.get_device_name()}"


def keys(target: str) -> Iterator[Key]:
    """The table's rows for a target."""
    device = target_of(target)[1]
    for kernel, kinds in KERNELS.items():
        for numbers in kinds:
            if numbers == "tf32" and device == "amd":
                continue
            for features in (*FEATURES, WIDE):
                # Sums of more would take too many registers beside what three products do.
                if features <= 64 or (kernel in FIRST_PASS and numbers in ("half", "tf32")):
                    yield Key(kernel, numbers, features, device)


def main() -> None:
    """Choose every row of the targets named, or of all, for the Triton at hand; write the file when
    all are there.

    Then a process that has read the new file records what the compiler makes of its tiles.
    """
    targets = sys.argv[1:] or TARGETS
    version = ".".join(map(str, numbers_of(triton.__version__)))
    rows = []
    for target in targets:
        for key in keys(target):
            chosen = choose(key)
            print(key, chosen, flush=True)
            if chosen is not None:
                rows.append((*key, *chosen[0], version, chosen[1]))
            elif key.features == WIDE:
                raise SystemExit(f"no tile for {key}")
    devices = {target_of(name)[1] for name in targets}
    with TABLE.open(newline="") as file:
        kept = [
            tuple(row.values()) for row in csv.DictReader(file)
            if row["device"] not in devices or row["triton"] != version
        ]  # fmt: skip
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(kept + rows)
    subprocess.run([sys.executable, "-m", "tools.kernels.compiled", "--record"], check=True)


if __name__ == "__main__":
    main()
