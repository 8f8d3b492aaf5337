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
    flags = [
        "-std=c++17", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
        "-include", HERE / "cuda_on_cpu.h", "-I", ROOT / "csrc",
    ]  # fmt: skip
    compile_it = [*flags, *options, "-x", "c++", "-c", HERE / "kernels.cu", "-o", f"{out}.o"]
    # races.h stands in the place of ThreadSanitizer's library.
    link = ["-pthread", *(o for o in options if o != "-fsanitize=thread"), f"{out}.o", "-o", out]
    for arguments in (compile_it, link):
        done = subprocess.run([COMPILER, *arguments], capture_output=True, text=True)
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


@pytest.fixture(scope="module")
def watched(kernels):
    """The same, with races between blocks seen."""
    return build(kernels.with_name("watched"), "-fsanitize=thread")


def run(program, name):
    return subprocess.run([program, name], capture_output=True, text=True)


RIGHT = ["tree", "copied", "packed", "reduced", "left", "product", "float16", "bfloat16"]


@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_are_right(name, kernels, checked, watched):
    for program in (kernels, checked, watched):
        done = run(program, name)
        assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


def test_tensor_cores_add_in_either_way(kernels):
    done = run(kernels, "adders")
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


@pytest.mark.parametrize("name", ["misaligned_copy", "misaligned_pack"])
def test_sixteen_bytes_from_an_address_that_is_no_multiple_are_an_error(name, kernels):
    done = run(kernels, name)
    assert done.returncode == 1
    assert "misaligned address: 16 bytes" in done.stdout


# Blocks run one after another here, so that the result is right all the same.
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_fence", "not known to be there"),
        ("early_fence", "not known to be there"),
        ("fence_without_barrier", "not known to be there"),
        ("no_fence_behind", "not known to be there"),
        ("uncounted", "not known to be there"),
        ("plain_load", "may read an old value from L1"),
    ],
)
def test_a_race_between_blocks_is_an_error(name, reason, kernels, watched):
    assert run(kernels, name).stdout == "right\n"
    done = run(watched, name)
    assert done.returncode == 1
    assert "race between blocks" in done.stdout
    assert reason in done.stdout


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
