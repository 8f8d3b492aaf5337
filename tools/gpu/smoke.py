"""Every kernel, dtype and option of the GPU's implementations against float64.

    python tools/gpu/smoke.py [--backend cuda] [--op mmd] [--rows FILE] [--device cuda] [--small]

A line of JSON for each case: errors, whether two calls gave the same bits, the error if there was
one. Memory that kernels are given starts as NaN. Each implementation, op and precision has a
process of its own, all at once, for an error of CUDA stays in its process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).parent))  # left out by -P

BACKENDS = ("cuda", "triton")
OPS = ("mmd", "prototype_margin", "cgm_loss", "kernel_product")
PRECISIONS = ("highest", "high")
SHOWN = 20
"""Lines of failed cases that are printed; all of them are in the file."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--op", choices=OPS, action="append")
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument("--rows", type=Path, help="file to append the lines to, else the screen")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="few and small cases")
    parser.add_argument("--one-process", action="store_true", help="one after another: sanitizers")
    options = parser.parse_args()
    options.backend = options.backend or list(BACKENDS)
    options.op = options.op or list(OPS)
    options.precision = options.precision or list(PRECISIONS)
    return options


def run_here(options: argparse.Namespace, out: TextIO) -> int:
    """All cases in this process; 1 if one failed."""
    import cases
    import torch

    failed = 0
    for backend in options.backend:
        for op in options.op:
            for precision in options.precision:
                torch.set_float32_matmul_precision(precision)
                for row in rows(cases, backend, op, precision, options):
                    failed |= not row["ok"]
                    out.write(json.dumps(row) + "\n")
                    out.flush()
                    if row.get("fatal"):
                        return 1
    return failed


def rows(cases: Any, backend: str, op: str, precision: str, options: argparse.Namespace) -> Any:
    """A row for each case of an op."""
    import torch

    from cgm_fast.testing import poisoned_memory

    with poisoned_memory("cgm_fast"):
        for case in cases.of(op, small=options.small):
            row: dict[str, Any] = {
                "backend": backend, "op": op, "precision": precision, "case": str(case),
            }  # fmt: skip
            start = time.perf_counter()
            try:
                row |= cases.check(case, backend, options.device, precision)
                if options.device == "cuda":
                    torch.cuda.synchronize()
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                # After an error of CUDA every later call of the process fails too.
                fatal = "CUDA error" in text or "AcceleratorError" in text
                row |= {"ok": False, "error": text[:500], "fatal": fatal}
            row["seconds"] = round(time.perf_counter() - start, 3)
            yield row


def run_side_by_side(options: argparse.Namespace) -> int:
    """A process for each backend, op and precision; then a summary of the file."""
    path: Path = options.rows
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    children = []
    for backend in options.backend:
        for op in options.op:
            for precision in options.precision:
                command = [
                    sys.executable, "-P", __file__, "--one-process", "--rows", str(path),
                    "--backend", backend, "--op", op, "--precision", precision,
                    "--device", options.device, *["--small"] * options.small,
                ]  # fmt: skip
                children.append(((backend, op, precision), subprocess.Popen(command)))
    broken = []
    try:
        for name, child in children:
            if child.wait() not in (0, 1):
                broken.append((*name, child.returncode))
    except KeyboardInterrupt:  # out of time: what is there is worth a summary
        broken += [(*name, "late") for name, child in children if child.poll() is None]
        for _, child in children:
            child.kill()
    return summarize(path, broken)


def summarize(path: Path, broken: list[tuple[Any, ...]]) -> int:
    """Print how many cases passed and which did not; 1 if any, or a process, failed."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # of a process that was killed amid it
            broken.append((line[:80],))
    bad = [row for row in found if not row["ok"]]
    for row in bad[:SHOWN]:
        print("BAD", json.dumps(row)[:300])
    counted = Counter((r["backend"], r["op"], r["precision"], r["ok"]) for r in found)
    for (backend, op, precision, ok), count in sorted(counted.items()):
        print(f"{backend} {op} {precision}: {count} {'right' if ok else 'WRONG'}")
    for entry in broken:
        print("process ended with", *entry)
    return int(bool(bad or broken or not found))


def main() -> int:
    """0 if every case is right."""
    options = parse()
    if options.one_process:
        if options.rows is None:
            return run_here(options, sys.stdout)
        with options.rows.open("a", encoding="utf-8") as out:
            return run_here(options, out)
    if options.rows is None:
        options.rows = Path("build/gpu/smoke.jsonl")
    return run_side_by_side(options)


if __name__ == "__main__":
    sys.exit(main())
