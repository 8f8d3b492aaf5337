"""Make what a GPU machine without a network is brought: `python tools/gpu/pack.py [KIT]`.

Run it under the Python, torch and Triton of that machine, with nvcc on the PATH. The kit has a
wheel of this package for one architecture, wheels of packages.txt, Triton's compiled kernels, and
manifest.json: the commit, the sources, the versions it was packed for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from install import CACHE
from sources import fingerprint
from stages import TRITON_CACHE

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MOST_BYTES = 60e6
"""Of a kit."""
KEPT = (".cubin", ".json", ".so")
"""Of Triton's cache: what a launch needs, not how it came about."""


def run(*command: str, **env: str) -> None:
    """A command, or the end."""
    print("+", " ".join(command), flush=True)
    if subprocess.run(command, env={**os.environ, **env}).returncode != 0:
        sys.exit(f"pack.py: failed: {' '.join(command)}")


def pip(*arguments: str, **env: str) -> None:
    """pip of this interpreter."""
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, **env)


def wheels(kit: Path, architecture: str) -> None:
    """The package's wheel, then each package that is to be had; one that is not is named."""
    pip(
        "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(kit), str(ROOT),
        CUDAARCHS=architecture,
    )  # fmt: skip
    for line in (HERE / "packages.txt").read_text(encoding="utf-8").splitlines():
        if (name := line.partition("#")[0].strip()) == "":
            continue
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(kit), name]
        if subprocess.run(command).returncode != 0:
            print(f"left out: {name}")


def triton_cache(kit: Path, architecture: str) -> None:
    """Triton's kernels, compiled through the stub driver at the path that they will have."""
    if not architecture.startswith("90"):
        print("no Triton cache: triton_cache.py knows 9.0 only")
        return
    shutil.rmtree(TRITON_CACHE, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        (wheel,) = kit.glob("cgm_fast-*.whl")
        pip("install", "-q", "--no-deps", "--no-compile", "--target", str(site), str(wheel))
        run(
            sys.executable, "-P", str(HERE / "triton_cache.py"), str(Path(folder) / "stub"),
            PYTHONPATH=str(site), TRITON_CACHE_DIR=str(TRITON_CACHE),
        )  # fmt: skip
    archive_cache(TRITON_CACHE, kit / CACHE)
    shutil.rmtree(TRITON_CACHE, ignore_errors=True)


def archive_cache(cache: Path, archive: Path) -> None:
    """What a launch needs of a Triton cache."""
    with tarfile.open(archive, "w:xz") as tar:
        for path in sorted(cache.rglob("*")):
            if path.is_file() and path.suffix in KEPT:
                tar.add(path, path.relative_to(cache).as_posix())


def manifest(architecture: str) -> dict[str, object]:
    """What the kit is of and for."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        return done.stdout.strip()

    versions = {name: version(name) for name in ("torch", "triton", "numpy")}
    return {
        "commit": git("rev-parse", "HEAD") or None,
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "sources": fingerprint(ROOT),
        "architecture": architecture,
        "versions": {"python": platform.python_version(), **versions},
    }


def main(arguments: list[str] | None = None) -> int:
    """Pack; 1 if the kit is too large."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kit", type=Path, nargs="?", default=ROOT / "build/gpu/kit")
    parser.add_argument("--architecture", default="90-real", help="as CMake's CUDAARCHS has it")
    options = parser.parse_args(arguments)
    kit = options.kit.resolve()
    shutil.rmtree(kit, ignore_errors=True)
    kit.mkdir(parents=True)
    text = json.dumps(manifest(options.architecture), indent=1)  # of what is built from now on
    wheels(kit, options.architecture)
    triton_cache(kit, options.architecture)
    (kit / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return report_size(kit)


def report_size(kit: Path) -> int:
    """Print the files; 1 if they are too large together."""
    files = sorted(path for path in kit.iterdir() if path.is_file())
    for path in files:
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path.name}")
    total = sum(path.stat().st_size for path in files)
    print(f"{total / 1e6:8.2f} MB  {kit}")
    if total > MOST_BYTES:
        print(f"pack.py: {total / 1e6:.0f} MB, allowed {MOST_BYTES / 1e6:.0f}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
