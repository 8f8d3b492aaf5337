"""Compile the CUDA kernels for the CPU: the module that tests load as the backend "cuda".

`python tests/emulation/emulated_cuda.py --races` compiles the one that sees races between blocks
(races.h), and takes several times as long to run.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX", "g++")
# What is initialised the compiler does not see through the calls that this puts everywhere.
WATCHED = ["-fsanitize=thread", "-O1", "-Wno-maybe-uninitialized"]
"""For kernels; not for linking, since races.h stands in the place of the run-time library."""
OPTIONS = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]


class Missing(Exception):
    """What compiling would need is not there."""


def command(*arguments):
    """The compiler on CUDA sources, which see the emulation first."""
    including = ["-include", HERE / "cuda_on_cpu.h", "-I", ROOT / "csrc"]
    return [COMPILER, *OPTIONS, *including, *arguments]


def build(races: bool = False) -> Path:
    """The module, compiled if its sources changed since; if wanted, one that sees races.

    Raises:
        Missing: there is no compiler, or no pybind11.
        RuntimeError: the sources do not compile.
    """
    if shutil.which(COMPILER) is None:
        raise Missing(f"no {COMPILER}")
    try:
        import pybind11
    except ImportError as error:
        raise Missing(str(error)) from error

    sources = [ROOT / "csrc/bindings_cuda.cpp", ROOT / "csrc/bindings_plans.cpp"]
    sources.append(HERE / "module.cpp")
    sources += sorted((ROOT / "csrc/cuda").glob("*.cu"))
    content = hashlib.sha256(f"{sys.version} {pybind11.__version__} {races}".encode())
    for path in sorted([*(ROOT / "csrc").rglob("*"), *HERE.glob("*")]):
        if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".py"):
            content.update(path.read_bytes())
    folder = ROOT / "build" / "emulation" / content.hexdigest()[:16]
    module = folder / ("emulated_cuda" + sysconfig.get_config_var("EXT_SUFFIX"))
    if module.exists():
        return module
    folder.mkdir(parents=True, exist_ok=True)
    paths = [sysconfig.get_paths()["include"], pybind11.get_include()]
    include = [word for path in paths for word in ("-isystem", path)]
    # Fused multiply-adds, as on a GPU, where they are asked for; this machine's own instruction.
    flags = ["-O2", "-march=native", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", *include]

    objects_folder = folder.parent / "objects"
    objects_folder.mkdir(exist_ok=True)

    def compile_one(source):
        """The object file; compiled if what the source includes, or the command, changed since."""
        own = [*flags, *WATCHED] if races and source.suffix == ".cu" else flags
        words = command(*own, "-x", "c++")
        text = run([*words, "-E", "-P", source])
        content = hashlib.sha256(" ".join(map(str, [*own, *OPTIONS, text])).encode())
        out = objects_folder / f"{source.stem}-{content.hexdigest()[:16]}.o"
        if not out.exists():
            part = folder / f"{os.getpid()}-{out.name}"  # another process may be compiling it too
            run([*words, "-c", source, "-o", part])
            part.rename(out)
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    part = module.with_suffix(f".{os.getpid()}")
    run([COMPILER, "-shared", *objects, "-o", part])
    part.rename(module)
    return module


def run(words):
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    print(build(races="--races" in sys.argv[1:]))
