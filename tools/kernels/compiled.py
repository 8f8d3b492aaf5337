"""What Triton's compiler makes of the kernels, without a GPU: `python -m tools.kernels.compiled`.

For every tile that a launch can pick, and every way its kernel can be called: registers, what
spilled, shared memory and tensor-core instructions, as JSON lines. Families besides the Gaussian
come with a kernel's first tile alone. TARGET arguments are compute capabilities (80, 90, 100) or
AMD architectures (gfx942); all by default. --plain takes of each tile the plainest ways alone.
TRITON_INTERPRET must not be set: the interpreter compiles nothing.

--record writes the rows, with the version of Triton whose compiler made them, to
`triton-compiled.csv` (`make tiles` does so at its end). A test compares with that file
where the version is the same. Of the targets but 9.0 it holds the plainest ways: all ways of all
take ten minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cgm_fast.ops.cgm_loss import triton as cgm_launch
from cgm_fast.ops.cgm_loss import triton_kernels as cgm
from cgm_fast.ops.kernel_product import triton_kernels as kernel_product
from cgm_fast.ops.mmd import triton as mmd_launch
from cgm_fast.ops.mmd import triton_finish, triton_hvp, triton_tiles
from cgm_fast.ops.mmd import triton_kernels as mmd
from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.ops.prototype_margin import triton_kernels as margin
from cgm_fast.ops.triton import distances, launch, pack
from cgm_fast.ops.triton.tiles import MOST_FEATURES, ROWS, Blocks, Key, table
from tools.kernels import machine_code

FIRST_PASS = {
    "mmd_fwd": ("",),
    "mmd_general": (", weights", ", bandwidths", ", bandwidths, trained"),
}
"""The kernels of `Key` that are MMD's first pass, and the ways it is called with their tiles."""
SCALES = 3
"""Bandwidths where there are several."""
KINDS = ("half", "tf32", "float32", "float64")
TARGETS = ("80", "90", "100", "gfx942")
SHARED = {"8.0": 99 << 10, "9.0": 227 << 10, "10.0": 227 << 10, "amd": 64 << 10}
"""Bytes that one program may have; 8.0 also stands for 8.6, 8.9 and 12.0, which have the least."""

RECORD = Path(__file__).parent / "triton-compiled.csv"
RECORDED = (
    "triton", "target", "kernel", "features", "numbers", "precision", "tile", "registers",
    "spilled", "in_loop", "shared", "programs", "copies", "tensor",
)  # fmt: skip

F16, F32, F64 = torch.float16, torch.float32, torch.float64
TYPES = {F16: "fp16", torch.bfloat16: "bf16", F32: "fp32", F64: "fp64"}
INTEGERS = {
    "labels": "i64", "assignment": "i64", "own": "i32", "within": "i32", "counter": "i32",
    "tiles": "i32", "of_groups": "i32", "of_splits": "i32", "far": "i32",
}  # fmt: skip
DOUBLES = {
    "variance_sums", "block_sums", "partials", "losses", "relation", "relation_dot", "masses",
    "small", "near", "far_sums", "slope_sums", "inside_sums",
}  # fmt: skip
COUNTS = {
    "n", "m", "k", "d", "b", "n_pad", "k_pad", "total", "unit", "features", "span", "splits",
    "groups", "scales", "variance_item", "relation_item", "mass_item", "first_block", "some_blocks",
    "row_begin", "row_end", "row_blocks", "blocks", "parts", "chunks",
    "x_item", "x_row", "x_feature", "y_item", "y_row", "y_feature",
    "r_row", "r_feature", "g_row", "g_feature", "noise_sample", "noise_row", "noise_feature",
    "p", "summed", "width", "value_total", "value_begin", "product_splits",
    "c", "w", "first_row", "first_column", "left_rows", "right_rows", "all_rows", "ratios_item",
    "small_item", "near_item", "near_scale",
}  # fmt: skip


PADDED = {
    "n_pad", "k_pad", "total", "unit", "features", "span", "width", "value_total", "value_begin",
    "w",
}  # fmt: skip
"""Sizes that always are multiples of 16, which Triton finds out at a launch."""


class Variant(NamedTuple):
    """A kernel with its constants."""

    name: str
    function: Any
    constants: dict[str, Any]
    blocks: Blocks
    held: launch.Numbers


def target_of(name: str) -> tuple[GPUTarget, str]:
    """Triton's target and the table's device."""
    if name.isdigit():
        return GPUTarget("cuda", int(name), 32), f"{int(name) // 10}.{int(name) % 10}"
    return GPUTarget("hip", name, 64), "amd"


def modes(numbers: str, device: str, kernel: str = "") -> list[launch.Numbers]:
    """How numbers of a kind are held: at "highest" and, where it differs, at "high". MMD's first
    pass has tiles of its own for that."""
    compute, rows = (F64, F64) if numbers == "float64" else (F32, F32)
    if numbers == "half":
        rows = F16
    if device == "amd" or numbers == "float64":
        return [launch.Numbers(compute, rows, "ieee")]
    exact = launch.Numbers(compute, rows, "tf32x3", parts=2 if numbers == "half" else 0)
    fast = launch.Numbers(
        compute, rows, "tf32", rows == F32, 1, launch.FAST_FAR, launch.FAST_CANCELLED
    )
    if numbers == "tf32":
        return [fast]
    return [exact] if numbers == "float32" and kernel in FIRST_PASS else [exact, fast]


def without_parts(held: launch.Numbers, features: int = 16) -> dict[str, None]:
    """Of a kernel that takes rows in parts, where they are in none."""
    return {} if held.in_parts(features) else dict.fromkeys(pack.Parts._fields)


def variants(key: Key, blocks: Blocks) -> Iterator[Variant]:
    """A tile's kernels in every way they can be called."""
    for held in modes(key.numbers, key.device, key.kernel):
        tile = {"ROWS": blocks.rows, "COLUMNS": blocks.columns, "FEATURES": blocks.features}
        tile["PRECISION"] = held.precision
        if key.kernel in FIRST_PASS:
            visit = {**tile, "TURN": 2048, "WIDE": key.features == 0, "GRADIENT": True}
            visit |= {
                **mmd_launch.chunks_of(blocks),
                "NEAR": True,
                "PARTS": held.parts,
                "FAR": held.far,
            }
            visit |= {"CANCELLED": held.cancelled}
            visit |= {"KERNEL": "gaussian", "EXACT": False}
            for way in FIRST_PASS[key.kernel]:
                several = "bandwidths" in way
                constants = {**visit, **without_parts(held, blocks.sums), "SEVERAL": several}
                constants |= mmd_launch.room_for(SCALES if several else 1)
                if "weights" not in way:
                    constants["fars"] = None
                if "trained" not in way:
                    constants["variance_sums"] = None
                if several:
                    held = launch.with_bandwidths(held, key.device)
                    constants["PRECISION"] = held.precision
                yield Variant("mmd_fwd_kernel" + way, mmd.mmd_fwd_kernel, constants, blocks, held)
        elif key.kernel == "mmd_hvp":
            for way in ("", ", trained"):
                sums = {} if way else {"block_sums": None, "variance_sums": None}
                constants = {**tile, **sums, "KERNEL": "gaussian"}
                function = triton_hvp.mmd_hvp_kernel
                yield Variant("mmd_hvp_kernel" + way, function, constants, blocks, held)
        elif key.kernel == "kernel_product":
            yield from kernel_product_variants(key, blocks, held)
        else:
            visit = {**tile, "EXACT": held.precision != "tf32", "MARGIN": margin.MARGIN}
            visit["NEGATIVE_SCALE"] = margin.NEGATIVE_SCALE
            function = margin.prototype_margin_columns_kernel
            yield Variant("prototype_margin_columns_kernel", function, visit, blocks, held)
            visit |= {"SCALE": margin.SCALE, "labels": None}
            function = margin.prototype_margin_rows_kernel
            yield Variant("prototype_margin_rows_kernel", function, visit, blocks, held)


def kernel_product_variants(key: Key, blocks: Blocks, held: launch.Numbers) -> Iterator[Variant]:
    """A tile's passes: for products alone, for derivatives alone, or, where both are narrow, for
    both; with as many values at once as they may have."""
    visit = {"ROWS": blocks.rows, "COLUMNS": blocks.columns, "FEATURES": blocks.features}
    visit |= {"TURN": 2048, "WIDE": key.features == 0, "PARTS": held.parts, "FAR": held.far}
    visit |= {"KERNEL": "gaussian", "EXACT": False}
    product = {"VALUES": 64, "CHUNKED": False, "slopes": None, "weighted_sums": None}
    derivatives = {"VALUES": 32, "CHUNKED": False, "products": None}
    ways = {"": product, ", bandwidths": product, ", derivatives": derivatives}
    ways[", derivatives, trained"] = {**derivatives, "CHUNKED": True}
    if key.features in (16, 32):
        ways[", both, trained"] = {"VALUES": 48 - key.features, "CHUNKED": False}
    for way, chosen in ways.items():
        trained = "trained" in way
        several = trained or "bandwidths" in way
        so = launch.with_bandwidths(held, key.device) if several else held
        constants = {**visit, **chosen, "SEVERAL": several, "PRECISION": so.precision}
        if not trained:
            constants["variance_sums"] = None
        function = kernel_product.kernel_product_kernel
        yield Variant("kernel_product_kernel" + way, function, constants, blocks, so)


def family_variants(key: Key, blocks: Blocks) -> Iterator[Variant]:
    """A tile's kernels with each of the other families."""
    for variant in variants(key, blocks):
        general = variant.name in (
            "mmd_fwd_kernel, bandwidths", "mmd_hvp_kernel",
            "kernel_product_kernel, derivatives, trained",
        )  # fmt: skip
        if not general or variant.held.precision == "tf32":
            continue
        for kernel, family in FAMILIES.items():
            chosen = {**variant.constants, "KERNEL": kernel}
            if key.kernel == "mmd_general":
                chosen |= {"EXACT": family.order < 2, "NEAR": family.vanishes}
            elif key.kernel == "kernel_product":
                chosen["EXACT"] = family.order < 2
            elif family.order < 2:
                continue
            if kernel not in ("gaussian", "matern12"):  # which is the laplacian's other name
                name = f"{variant.name.partition(',')[0]}, {kernel}"
                yield variant._replace(name=name, constants=chosen)


def other_variants(numbers: str, device: str) -> Iterator[Variant]:
    """Kernels whose tile is no choice."""
    for held in modes(numbers, device):
        blocks = Blocks(
            ROWS, ROWS, MOST_FEATURES, MOST_FEATURES, 4, 3
        )  # Triton's own warps and stages
        tile = {"ROWS": ROWS, "FEATURES": MOST_FEATURES}
        for way in ("", ", of two"):  # tensors, where the MMD's rows are one
            one = {} if way else {"y": None}
            summing = {**tile, "ROWS": 64, **one}
            yield Variant("sum_kernel" + way, pack.sum_kernel, summing, blocks, held)
            packing = {**tile, "PARTS": 64, "TF32": held.rounded, **one, **without_parts(held)}
            yield Variant("pack_kernel" + way, pack.pack_kernel, packing, blocks, held)
        finish = {**tile, "BLOCKS": 256, "PARTS": held.parts}
        if not held.in_parts(16):
            finish["row_rests"] = None
        function = triton_finish.mmd_finish_kernel
        yield Variant("mmd_finish_kernel, weights", function, finish, blocks, held)
        yield Variant("mmd_finish_kernel", function, {**finish, "fars": None}, blocks, held)
        if held.rows == held.compute:
            finish = {"COLUMNS": ROWS, "FEATURES": MOST_FEATURES, "BLOCKS": 256}
            finish["SCALE"] = margin.SCALE
            function = kernel_product.kernel_product_finish_kernel
            yield Variant("kernel_product_finish_kernel", function, tile, blocks, held)
            function = margin.prototype_margin_finish_kernel
            yield Variant("prototype_margin_finish_kernel", function, finish, blocks, held)
            yield from cgm_loss_variants(held)
            yield from between_products(held)


def between_products(held: launch.Numbers) -> Iterator[Variant]:
    """What matrix products of another library have between them, and the families of it."""
    blocks = Blocks(triton_tiles.ROWS, triton_tiles.COLUMNS, 0, 0, triton_tiles.WARPS, 3)
    tile = {"ROWS": blocks.rows, "COLUMNS": blocks.columns}
    yield Variant("distances_kernel", distances.distances_kernel, tile, blocks, held)
    function = triton_tiles.mmd_tile_kernel
    every = {**tile, "VANISHES": True, "EXACT": False, "ROUND": held.rounded, "KERNEL": "gaussian"}
    plain = dict.fromkeys(("weights", "far_sums", "inside_sums", "by_h"))
    yield Variant("mmd_tile_kernel", function, {**every, **plain}, blocks, held)
    yield Variant("mmd_tile_kernel, everything", function, every, blocks, held)
    for kernel, family in FAMILIES.items() if not held.rounded else ():
        if kernel not in ("gaussian", "matern12"):
            chosen = {"KERNEL": kernel, "VANISHES": family.vanishes, "EXACT": family.order < 2}
            yield Variant(
                f"mmd_tile_kernel, {kernel}", function, {**every, **plain, **chosen}, blocks, held
            )


def cgm_loss_variants(held: launch.Numbers) -> Iterator[Variant]:
    """The launches of cgm_loss around the MMD's."""
    blocks = cgm_launch.BLOCKS
    tile = {"ROWS": blocks.rows, "COLUMNS": blocks.columns, "FEATURES": blocks.features}
    tile["PRECISION"] = held.precision
    assign = {**tile, "TF32": held.rounded, "labels": None, "NEGATIVE_SCALE": cgm.NEGATIVE_SCALE}
    assign |= {"SIGMA": cgm.SIGMA, "PRIOR_SIGMA": cgm.PRIOR_SIGMA, "MARGIN": cgm.MARGIN}
    assign |= without_parts(held)
    yield Variant("cgm_assign_kernel", cgm.cgm_assign_kernel, assign, blocks, held)
    finish = {**tile, "PARTS": held.parts, "OF_PRIOR": True, "MORE": cgm_launch.MORE}
    finish["BLOCKS"] = cgm_launch.MOST_ROWS // blocks.rows
    finish |= {} if held.in_parts(16) else {"row_rests": None}
    finish["PRECISION"] = "ieee" if held.precision == "ieee" else "tf32x3"
    finish |= {"MMD_WEIGHT": cgm.MMD_WEIGHT, "MARGIN_WEIGHT": cgm.MARGIN_WEIGHT}
    yield Variant("cgm_finish_kernel", cgm.cgm_finish_kernel, finish, blocks, held)


def compiled(variant: Variant, target: GPUTarget) -> Any:
    """A kernel in machine code for a target."""
    function, held = variant.function, variant.held
    signature = {}
    for name in function.arg_names:
        if name in variant.constants:
            signature[name] = "constexpr"
        elif name in COUNTS:
            signature[name] = "i32"
        else:
            kinds = {**INTEGERS, **dict.fromkeys(DOUBLES, "fp64"), "rows": TYPES[held.rows]}
            if function in (pack.sum_kernel, pack.pack_kernel):
                kinds["largest"] = "i32" if held.compute == F32 else "i64"  # bits of a number
            signature[name] = "*" + kinds.get(name, TYPES[held.compute])
    options = variant.blocks.options(torch.device(target.backend))
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(signature.items())
        if name in PADDED or kind.startswith("*")
    }
    source = ASTSource(
        fn=function, signature=signature, constexprs=variant.constants, attrs=aligned
    )
    return triton.compile(source, target=target, options={**options, **launch.FUSED})


def nvidia_tool(name: str) -> Path | None:
    """A program of the CUDA toolkit that Triton brings along."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return tool if tool.exists() else None


def resources(kernel: Any) -> tuple[int | None, int | None]:
    """Registers, and bytes or registers that spilled; None where the tools are missing."""
    if "amdgcn" in kernel.asm:
        found = [
            re.search(rf"\.{name}:\s+(\d+)", kernel.asm["amdgcn"])
            for name in ("vgpr_count", "vgpr_spill_count")
        ]
        registers, spilled = (int(match.group(1)) if match else None for match in found)
        return registers, spilled
    tool = nvidia_tool("cuobjdump")
    if tool is None:
        return None, None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert match, report
    return int(match.group(1)), int(match.group(2))


def programs(warps: int, registers: int | None, shared: int) -> int | None:
    """How many a multiprocessor of compute capability 9.0 holds at once."""
    if registers is None:
        return None
    of_warp = -(-registers * 32 // 256) * 256
    return min(65536 // (of_warp * warps), SHARED["9.0"] // (shared + 1024), 64 // warps)


def spilled_in_loop(kernel: Any, wide: bool) -> int | None:
    """Accesses to what spilled in the loop over columns that loads ahead; None without such.

    What is spilled outside costs nothing to speak of: it is what a turn by differences needs.
    """
    tool = nvidia_tool("nvdisasm")
    if tool is None or "cubin" not in kernel.asm:
        return None
    lines = machine_code.listing(kernel.asm["cubin"], tool)
    loop = machine_code.column_loop(lines, wide)
    return None if loop is None else machine_code.local_accesses(lines[loop.start : loop.end + 1])


def describe(variant: Variant, target: GPUTarget) -> dict[str, Any]:
    """Compile one kernel and say what it takes, and how long the compiler did."""
    start = time.process_time()
    kernel = compiled(variant, target)
    seconds = time.process_time() - start
    registers, spilled = resources(kernel)
    wide = bool(variant.constants.get("WIDE"))
    text = kernel.asm.get("ptx", kernel.asm.get("amdgcn", ""))
    return {
        "target": str(target.arch),
        "kernel": variant.name,
        "numbers": TYPES[variant.held.rows],
        "precision": variant.held.precision,
        "tile": list(variant.blocks),
        "registers": registers,
        "spilled": spilled,
        "in_loop": spilled_in_loop(kernel, wide) if spilled else 0,
        "shared": kernel.metadata.shared,
        "programs": programs(variant.blocks.warps, registers, kernel.metadata.shared),
        "copies": len(re.findall(r"cp\.async\.c[ag]\.shared", text)),
        "seconds": round(seconds, 2),
        "tensor": len(re.findall(r"wgmma\.mma|mma\.sync|tcgen05\.mma|mfma", text)),
    }


def rows(name: str, plain: bool, kinds: Collection[str] = KINDS) -> Iterator[dict[str, Any]]:
    """What every kernel for a target takes, for these kinds of numbers.

    With `plain`, of every tile but a kernel's first the plainest way alone.
    """
    target, device = target_of(name)
    seen = set()
    for key, blocks in table().items():
        if key.device != device or key.numbers not in kinds:
            continue
        first = key.kernel not in seen
        seen.add(key.kernel)
        for variant in variants(key, blocks):
            of_several = "," in variant.name or variant.held.precision == "tf32"
            if first or not (plain and of_several):
                yield {"features": key.features, **describe(variant, target)}
        for variant in family_variants(key, blocks) if first else ():
            yield {"features": key.features, **describe(variant, target)}
    for numbers in kinds:
        if numbers == "tf32":
            continue  # with float32
        for variant in other_variants(numbers, device):
            yield {"features": None, **describe(variant, target)}


def name_of(row: dict[str, Any]) -> tuple[str, ...]:
    """What a row is about, as text: the same from the compiler and from the file."""
    return tuple("" if row[column] is None else str(row[column]) for column in RECORDED[1:-7])


def record() -> None:
    """Write what the compiler at hand makes of the kernels in place of what it made before; what
    other versions made stays."""
    with RECORD.open(newline="") as file:
        kept = [row for row in csv.DictReader(file) if row["triton"] != triton.__version__]
    with RECORD.open("w", newline="") as file:
        writer = csv.DictWriter(file, RECORDED, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        for target in TARGETS:
            for row in rows(target, plain=target != "90"):
                writer.writerow({"triton": triton.__version__, **row})


def main() -> None:
    """Print a line for each variant of each tile, or write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=TARGETS)
    parser.add_argument("--plain", action="store_true", help="of most tiles one way alone")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, help="of numbers")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    given = parser.parse_args()
    if given.record:
        return record()
    for name in given.targets:
        for row in rows(name, given.plain, given.kinds):
            print(json.dumps(row), flush=True)
    return None


if __name__ == "__main__":
    main()
