"""How the package is built: what is left out where something is missing, and what is said then."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
BACKEND = ROOT / "cmake" / "backend.py"


def environment(**changes):
    """This process's, without wishes of its own."""
    ours = ("CC", "CXX", "CUDACXX", "CUDAARCHS", "CMAKE_ARGS", "CGM_FAST_CUDA", "CGM_FAST_PURE")
    return {key: value for key, value in os.environ.items() if key not in ours} | changes


def configure(folder, *options, **changes):
    """CMake's words and its exit status."""
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    pybind11 = pytest.importorskip("pybind11")
    words = [
        "cmake", "-S", ROOT, "-B", folder, f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", *options,
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, env=environment(**changes))
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def bin_with(tmp_path):
    """A PATH that begins with a script of this name, which says and does what is given."""

    def make(name, script):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return f"{path.parent}{os.pathsep}{os.environ['PATH']}"

    return make


def test_without_a_compiler_the_module_is_left_out_and_the_reason_kept(tmp_path):
    code, text = configure(tmp_path / "build", CC="/bin/false", CXX="/bin/false")
    assert code == 0, text
    assert "no C++ compiler that works was found" in text
    subprocess.run(
        ["cmake", "--install", tmp_path / "build", "--prefix", tmp_path / "to"],
        check=True, capture_output=True,
    )  # fmt: skip
    assert [path.name for path in (tmp_path / "to" / "cgm_fast").iterdir()] == ["_no_native.txt"]


def test_who_insists_on_the_module_gets_an_error_without_a_compiler(tmp_path):
    code, text = configure(tmp_path, CC="/bin/false", CXX="/bin/false", CGM_FAST_PURE="0")
    assert code != 0
    assert "CGM_FAST_PURE=0 asks for the compiled module" in text


@pytest.mark.parametrize("script", ["exit 9", "echo '7.5'", "echo '[N/A]'", "echo"])
def test_no_gpu_that_can_be_used_no_kernels_and_one_line(script, tmp_path, bin_with):
    code, text = configure(tmp_path / "build", PATH=bin_with("nvidia-smi", script))
    assert code == 0, text
    assert "cgm_fast: no CUDA kernels: no GPU of compute capability 8.0 or more was visible" in text
    assert "CGM_FAST_CUDA=ON asks for them" in text


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (["-DCGM_FAST_CUDA=ON"], {}),
        ([], {"CGM_FAST_CUDA": "ON"}),
        ([], {"CUDAARCHS": "90"}),
        (["-DCMAKE_CUDA_ARCHITECTURES=90"], {}),
    ],
)
def test_kernels_that_are_asked_for_and_cannot_be_are_an_error(options, changes, tmp_path):
    code, text = configure(tmp_path, *options, CUDACXX="/bin/false", **changes)
    assert code != 0
    assert "CUDA kernels were asked for, but no nvcc that works" in text


def test_an_unknown_wish_is_an_error(tmp_path):
    code, text = configure(tmp_path, "-DCGM_FAST_CUDA=perhaps")
    assert code != 0
    assert "CGM_FAST_CUDA must be AUTO, ON or OFF, got perhaps" in text


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_kernels_for_the_gpus_that_are_visible(tmp_path, bin_with):
    for capability, number in (("9.0", 90), ("8.6", 86)):  # another GPU, the same folder
        path = bin_with("nvidia-smi", f"echo {capability}; echo 7.5; echo {capability}")
        code, text = configure(tmp_path / "build", "-G", "Unix Makefiles", PATH=path)
        assert code == 0, text
        assert "no CUDA kernels" not in text
        flags = (tmp_path / "build/csrc/cuda/CMakeFiles/cgm_fast_cuda.dir/flags.make").read_text()
        assert f"arch=compute_{number},code=[sm_{number}]" in flags
        assert flags.count("generate-code") == 1


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_an_nvcc_that_is_too_old_counts_as_none_unless_asked_for(tmp_path, bin_with):
    bin_with("nvidia-smi", "echo 9.0")
    nvcc, complaint = shutil.which("nvcc"), "nvcc fatal : Unsupported gpu architecture 'compute_90'"
    old = f'case "$*" in *compute_90*) echo "{complaint}" >&2; exit 1;; esac; exec {nvcc} "$@"'
    changes = {"PATH": bin_with("nvcc", old), "CUDACXX": str(tmp_path / "bin" / "nvcc")}
    code, text = configure(tmp_path / "auto", **changes)
    assert code == 0, text
    assert f"cannot compile for 90-real: {complaint}" in text
    code, text = configure(tmp_path / "asked", CUDAARCHS="90", **changes)
    assert code != 0
    assert f"cannot compile for 90: {complaint}" in text


@pytest.fixture
def backend():
    pytest.importorskip("scikit_build_core")
    spec = importlib.util.spec_from_file_location("backend", BACKEND)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_build_goes_on_with_the_folder_of_one_that_was_asked_the_same(backend, monkeypatch):
    for name in backend._ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)

    def folder(settings=None):
        return backend._in_folder(settings)["build-dir"]

    plain = folder()
    assert Path(plain).parent == ROOT / "build"
    assert folder({}) == plain
    assert folder({"cmake.define.CGM_FAST_CUDA": "OFF"}) != plain
    assert folder({"build-dir": "mine"}) == "mine"
    monkeypatch.setenv("CUDAARCHS", "90")
    assert folder() != plain


def test_a_tree_that_cannot_be_written_is_built_elsewhere(backend, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "build-dir" not in backend._in_folder({})


def test_a_module_that_was_deleted_is_in_no_later_wheel(tmp_path):
    pytest.importorskip("scikit_build_core")
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("cmake", "cgm_fast"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so"))
    words = [
        sys.executable, "-c",
        "import sys; sys.path.insert(0, 'cmake'); import backend; backend.build_wheel(sys.argv[1])",
    ]  # fmt: skip

    def wheel(to):
        out = tmp_path / to
        done = subprocess.run(
            [*words, out], cwd=tree, env=environment(CGM_FAST_PURE="1"),
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (path,) = out.iterdir()
        assert path.name.endswith("-py3-none-any.whl")
        return zipfile.ZipFile(path).namelist()

    extra = tree / "cgm_fast" / "gone.py"
    extra.write_text("")
    assert "cgm_fast/gone.py" in wheel("first")
    extra.unlink()
    found = wheel("second")
    assert "cgm_fast/gone.py" not in found
    assert {"cgm_fast/__init__.py", "cgm_fast/ops/triton/tiles.csv"} <= set(found)
    assert "cgm_fast/ops/mmd/README.md" in found


def test_the_reasons_are_what_doctor_says(tmp_path, monkeypatch):
    import cgm_fast
    from cgm_fast.ops.cuda import launch

    (tmp_path / "_no_native.txt").write_text("no C++ compiler that works was found")
    # Of an editable install: the sources, and where what was built lies.
    monkeypatch.setattr(cgm_fast, "__path__", [*cgm_fast.__path__, str(tmp_path)])
    why = launch.why_no_module(ImportError("cannot import name '_native'"))
    assert "cannot be imported (no C++ compiler that works was found); reinstall" in why
    info = {"cuda_left_out": "no GPU was visible"}
    monkeypatch.setattr(launch, "kernels", lambda: SimpleNamespace(build_info=lambda: info))
    why = launch.why_unavailable()
    assert "built without CUDA kernels (no GPU was visible); reinstall with nvcc" in why
    assert "CGM_FAST_CUDA=ON" in why


@pytest.mark.parametrize("command", ["install", "develop", "bdist_wheel"])
def test_commands_of_setup_py_are_pips(command, tmp_path):
    pip = tmp_path / "pip.py"  # found before the real one
    pip.write_text("import os, sys\nprint(os.getcwd(), *sys.argv[1:])\n")
    done = subprocess.run(
        [sys.executable, ROOT / "setup.py", command],
        capture_output=True, text=True, env=environment(PYTHONPATH=str(tmp_path)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder, verb, *rest = done.stdout.split()
    assert (Path(folder), rest[-1]) == (ROOT, ".")
    assert verb == ("wheel" if command == "bdist_wheel" else "install")


def test_another_command_of_setup_py_is_refused():
    done = subprocess.run(
        [sys.executable, ROOT / "setup.py", "upload"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "install, develop, bdist_wheel" in done.stderr
