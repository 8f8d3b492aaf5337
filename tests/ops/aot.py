"""Compile the Triton kernels without a GPU: `python tests/ops/aot.py [TARGET ...]`.

For every tile that the launchers can pick: registers, stack (what spilled), shared memory and
tensor-core instructions, as JSON lines. Targets are compute capabilities (80, 90, 100) or AMD
architectures (gfx942). TRITON_INTERPRET must not be set: the interpreter compiles nothing.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cgm_fast.ops import triton_launch as launch
from cgm_fast.ops import triton_pack
from cgm_fast.ops.mmd import triton_kernels as mmd
from cgm_fast.ops.mmd import triton_second
from cgm_fast.ops.prototype_margin import triton_kernels as margin

INTEGERS = {"labels": "i64", "assignment": "i64", "own": "i32", "within": "i32", "counter": "i32"}
DOUBLES = {"p_sums", "partials", "losses"}
COUNTS = {
    "n", "m", "k", "d", "n_pad", "k_pad", "total", "total_rows", "features", "span", "splits",
    "x_splits", "scales", "variance_item", "first_block", "some_blocks", "row_begin", "row_end",
    "row_blocks", "blocks", "parts", "x_item", "x_row", "x_feature", "y_item", "y_row", "y_feature",
}  # fmt: skip


def kernels(blocks, wide, dtype, precision):
    """Name, function and constants of each kernel that meets rows with columns."""
    tile = {"ROWS": blocks.rows, "COLUMNS": blocks.columns, "FEATURES": blocks.features}
    tile["PRECISION"] = precision
    visit = {**tile, "TURN": 2048, "WIDE": wide, "GRADIENT": True, "SEVERAL": False}
    visit |= {"WITH_P": False, "KERNEL_WEIGHTS": mmd.KERNEL_WEIGHTS, "FAR": mmd.FAR}
    yield "mmd_fwd_kernel", mmd.mmd_fwd_kernel, visit, blocks
    every = {**visit, "SEVERAL": True, "WITH_P": True}
    yield "mmd_fwd_kernel, bandwidths", mmd.mmd_fwd_kernel, every, blocks
    second = launch.choose_second(dtype)
    features = min(second.features, blocks.features)
    constants = {"ROWS": second.rows, "COLUMNS": second.columns, "FEATURES": features}
    constants |= {"WITH_P": False, "PRECISION": precision}
    yield "mmd_bwd_kernel", triton_second.mmd_bwd_kernel, constants, second
    rows = {**tile, "EXACT": precision != "tf32", "MARGIN": margin.MARGIN}
    rows["NEGATIVE_SCALE"] = margin.NEGATIVE_SCALE
    by_columns = margin.prototype_margin_columns_kernel
    yield "prototype_margin_columns_kernel", by_columns, rows, blocks
    by_rows = margin.prototype_margin_rows_kernel
    rows = {**rows, "SCALE": margin.SCALE, "labels": None}
    yield "prototype_margin_rows_kernel", by_rows, rows, blocks


def other_kernels(blocks):
    """Those without products, by their tile."""
    tile = {"ROWS": 32, "FEATURES": blocks.features}
    yield "sum_kernel", triton_pack.sum_kernel, tile, blocks
    yield "pack_kernel", triton_pack.pack_kernel, {**tile, "PARTS": 64}, blocks
    finish = {**tile, "GRADIENT": True, "BLOCKS": 256, "CROSS_SCALE": mmd.CROSS_SCALE}
    finish["KERNEL_WEIGHTS"] = mmd.KERNEL_WEIGHTS
    yield "mmd_finish_kernel", mmd.mmd_finish_kernel, finish, blocks
    finish = {"COLUMNS": 16, "FEATURES": blocks.features, "BLOCKS": 256, "SCALE": margin.SCALE}
    function = margin.prototype_margin_finish_kernel
    yield "prototype_margin_finish_kernel", function, finish, blocks


def compiled(function, constants, blocks, dtype, target):
    """A kernel in machine code for a target."""
    number = "fp32" if dtype == torch.float32 else "fp64"
    signature = {}
    for name in function.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in COUNTS:
            signature[name] = "i32"
        else:
            kind = "i32" if number == "fp32" else "i64"  # of bits that stand for a number
            kinds = {**INTEGERS, **dict.fromkeys(DOUBLES, "fp64")}
            if function is triton_pack.sum_kernel or function is triton_pack.pack_kernel:
                kinds["largest"] = kind
            signature[name] = "*" + kinds.get(name, number)
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    return triton.compile(source, target=target, options=options)


def resources(kernel):
    """Registers and bytes of stack, from the cubin; None on AMD."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if "cubin" not in kernel.asm or not tool.exists():
        return None, None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(int(value) for value in re.search(r"REG:(\d+) STACK:(\d+)", report).groups())


def tiles():
    """Every tile of the launchers' table: dtype, features, tile, whether features are in parts."""
    for (features, size), blocks in launch.NARROW.items():
        yield torch.float32 if size == 4 else torch.float64, features, blocks, False
    for size, blocks in launch.WIDE.items():
        yield torch.float32 if size == 4 else torch.float64, None, blocks, True


def report(target, dtype, features, precision, kernel, function, constants, blocks):
    """Compile one kernel and print what it takes."""
    done = compiled(function, constants, blocks, dtype, target)
    registers, stack = resources(done)
    text = done.asm.get("ptx", done.asm.get("amdgcn", ""))
    row = {"target": target.arch, "kernel": kernel, "dtype": str(dtype), "features": features}
    row |= {"precision": precision, "registers": registers, "stack": stack}
    row["shared"] = done.metadata.shared
    row["tensor"] = len(re.findall(r"wgmma\.mma|mma\.sync|tcgen05\.mma|mfma", text))
    print(json.dumps(row), flush=True)


def main():
    for name in sys.argv[1:] or ["90"]:
        amd = not name.isdigit()
        target = GPUTarget("hip", name, 64) if amd else GPUTarget("cuda", int(name), 32)
        for dtype, features, blocks, wide in tiles():
            exact = "ieee" if amd or dtype == torch.float64 else "tf32x3"
            for precision in (exact,) if exact == "ieee" else (exact, "tf32"):
                for kernel in kernels(blocks, wide, dtype, precision):
                    report(target, dtype, features, precision, *kernel)
            for kernel in other_kernels(blocks):
                report(target, dtype, features, None, *kernel)


if __name__ == "__main__":
    main()
