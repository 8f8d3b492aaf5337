"""The tests under other releases of torch and Python: `python tools/matrix.py` (`make matrix`).

Each pair below gets a virtual environment of its own, with that torch, the triton that it asks for,
this package built in it and what the tests need. There a short training run and the tests of the
ops run; what came is printed as a row of Markdown. Needs about 6 GB of disk for a pair while it
runs, a C++ compiler and a package index.

    python tools/matrix.py                    # all pairs
    python tools/matrix.py 3.13:2.9           # these pairs only
    python tools/matrix.py --folder PATH      # keep environments and logs there, and use them again
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PAIRS = ("3.10:2.6", "3.13:2.9", "3.12:2.11", "3.11:2.14.1", "3.13:newest")
"""Python and torch: each release of torch whose compiler differs, each Python once at least."""

TESTS = ("tests/ops", "tests/test_losses.py", "tests/cgm/models/test_cgm.py")

HEADER = """\
| Python | torch | triton | numpy | tests of the ops |
| --- | --- | --- | --- | --- |"""

VERSIONS = """
import importlib.metadata, json, platform
names = "torch", "triton", "numpy"
def version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return "none"
print(json.dumps({"python": platform.python_version(), **{name: version(name) for name in names}}))
"""


class Failed(Exception):
    """A step did not succeed; the text is the cell of the table."""


def interpreter(version: str) -> str:
    """Path of a Python of this version: on the PATH, from pyenv, or as uv finds it."""
    candidates = [
        shutil.which(f"python{version}"),
        *glob.glob(str(Path.home() / f".pyenv/versions/{version}.*/bin/python")),
    ]
    if uv := shutil.which("uv"):
        found = subprocess.run([uv, "python", "find", version], capture_output=True, text=True)
        candidates.append(found.stdout.strip() or None)
    for path in candidates:
        # A shim of pyenv stands on the PATH for versions too that it does not run.
        if path and subprocess.run([path, "-c", "pass"], capture_output=True).returncode == 0:
            return path
    raise Failed(f"no Python {version} here")


def run(command: list[str | Path], log: Path, **how: object) -> str:
    """Run a command, its output also to the end of `log`; raise Failed if it fails."""
    with log.open("a") as file:
        file.write(f"\n$ {' '.join(map(str, command))}\n")
        file.flush()
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how
        )
        file.write(done.stdout)
    if done.returncode:
        raise Failed(done.stdout)
    return done.stdout


def others(torch: str) -> list[str]:
    """What else a torch needs, so that its Triton's kernels are tested too."""
    number = [int(part) for part in torch.split(".")[:2] if part.isdigit()]
    # The interpreter of a Triton before 3.7 does not run with a newer numpy: ops/backends.py.
    return ["numpy<2.4"] if number and number < [2, 12] else []


def install(pair: str, folder: Path, log: Path) -> Path:
    """An environment with the pair's torch and this package; the path of its interpreter."""
    version, torch = pair.split(":")
    python = folder / "bin" / "python"
    if not python.exists():
        run([interpreter(version), "-m", "venv", folder], log)
    # A release number names a series: 2.9 is the last 2.9.x. The newest is what pip takes.
    wanted = (
        "torch" if torch == "newest" else f"torch=={torch}{'' if torch.count('.') > 1 else '.*'}"
    )
    try:
        wanted = [wanted, f"{ROOT}[test]", *others(torch)]
        command = [python, "-m", "pip", "install", "--quiet", "--upgrade", *wanted]
        run(command, log, env={**os.environ, "CGM_FAST_CUDA": "OFF"})
    except Failed as error:
        raise Failed(f"cannot be installed: {str(error).strip().splitlines()[-1]}") from error
    return python


def smoke(python: Path, work: Path, log: Path) -> None:
    """What the README begins with, for a few steps."""
    try:
        run([python, "-m", "cgm_fast", "train", "--supervised", "--max-steps", "20"], log, cwd=work)
        run([python, "-m", "cgm_fast", "doctor"], log, cwd=work)
    except Failed as error:
        raise Failed("`cgm-fast train` fails") from error


def tests(python: Path, log: Path) -> str:
    """The closing line of the test runner, without its rules."""
    # -P: the package that is installed, not the source tree. Python 3.10 does not know it.
    command = [python, "-c", "import sys, pytest; sys.path[0:1] = []; sys.exit(pytest.main())"]
    closing = r"^=* ?(.*(?:passed|failed|error).*?) ?=*$"
    try:
        output = run([*command, "-q", "--rootdir", str(ROOT), *TESTS], log, cwd=ROOT)
    except Failed as error:
        found = re.findall(closing, str(error), re.MULTILINE)
        raise Failed(found[-1] if found else "the tests end in an error") from error
    return re.findall(closing, output, re.MULTILINE)[-1]


def row(pair: str, folder: Path) -> tuple[bool, str]:
    """Whether a pair passes, and its row of the table."""
    log = folder / f"{pair.replace(':', '-')}.log"
    log.unlink(missing_ok=True)
    start = time.monotonic()
    versions = {"python": pair.split(":")[0], "torch": pair.split(":")[1]}
    work = Path(tempfile.mkdtemp(dir=folder))
    try:
        python = install(pair, folder / pair.replace(":", "-"), log)
        versions = json.loads(run([python, "-c", VERSIONS], log))
        smoke(python, work, log)
        passed, result = True, tests(python, log)
    except Failed as error:
        passed, result = False, f"**{error}**"
    finally:
        shutil.rmtree(work)
    cells = [versions.get(name, "") for name in ("python", "torch", "triton", "numpy")]
    print(f"{pair}: {result} ({time.monotonic() - start:.0f} s in all)", file=sys.stderr)
    return passed, f"| {' | '.join([*cells, result])} |"


def main() -> int:
    """Print the table; 1 if any pair fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="*", metavar="PYTHON:TORCH", default=PAIRS)
    parser.add_argument("--list", action="store_true", help="print the pairs as JSON, run nothing")
    parser.add_argument("--folder", type=Path, help="keep environments and logs here")
    options = parser.parse_args()
    if bad := [pair for pair in options.pairs if not re.fullmatch(r"3\.\d+:[\w.]+", pair)]:
        parser.error(f"a pair is PYTHON:TORCH, like 3.12:2.9 or 3.13:newest, got {bad[0]!r}")
    if options.list:
        print(json.dumps(options.pairs))
        return 0
    # Processors are shared among the environments' own threads: one pair after another.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # CUDA kernels compiled for the CPU do not see torch; a compiler would take minutes each time.
    os.environ.setdefault("CGM_FAST_CUDA_EMULATION", "none")
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="cgm-fast-matrix-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    try:
        for pair in options.pairs:
            rows.append(row(pair, folder))
            if options.folder is None:  # an environment takes gigabytes
                shutil.rmtree(folder / pair.replace(":", "-"), ignore_errors=True)
    finally:
        print(HEADER)
        print("\n".join(text for _, text in rows))
        print(f"logs: {folder}", file=sys.stderr)
    return 0 if all(passed for passed, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
