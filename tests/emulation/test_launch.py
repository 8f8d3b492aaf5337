"""Every failure of the CUDA run-time at a launch becomes an error that names the launch."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX", "g++")


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no {COMPILER}")
    out = tmp_path_factory.mktemp("launches") / "launches"
    done = subprocess.run(
        [COMPILER, "-std=c++17", "-O0", "-pthread", "-Wall", "-Wextra", "-Werror",
         "-I", HERE / "failing", "-I", ROOT / "csrc", HERE / "launches.cpp", "-o", out],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "launch_fails",
        "no_device",
        "too_much_shared_memory",
        "allowed_once",
        "anothers_error",
        "problem",
    ],
)
def test_a_failure_becomes_the_error_of_its_launch(name, launches):
    done = subprocess.run([launches, name], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "right"), done.stdout
