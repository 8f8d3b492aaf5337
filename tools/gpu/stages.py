"""The stages of a run, in the order of their worth, each with its longest time and its command.

Times are what each is worth; where one ends early the later ones have more.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# Not under the repository: Triton's cache names its files by the path that it was filled at.
SITE = Path("/tmp/cgm-fast-gpu/site")
TRITON_CACHE = Path("/tmp/cgm-fast-gpu/triton")

NAMES = (
    "setup", "ceilings", "smoke", "bench-cgm-loss", "bench-mmd", "tests", "bench-large",
    "bench-product", "bench-train", "counters", "bench-peers", "slow-tests", "memcheck",
    "racecheck",
)  # fmt: skip

# What pytest's -k takes. Of others' peers, those that compile at their first call, for seconds.
COMPILING = "compile or geomloss or keops or sinkhorn or kmeans"
MIDDLE = (
    "test_mmd and (n64-d10- or n256-d10- or n1024-d10- or n4096-d10- or n4096-d300 or n16384-d10- "
    "or n16384-d64) or test_prototype_margin and (b4096- or b16384 or b65536)"
)
LARGE = (
    "n1024-d64 or d65- or d768 or d2048 or n1024-d300 or n10000- or n16384-d300 or "
    "n65536 or b1048576"
)
PEERS_AT = "n1024-d10- or n16384-d10- or n16384-d64 or b64-k10-d10- or b16384 or b65536 or b1048576"


# A case that hangs ends its process, for a kernel that never ends is not interrupted otherwise.
BOUNDED = ("--timeout=60", "--timeout-method=thread") if find_spec("pytest_timeout") else ()


@dataclass(frozen=True)
class Stage:
    """A command, the seconds that it may take, and how many of its last lines are shown."""

    name: str
    seconds: float
    command: tuple[str, ...]
    lines: int = 4
    needs: str | None = None
    """A program that must be on the PATH."""
    environment: dict[str, str] = field(default_factory=dict)


def environment(site: Path) -> dict[str, str]:
    """What every stage's process has."""
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4"),
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(TRITON_CACHE)),
    }


def plan(
    *,
    out: Path,
    kit: Path,
    site: Path,
    python: str,
    device: str,
    commit: str | None,
    scale: float = 1.0,
) -> tuple[Stage, ...]:
    """All stages, in order.

    Args:
        out: Folder for the results.
        kit: Folder with what was carried there (pack.py).
        site: Where `setup` installs it.
        python: The interpreter of every stage.
        device: "cuda", or what stands in for it.
        commit: Of the rows; None where nobody knows.
        scale: Of every stage's time.
    """
    # -P: the package that is installed, not the source tree they start in.
    py = (python, "-P")
    of_device = ("--device", device)
    pytest = (*py, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *BOUNDED)
    pytest += ("--tb=short",)

    def bench(name: str, seconds: float, expression: str, *more: str) -> Stage:
        return Stage(
            name, seconds,
            (
                *pytest, str(ROOT / "benchmarks"), "--benchmark-only", *of_device,
                f"--rows={out / 'rows.jsonl'}", *([f"--commit={commit}"] if commit else []),
                f"--stop-after={0.85 * scale * seconds:g}",
                "--benchmark-max-time=0.05", "--slowest-call=1", "--most-memory=40",
                "--benchmark-columns=median,rounds", "--benchmark-sort=name", "-k", expression,
                *more,
            ),
            lines=12,
        )  # fmt: skip

    def tests(name: str, seconds: float, marks: str, *more: str) -> Stage:
        command = (
            *pytest, str(ROOT / "tests"), "-m", marks, "-rfE",
            f"--junitxml={out / f'{name}.xml'}", *more,
        )  # fmt: skip
        return Stage(name, seconds, command, lines=30)

    def sanitizer(name: str, seconds: float) -> Stage:
        sanitizer = (
            "compute-sanitizer", "--tool", name, "--error-exitcode", "9",
            "--kernel-regex", "kns=mmd", "--kernel-regex", "kns=prototype",
            "--kernel-regex", "kns=cgm", "--kernel-regex", "kns=kernel_product",
        )  # fmt: skip
        smoke = (*py, str(HERE / "smoke.py"), "--small", "--one-process", *of_device)
        return Stage(
            name, seconds, (*sanitizer, *smoke), lines=8, needs="compute-sanitizer",
            # Every allocation the driver's own, so that its bounds are known.
            environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )  # fmt: skip

    parts = (
        Stage("setup", 120, (python, str(HERE / "install.py"), str(kit), str(site)), lines=8),
        Stage("ceilings", 30, (*py, str(HERE / "ceilings.py"), str(out / "ceilings.json"))),
        Stage(
            "smoke", 75,
            (*py, str(HERE / "smoke.py"), "--rows", str(out / "smoke.jsonl"), *of_device), lines=40,
        ),
        bench("bench-cgm-loss", 75, f"(test_cgm_loss or small_call) and not ({COMPILING})"),
        bench("bench-mmd", 90, f"({MIDDLE}) and not ({COMPILING} or tiled or eager-high)"),
        tests("tests", 110, "gpu and not slow", "-n", "8", "--dist", "worksteal"),
        bench(
            "bench-large", 70,
            f"({LARGE}) and not ({COMPILING} or tiled or reference or eager-high or small_call "
            "or test_kernel_product or test_cgm_loss)",
        ),
        bench("bench-product", 40, f"test_kernel_product and not ({COMPILING} or eager-high)"),
        bench("bench-train", 45, "train"),
        Stage(
            "counters", 75,
            (
                *py, str(HERE / "counters.py"), str(out / "counters.ncu-rep"), *of_device,
            ),
            lines=40, needs="ncu",
        ),
        bench(
            "bench-peers", 90,
            f"({PEERS_AT} or test_kernel_product) and ({COMPILING}) and not train",
        ),
        tests("slow-tests", 60, "gpu and slow"),
        sanitizer("memcheck", 60),
        sanitizer("racecheck", 60),
    )  # fmt: skip
    assert tuple(stage.name for stage in parts) == NAMES
    return tuple(
        Stage(s.name, s.seconds * scale, s.command, s.lines, s.needs, s.environment) for s in parts
    )
