"""The emulation of CUDA on the CPU runs kernels right, and finds what is wrong with wrong ones."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX", "g++")


def build(out, *options):
    command = [
        COMPILER, "-std=c++17", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror",
        "-Wno-unknown-pragmas", *options, "-x", "c++",
        "-include", HERE / "cuda_on_cpu.h", "-I", ROOT / "csrc", HERE / "kernels.cu", "-o", out,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no {COMPILER}")
    return build(tmp_path_factory.mktemp("emulation") / "kernels")


@pytest.fixture(scope="module")
def checked(kernels):
    """The same under AddressSanitizer."""
    return build(kernels.with_name("checked"), "-g", "-fsanitize=address")


def run(program, name):
    return subprocess.run([program, name], capture_output=True, text=True)


@pytest.mark.parametrize("name", ["tree", "copied", "product", "float16", "bfloat16"])
def test_right_kernels_are_right(name, kernels, checked):
    for program in (kernels, checked):
        done = run(program, name)
        assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


@pytest.mark.parametrize("name", ["refused", "anothers_error", "threads"])
def test_a_launch_answers_for_itself_alone(name, kernels):
    done = run(kernels, name)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


@pytest.mark.parametrize("name", ["no_barrier", "unwritten", "no_wait"])
def test_what_cuda_leaves_undefined_gives_a_wrong_result(name, kernels):
    assert run(kernels, name).stdout == "wrong\n"


def test_a_barrier_that_some_threads_never_reach_is_an_error(kernels):
    done = run(kernels, "divergent")
    assert done.returncode == 1
    assert "divergent barrier" in done.stdout
    assert "kernels.cu:" in done.stdout


def test_writing_beyond_shared_memory_is_an_error(checked):
    done = run(checked, "overrun")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_same_source_is_cuda(architecture, tmp_path):
    if (nvcc := shutil.which("nvcc")) is None:
        pytest.skip("no nvcc")
    done = subprocess.run(
        [nvcc, "-std=c++17", f"-arch={architecture}", "-I", ROOT / "csrc", "-ptx",
         HERE / "kernels.cu", "-o", tmp_path / "kernels.ptx"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "kernels.ptx").read_text()
    for instruction in (
        "mma.sync.aligned.m16n8k8",
        "m16n8k16",
        "cp.async.cg.shared.global",
        "bar.sync",
    ):
        assert instruction in text
