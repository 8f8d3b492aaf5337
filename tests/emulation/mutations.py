"""Delete the barriers, fences and fresh loads of the CUDA kernels one by one; tests must notice.

`python tests/emulation/mutations.py [FILE ...]`, about half a minute for each: every
`sync_block()`, every wait for a copy, every `fence()`, and every `load_fresh(...)`, which becomes a
plain load, in csrc/cuda or in the files named (mmd_rows.cuh). Fences and fresh loads are noticed by
the emulation that sees races between blocks. What is printed as unnoticed is not needed, or no test
needs it.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import emulated_cuda

ROOT = Path(__file__).parents[2]
BARRIER = re.compile(r"^\s*((?:sync_block|sync_warp)\(\)|copy_async_wait<\d>\(\));", re.MULTILINE)
FENCE = re.compile(r"\bfence\(\)(?=;)")
FRESH = re.compile(r"\bload_fresh(?=\()")
COMPILED = ("test_cuda_compiled.py", "test_cuda_sharing.py")
TESTS = sorted(path.name for path in (ROOT / "tests" / "ops").glob("test_cuda_*.py"))
TESTS = [name for name in TESTS if name not in COMPILED]
TESTS += ["test_mmd.py", "test_prototype_margin.py", "test_cgm_loss.py", "test_kernel_product.py"]
CHOSEN = "cuda and not gradcheck and not batch and not float64"


class Mutation(NamedTuple):
    """One change of a source."""

    what: str
    line: int
    text: str
    """Of the whole source."""
    races: bool
    """Whether it is one between blocks."""


def end_of_call(text: str, opening: int) -> int:
    """Behind the parenthesis that closes this one."""
    depth = 0
    for at in range(opening, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at + 1
    raise ValueError("a parenthesis is never closed")


def in_code(text: str, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """What is found outside comments."""
    for match in pattern.finditer(text):
        if "//" not in text[text.rfind("\n", 0, match.start()) + 1 : match.start()]:
            yield match


def mutations(text: str) -> Iterator[Mutation]:
    """Of a source."""

    def changed(begin: int, end: int, to: str, what: str, races: bool) -> Mutation:
        line = text.count("\n", 0, begin) + 1
        return Mutation(what, line, text[:begin] + to + text[end:], races)

    for match in BARRIER.finditer(text):
        yield changed(*match.span(1), "", match.group(1), races=False)
    for match in in_code(text, FENCE):
        yield changed(*match.span(), "", match.group(), races=True)
    for match in in_code(text, FRESH):
        begin, opening = match.span()
        end = end_of_call(text, opening)
        plain = f"(*{text[opening:end]})"
        yield changed(begin, end, plain, text[begin:end], races=True)


def noticed(tree: Path, races: bool, name: str = "") -> bool:
    """Whether some test fails with the kernels of this tree; those of the changed source first."""
    emulated_cuda.ROOT = tree
    environment = {
        **os.environ,
        "CGM_FAST_CUDA_EMULATION": str(emulated_cuda.build(races)),
        "PYTHONPATH": str(ROOT),
    }
    op = re.sub(r"_(rows|wide|tensor|hvp|tile|launch|visit).*", "", Path(name).stem)
    ordered = sorted(TESTS, key=lambda test: op not in test)
    tests = [ROOT / "tests" / "ops" / test for test in ordered]
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-k", CHOSEN, *map(str, tests)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=ROOT)
    return done.returncode != 0


def main() -> None:
    """Print every mutation and whether it was missed."""
    names = sys.argv[1:] or sorted(path.name for path in (ROOT / "csrc/cuda").glob("*.cuh"))
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        shutil.copytree(ROOT / "csrc", tree / "csrc")
        of_files = {
            name: list(mutations((tree / "csrc" / "cuda" / name).read_text()))
            for name in names
            if name != "device.cuh"
        }
        for races in sorted({m.races for found in of_files.values() for m in found}):
            if noticed(tree, races):
                raise SystemExit("tests fail with the kernels as they are")
        for name, found in of_files.items():
            path = tree / "csrc" / "cuda" / name
            before = path.read_text()
            for mutation in found:
                path.write_text(mutation.text)
                said = "noticed" if noticed(tree, mutation.races, name) else "NOT NOTICED"
                print(f"{name}:{mutation.line} {mutation.what}: {said}", flush=True)
            path.write_text(before)


if __name__ == "__main__":
    main()
