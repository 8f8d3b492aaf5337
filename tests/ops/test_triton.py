"""What the interpreter cannot show of the Triton kernels: that they compile, and into what."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cgm_fast
from cgm_fast.ops import backends
from cgm_fast.testing import assert_gradient_close, derivatives, prototypes, samples

if backends.availability()["triton"] is not None:
    pytest.skip(backends.availability()["triton"], allow_module_level=True)

from cgm_fast.ops import triton_launch

SHARED = 227 * 1024  # of a multiprocessor, for one program, at compute capability 9.0


@pytest.fixture(scope="module")
def compiled():
    """Every tile's kernels for compute capability 9.0."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("aot.py")
    done = subprocess.run(
        [sys.executable, str(script), "90"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_every_tile_compiles_within_the_limits_of_a_multiprocessor(compiled):
    assert {(row["dtype"], row["features"]) for row in compiled} == {
        (str(torch.float32 if size == 4 else torch.float64), features)
        for features, size in [*triton_launch.NARROW, *((None, size) for size in (4, 8))]
    }
    for row in compiled:
        assert row["shared"] <= SHARED, row
        assert row["tensor"] > 0 or row["precision"] is None, row  # None: it has no products


@pytest.mark.slow
def test_the_first_pass_of_mmd_spills_nothing(compiled):
    rows = [row for row in compiled if row["kernel"] == "mmd_fwd_kernel" and row["features"]]
    if rows[0]["stack"] is None:
        pytest.skip("this triton brings no cuobjdump")
    assert rows
    assert all(row["stack"] == 0 for row in rows), rows


@pytest.mark.parametrize(
    ("allowed", "expected"), [("highest", "tf32x3"), ("high", "tf32"), ("medium", "tf32")]
)
def test_products_are_as_accurate_as_the_user_asks(allowed, expected):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        if torch.version.hip is None:
            assert triton_launch.precision(torch.float32) == expected
        assert triton_launch.precision(torch.float64) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("d", [3, 70])
def test_sums_in_turns_and_splits_agree(d, device, monkeypatch):
    """What large samples do: columns in turns and in splits, blocks of prototypes in splits."""
    from cgm_fast.ops.mmd import triton as mmd
    from cgm_fast.ops.prototype_margin import triton as margin

    x, y = samples(100, 130, d, device=device)
    r, g, _ = prototypes(100, 40, d, device=device)

    def both(x, y, r, g):
        found = derivatives(lambda x, y: cgm_fast.mmd(x, y, backend="triton"), (x, y), order=2)
        loss = derivatives(
            lambda r, g: cgm_fast.prototype_margin(r, g, backend="triton").loss, (r, g), order=1
        )
        return (*found[1], *found[2], *loss[1])

    expected = both(x, y, r, g)
    monkeypatch.setattr(mmd, "_TURN", 64)
    monkeypatch.setattr(mmd, "parallel", lambda rows, device: 4)
    monkeypatch.setattr(margin, "parallel", lambda rows, device: 2)
    for value, wanted in zip(both(x, y, r, g), expected, strict=True):
        assert_gradient_close(value, wanted, 1e-5)


@pytest.mark.parametrize("type", ["cpu", "cuda"])
def test_it_is_never_the_automatic_choice(type, monkeypatch):
    every = dict.fromkeys(backends.BACKENDS)  # None: usable
    monkeypatch.setattr(backends, "_availability", every)
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    device = torch.device(type)
    assert backends.choose("triton", device) == "triton"
    assert backends.choose("auto", device) == {"cpu": "native", "cuda": "reference"}[type]
