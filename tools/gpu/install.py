"""Install a kit without a network: `python install.py KIT SITE`; the first stage of run.py.

The kit's wheels go to SITE, which the other stages have on their path, and the compiled Triton
kernels to Triton's cache. Without a kit, or where its wheel does not fit this machine, the package
is built here for the GPU at hand. Only the standard library.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = "triton-cache.tar.xz"
PACKAGES = ("torch", "triton", "numpy", "pytest", "pytest-benchmark", "pytest-xdist", "hypothesis")
CHECK = """
import torch, cgm_fast
from cgm_fast import _native
from cgm_fast.ops.backends import availability
print(cgm_fast.__file__)
for name, reason in availability().items():
    print(f"  {name}: {reason or 'usable'}")
"""


def show(*command: str) -> None:
    """Print what a program of the machine says, if it is there."""
    if shutil.which(command[0]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        print((done.stdout or done.stderr).strip())
    else:
        print(f"no {command[0]}")


def describe() -> None:
    """The machine, as far as it matters to what is measured."""
    fields = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    show("nvidia-smi", f"--query-gpu={fields}", "--format=csv")
    show("nvcc", "--version")
    print(platform.platform(), platform.python_version(), *platform.libc_ver(), os.cpu_count())
    for name in PACKAGES:
        try:
            print(f"{name} {version(name)}")
        except PackageNotFoundError:
            print(f"{name} is missing")


def pip(site: Path, *arguments: str, env: dict[str, str] | None = None) -> bool:
    """Whether pip could install into the folder; nothing is fetched."""
    command = [
        sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile",
        "--disable-pip-version-check", "--upgrade", "--target", str(site), *arguments,
    ]  # fmt: skip
    return subprocess.run(command, env=env).returncode == 0


def install_wheels(kit: Path, site: Path) -> None:
    """All at once; if one does not fit, each on its own, so that it leaves the others."""
    every = sorted(map(str, kit.glob("*.whl")))
    if not every or pip(site, "--no-index", *every):
        return
    for wheel in every:
        if not pip(site, "--no-index", wheel):
            print(f"not installed: {Path(wheel).name}")


def works(site: Path) -> bool:
    """Whether the compiled module can be imported from the folder."""
    env = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, "-P", "-c", CHECK], env=env).returncode == 0


def build(site: Path) -> bool:
    """Compile the package here, for the GPU at hand; nvcc takes about a minute on many cores."""
    print("building the package here")
    wanted = {"CUDAARCHS": "native", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    env = {**wanted, **os.environ, "PYTHONPATH": str(site)}  # the kit has the build's packages
    return pip(site, "--no-build-isolation", str(ROOT), env=env) and works(site)


def unpack_triton(kit: Path, cache: Path) -> None:
    """Compiled kernels into Triton's cache; its launchers only where they can be loaded.

    Triton compiles what is missing, but fails at what is there and does not load.
    """
    archive = kit / CACHE
    if not archive.exists():
        print("no Triton cache: kernels are compiled at their first call")
        return
    cache.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        tar.extractall(cache, filter="data")
    dropped = 0
    for library in cache.rglob("*.so"):
        try:
            ctypes.CDLL(str(library))
        except OSError:
            library.unlink()
            dropped += 1
    kernels = sum(1 for _ in cache.rglob("*.cubin"))
    print(f"Triton: {kernels} kernels" + (f", {dropped} launchers do not load" * bool(dropped)))


def compare(kit: Path) -> None:
    """Say where the kit was packed for something else than what is here."""
    try:
        packed = json.loads((kit / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        print(f"no kit in {kit}")
        return
    for name, wanted in packed["versions"].items():
        try:
            here = platform.python_version() if name == "python" else version(name)
        except PackageNotFoundError:
            here = "none"
        if here.split("+")[0] != wanted.split("+")[0]:
            print(f"packed for {name} {wanted}, here is {here}")
    sys.path.insert(0, str(Path(__file__).parent))
    from sources import fingerprint

    if packed.get("sources") != fingerprint(ROOT):
        print("the kit was packed from other sources than these")


def main(kit: Path, site: Path) -> int:
    """0 if the package can be imported afterwards."""
    describe()
    compare(kit)
    site.mkdir(parents=True, exist_ok=True)
    install_wheels(kit, site)
    unpack_triton(kit, Path(os.environ["TRITON_CACHE_DIR"]))
    return 0 if works(site) or build(site) else 1


if __name__ == "__main__":
    sys.exit(main(*(Path(word).resolve() for word in sys.argv[1:3])))
