"""All that a GPU is for, in a few minutes: `python tools/gpu/run.py [SECONDS]`; see README.md.

Stages run one after another, the most valuable first. Each has a time of its own; one that fails,
hangs, or finds no time left is noted, and the next one runs. What they find is in files of OUT as
soon as it is known, and a summary is printed last.

Only the standard library: the first stage installs the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import bounded
import stages

LEAST = 8.0
"""A stage with less time than this is not begun."""
RESERVE = 5.0
"""Seconds kept for the summary."""


class Run:
    """The stages so far, and the clock."""

    def __init__(self, out: Path, seconds: float) -> None:
        self.out, self.seconds = out, seconds
        self.begin = time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        self.log = out / "log.txt"
        self.rows: list[dict[str, Any]] = []

    def note(self, **row: Any) -> None:
        """A line of stages.jsonl, and of the screen."""
        row = {"at": round(time.monotonic() - self.begin, 1), **row}
        self.rows.append(row)
        with (self.out / "stages.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if "stage" in row:
            print(f"{row['at']:6.0f} s  {row['stage']}: {row['outcome']}", flush=True)

    def stage(self, stage: stages.Stage, env: dict[str, str]) -> None:
        """Run one, as far as time and this machine allow."""
        if stage.needs and not shutil.which(stage.needs, path=env.get("PATH")):
            self.note(stage=stage.name, outcome=f"skipped: no {stage.needs} here", status=None)
            return
        left = self.seconds - (time.monotonic() - self.begin) - RESERVE - bounded.GRACE
        if left < LEAST:
            self.note(stage=stage.name, outcome="skipped: no time left", status=None)
            return
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"\n==== {stage.name}: {' '.join(stage.command)}\n")
        env = {**env, **stage.environment}
        found = bounded.run(stage.command, min(stage.seconds, left), self.log, env)
        self.note(stage=stage.name, outcome=str(found), status=found.status, late=found.late)
        for line in found.tail[-stage.lines :]:
            print(f"          {line[:200]}", flush=True)


def header(kit: Path) -> dict[str, Any]:
    """What the run is of: the commit that the kit was packed from, if there is a kit."""
    try:
        manifest = json.loads((kit / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = {}
    return {
        "commit": manifest.get("commit"),
        "dirty": manifest.get("dirty"),
        "packed_for": manifest.get("versions"),
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seconds", type=float, nargs="?", default=540.0, help="for all stages")
    parser.add_argument("--out", type=Path, default=Path("build/gpu/out"), help="for the results")
    parser.add_argument("--kit", type=Path, default=Path("build/gpu/kit"), help="of `pack.py`")
    parser.add_argument("--site", type=Path, default=stages.SITE, help="where the kit is installed")
    parser.add_argument("--python", default=sys.executable, help="what the stages run")
    parser.add_argument("--device", default="cuda", help="cpu: a rehearsal on stand-ins")
    parser.add_argument("--stages", help=f"only these, of {','.join(stages.NAMES)}")
    parser.add_argument("--scale", type=float, default=1.0, help="of every stage's own time")
    options = parser.parse_args(arguments)
    options.names = options.stages.split(",") if options.stages else list(stages.NAMES)
    if unknown := [name for name in options.names if name not in stages.NAMES]:
        parser.error(f"no stage {unknown[0]!r}; there are {', '.join(stages.NAMES)}")
    if options.seconds <= 0:
        parser.error(f"seconds must be positive, got {options.seconds:g}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the stages; 0 if none failed, 1 otherwise."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    run = Run(options.out.resolve(), options.seconds)
    run.note(header=header(options.kit), limit=options.seconds)
    found = run.rows[0]["header"]
    commit = found["commit"] and found["commit"] + ("+changes" if found["dirty"] else "")
    plan = stages.plan(
        out=run.out, kit=options.kit.resolve(), site=options.site, python=options.python,
        device=options.device, commit=commit, scale=options.scale,
    )  # fmt: skip
    env = {**os.environ, **stages.environment(options.site)}
    for stage in plan:
        if stage.name in options.names:
            try:
                run.stage(stage, env)
            except OSError as error:  # of this script's own files: the next stage may do better
                run.note(stage=stage.name, outcome=f"{error}", status=1)
    print(f"\nresults in {run.out}: {', '.join(sorted(p.name for p in run.out.iterdir()))}")
    for row in run.rows[1:]:
        print(f"{row['stage']:16} {row['outcome']}")
    return int(any(row["status"] not in (None, 0) for row in run.rows[1:]))


if __name__ == "__main__":
    sys.exit(main())
