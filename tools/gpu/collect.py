"""After a run: `python tools/gpu/collect.py OUT` puts its rows into benchmarks/results.

Prints what each stage came to, the ceilings, what was wrong, and the tables of the benchmarks;
writes benchmarks/results/<device>.csv. The commit is the one that the kit was packed from, which a
machine without a repository cannot tell; --commit where there was no kit.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from benchmarks import report  # noqa: E402


def lines(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines as far as it can be read; none if it is not there."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:  # of a process that was ended amid it
            continue
    return found


def commit_of(stages: list[dict[str, Any]]) -> str | None:
    """What the kit was packed from, as `report` takes it; None if nobody knows."""
    header = next((row["header"] for row in stages if "header" in row), {})
    if not header.get("commit"):
        return None
    return header["commit"] + ("+changes" if header.get("dirty") else "")


def main(arguments: list[str] | None = None) -> None:
    """Print and write what a run found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--commit", help="of the run, with +changes if the tree had some")
    options = parser.parse_args(arguments)
    stages = lines(options.out / "stages.jsonl")
    if not stages:
        sys.exit(f"collect.py: {options.out} has no stages.jsonl: no run wrote it")
    for row in stages:
        if "stage" in row:
            print(f"{row['stage']:16} {row['outcome']}")
    ceilings = options.out / "ceilings.json"
    if ceilings.exists():
        print(f"\nceilings: {' '.join(ceilings.read_text(encoding='utf-8').split())}")
    cases = lines(options.out / "smoke.jsonl")
    wrong = [row for row in cases if not row["ok"]]
    print(f"\nsmoke: {len(cases) - len(wrong)} of {len(cases)} cases right")
    for row in wrong:
        print(f"  {json.dumps(row)}")
    rows = options.out / "rows.jsonl"
    if not rows.exists():
        sys.exit("collect.py: no benchmark has a result")
    commit = options.commit or commit_of(stages)
    print()
    report.main([str(rows), "--csv", *(["--commit", commit] if commit else [])])


if __name__ == "__main__":
    main()
