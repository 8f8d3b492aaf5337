"""Instructions that the CPU kernels take, counted by callgrind: a guard without a clock.

    python tests/native/instructions.py DRIVER             compare with instructions.csv
    python tests/native/instructions.py DRIVER --update    write it

DRIVER is built by tests/native/CMakeLists.txt; `make instructions` does both. One thread; valgrind
has no AVX-512, so that an AVX2 kernel is what is counted. Counts repeat to about 1 % for the
smallest case and 0.01 % for the others; another compiler than the table's gets a wide margin.
"""

import argparse
import csv
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TABLE = Path(__file__).with_name("instructions.csv")
MARGIN, OTHER_COMPILER = 0.03, 0.30


def count(driver: str) -> tuple[str, str, dict[str, int]]:
    """Compiler, instruction set, and instructions of every case."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "valgrind",
            "--tool=callgrind",
            "--toggle-collect=cgm_fast_counted",  # nothing outside the call
            "--dump-after=cgm_fast_counted",  # a numbered file per case
            f"--callgrind-out-file={folder}/out",
            driver,
            "count",
        ]
        environment = {**os.environ, "CGM_FAST_ISA": "avx2", "LD_BIND_NOW": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stderr[-2000:]}")
        about, *cases = done.stdout.splitlines()
        compiler, isa = about.rsplit(" ", 1)
        totals = []
        for number in range(1, len(cases) + 1):
            lines = Path(f"{folder}/out.{number}").read_text().splitlines()
            totals.append(
                next(int(line.split()[1]) for line in lines if line.startswith("totals:"))
            )
    return compiler, isa, dict(zip(cases, totals, strict=True))


def compare(compiler: str, isa: str, counts: dict[str, int]) -> int:
    """Prints a line per case; returns how many fail."""
    with TABLE.open(newline="") as file:
        table = {(row["case"], row["isa"]): row for row in csv.DictReader(file)}
    failures = fewer = 0
    for case, found in counts.items():
        row = table.pop((case, isa), None)
        if row is None:
            print(f"FAILED {case}: not in the table for {isa}; run with --update")
            failures += 1
            continue
        wanted = int(row["instructions"])
        margin = MARGIN if row["compiler"] == compiler else OTHER_COMPILER
        change = found / wanted - 1
        verdict = "FAILED" if change > margin else "fewer" if change < -margin else "ok"
        failures += verdict == "FAILED"
        fewer += verdict == "fewer"
        note = "" if margin == MARGIN else f"; counted by {row['compiler']}, this is {compiler}"
        print(f"{verdict:6} {case:24} {found:12,} {change:+8.2%} (limit {margin:+.0%}{note})")
    for case, _ in (key for key in table if key[1] == isa):
        print(f"FAILED {case}: in the table, not counted; run with --update")
        failures += 1
    if fewer:
        print(f"{fewer} got cheaper: run with --update, so that this stays so")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("driver", help="the program built by tests/native/CMakeLists.txt")
    parser.add_argument("--update", action="store_true", help="write the table")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None or platform.machine() not in ("x86_64", "AMD64"):
        print("SKIPPED: instructions are counted on x86-64 with valgrind, which is not here")
        return 0
    compiler, isa, counts = count(arguments.driver)
    if isa != "avx2":
        print("SKIPPED: instructions are counted with AVX2, which is not here")
        return 0
    if not arguments.update:
        return int(compare(compiler, isa, counts) > 0)
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("case", "isa", "compiler", "instructions"))
        writer.writerows((case, isa, compiler, total) for case, total in counts.items())
    return 0


if __name__ == "__main__":
    sys.exit(main())
