"""What the interpreter cannot show of the Triton kernels: that they compile, and into what."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cgm_fast.ops import backends

if backends.availability()["triton"] is not None:
    pytest.skip(backends.availability()["triton"], allow_module_level=True)

import triton

from cgm_fast.ops.triton import tiles

if not tiles.PIPELINES:
    pytest.skip("triton 3.2 compiles by another interface", allow_module_level=True)

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from tools.kernels.compiled import RECORD, SHARED, TARGETS, name_of, target_of  # noqa: E402

# Bytes that a program may spill, whatever version of LLVM and ptxas a Triton comes with: they have
# taken from none to 256. What one version does is in the record, and compared with below.
SPILLED = 1024


def recorded(target):
    """The record's rows for a target, if the compiler at hand made any; by what each is about."""
    made_here = triton.__version__, target
    with RECORD.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["triton"], row["target"]) == made_here]
    return {name_of(row): row for row in rows}


def compile_for(target):
    """What the compiler makes of every tile: most in one way, of float32 alone but for 9.0.

    All ways for all targets take ten minutes, and `make tiles` takes none that does not pass.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    arguments = [target, "--plain", *(() if target == "90" else ("--kinds", "float32"))]
    done = subprocess.run(
        [sys.executable, "-m", "tools.kernels.compiled", *arguments],
        capture_output=True, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_within_the_devices_limits_onto_tensor_cores(target):
    found = compile_for(target)
    for row in found:
        assert row["shared"] <= SHARED[target_of(target)[1]], row
        # None where triton brings no cuobjdump. In MMD's first pass what is spilled is not read in
        # its loop over columns, and that loop loads ahead.
        assert (row["spilled"] or 0) <= SPILLED, row
        if row["kernel"].startswith("mmd_fwd_kernel") and row["numbers"] != "fp64":
            assert not row["in_loop"], row
            by_differences = row["kernel"].endswith(("laplacian", "energy"))
            assert target == "gfx942" or by_differences or row["copies"] > 0, row
        if row["features"] is not None:
            assert row["tensor"] > 0, row
    with_products = {row["kernel"].partition(",")[0] for row in found if row["tensor"]}
    assert with_products >= {
        "mmd_fwd_kernel", "mmd_hvp_kernel", "kernel_product_kernel",
        "prototype_margin_rows_kernel", "prototype_margin_columns_kernel", "cgm_assign_kernel",
        "cgm_finish_kernel",
    }  # fmt: skip
    if record := recorded(target):
        again = f"{RECORD.name} lacks kernels: python -m tools.kernels.compiled --record"
        assert {name_of(row) for row in found} <= set(record), again
        for row in found:
            was = record[name_of(row)]
            for what in ("spilled", "shared"):
                assert (row[what] or 0) <= int(was[what] or 0), (what, row, was)
