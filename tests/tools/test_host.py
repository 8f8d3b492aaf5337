"""The host's share of a GPU call, measured with kernels that do nothing."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_call_is_measured():
    pytest.importorskip("pybind11")
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    done = subprocess.run(
        [sys.executable, ROOT / "tools/gpu/host.py", "--rounds", "1", "--only", "cuda"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.rsplit(maxsplit=4) for line in done.stdout.splitlines()]
    assert [name for name, *_ in rows] == [
        "trivial", "mmd cuda", "prototype_margin cuda", "cgm_loss cuda"
    ]  # fmt: skip
    assert all(float(microseconds) > 0 for _, microseconds, *_ in rows)
