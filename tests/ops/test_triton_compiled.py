"""What the interpreter cannot show of the Triton kernels: that they compile, and into what."""

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

from cgm_fast.ops import triton_tiles

if not triton_tiles.PIPELINES:
    pytest.skip("triton 3.2 compiles by another interface", allow_module_level=True)

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from benchmarks.compiled import SHARED, TARGETS, target_of  # noqa: E402

# Bytes. None of the table's tiles spills with the Triton that it was made with; an older one's
# compiler, which came with other versions of LLVM and ptxas, may use some registers more.
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
SPILLED = 0 if VERSION >= (3, 8) else 256


def compile_for(target):
    """What the compiler makes of every tile: in every way it is called for 9.0, in one for others.

    All ways for all targets take ten minutes, and `make tiles` takes none that does not pass.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    arguments = [target] if target == "90" else [target, "--plain"]
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "compiled.py", *arguments],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_within_the_devices_limits_onto_tensor_cores(target):
    done = compile_for(target)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for row in found:
        assert row["shared"] <= SHARED[target_of(target)[1]], row
        # A division of float64 numbers, one for each row in the end, is a call with a stack.
        allowed = SPILLED + (0 if row["features"] is not None else 32)
        assert (row["spilled"] or 0) <= allowed, row  # None where triton brings no cuobjdump
        if row["features"] is not None:
            assert row["tensor"] > 0, row
    with_products = {row["kernel"].partition(",")[0] for row in found if row["tensor"]}
    assert with_products >= {
        "mmd_fwd_kernel", "mmd_bwd_kernel", "prototype_margin_rows_kernel",
        "prototype_margin_columns_kernel", "cgm_assign_kernel", "cgm_finish_kernel",
    }  # fmt: skip
