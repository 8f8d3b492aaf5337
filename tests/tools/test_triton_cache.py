"""Triton's kernels compiled for a GPU that is elsewhere, through a driver that does nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools" / "gpu"

triton = pytest.importorskip("triton")

pytestmark = [
    pytest.mark.slow,
    # What of the driver Triton calls, and how, is its own affair and changes.
    pytest.mark.skipif(
        not (3, 6) <= tuple(map(int, triton.__version__.split(".")[:2])) <= (3, 8),
        reason="the stub was made for Triton 3.6 to 3.8",
    ),
    pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler"),
]

# Everything of triton_cache.py, with one of its calls.
ONE_CALL = """
import sys
from pathlib import Path
sys.path.insert(0, {tools!r})
import triton_cache
every = triton_cache.calls
triton_cache.calls = lambda: every()[:1]
sys.exit(triton_cache.main(Path({stub!r})))
"""


def test_a_call_fills_the_cache_and_the_next_one_finds_it(tmp_path):
    from cgm_fast.ops.triton.tiles import CAPABILITIES

    assert (9, 0) in CAPABILITIES
    script = ONE_CALL.format(tools=str(TOOLS), stub=str(tmp_path / "stub"))
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    env.pop("TRITON_INTERPRET", None)
    counted = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=env
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "0 calls failed" in done.stdout
        counted.append(sorted(path.name for path in (tmp_path / "cache").rglob("*.cubin")))
    assert "mmd_fwd_kernel.cubin" in counted[0]
    assert counted[0] == counted[1]
