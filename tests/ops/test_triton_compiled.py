"""What the interpreter cannot show of the Triton kernels: that they compile, and into what."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cgm_fast.ops import backends

ROOT = Path(__file__).parents[2]

if backends.availability()["triton"] is not None:
    pytest.skip(backends.availability()["triton"], allow_module_level=True)

sys.path.append(str(ROOT))

from benchmarks.compiled import SHARED, TARGETS, target_of  # noqa: E402


@pytest.fixture(scope="module", params=TARGETS)
def rows(request):
    """Every kernel of every tile, compiled for a target."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "compiled.py", request.param],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found
    return request.param, found


@pytest.mark.slow
def test_every_kernel_compiles_without_spills_within_the_devices_limits(rows):
    target, found = rows
    for row in found:
        assert row["shared"] <= SHARED[target_of(target)[1]], row
        assert not row["spilled"], row  # None where this triton brings no cuobjdump


@pytest.mark.slow
def test_products_are_left_to_tensor_cores(rows):
    _, found = rows
    with_products = {row["kernel"].partition(",")[0] for row in found if row["tensor"]}
    assert with_products >= {
        "mmd_fwd_kernel", "mmd_bwd_kernel", "prototype_margin_rows_kernel",
        "prototype_margin_columns_kernel", "cgm_assign_kernel", "cgm_finish_kernel",
    }  # fmt: skip
    for row in found:
        if row["features"] is not None:
            assert row["tensor"] > 0, row
