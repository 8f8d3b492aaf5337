"""Delete the barriers of the CUDA kernels one by one; tests of the emulated kernels must notice.

`python tests/emulation/mutations.py [FILE ...]`, about half a minute for each barrier: every
`sync_block()` and every wait for a copy in csrc/cuda, or in the files named (mmd_rows.cuh).
What is printed as unnoticed is a barrier that is not needed, or that no test needs.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import emulated_cuda

ROOT = Path(__file__).parents[2]
BARRIER = re.compile(r"^\s*(sync_block\(\)|copy_async_wait<\d>\(\));", re.MULTILINE)
TESTS = [
    "test_cuda_kernels.py", "test_mmd.py", "test_prototype_margin.py", "test_cgm_loss.py",
    "test_kernel_product.py", "test_cuda_kernel_product.py", "test_cuda_prototype_margin.py",
    "test_cuda_cgm_loss.py",
]  # fmt: skip
CHOSEN = "cuda and not gradcheck and not batch and not float64"


def noticed(tree: Path) -> bool:
    """Whether some test fails with the kernels of this tree."""
    emulated_cuda.ROOT = tree
    environment = {
        **os.environ,
        "CGM_FAST_CUDA_EMULATION": str(emulated_cuda.build()),
        "PYTHONPATH": str(ROOT),
    }
    tests = [ROOT / "tests" / "ops" / name for name in TESTS]
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-k", CHOSEN, *map(str, tests)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=ROOT)
    return done.returncode != 0


def main() -> None:
    """Print every barrier and whether it was missed."""
    names = sys.argv[1:] or sorted(path.name for path in (ROOT / "csrc/cuda").glob("*.cuh"))
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        shutil.copytree(ROOT / "csrc", tree / "csrc")
        if noticed(tree):
            raise SystemExit("tests fail with the kernels as they are")
        for name in names:
            path = tree / "csrc" / "cuda" / name
            text = path.read_text()
            for match in BARRIER.finditer(text):
                if name == "device.cuh":
                    continue
                path.write_text(text[: match.start(1)] + text[match.end(1) :])
                line = text.count("\n", 0, match.start(1)) + 1
                found = "noticed" if noticed(tree) else "NOT NOTICED"
                print(f"{name}:{line} {match.group(1)}: {found}", flush=True)
            path.write_text(text)


if __name__ == "__main__":
    main()
