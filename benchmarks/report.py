"""Tables, figures and CSV rows from the JSON of a run: `python -m benchmarks.report`.

Prints Markdown: a table per op with a row per shape. What a column means stands in README.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.floors import Work, gpu_limit, gpu_rates

HERE = Path(__file__).parent
LAST = HERE / "results" / "last.json"

CSV_COLUMNS = (
    "op", "shape", "peer", "device_type", "threads", "dtype", "median_ms", "p20_ms", "p80_ms",
    "device_ms", "launches", "ratio", "limit_share", "limit_unit", "peak_mb", "loss_error",
    "gradient_error", "device", "instruction_set", "versions", "commit", "date",
)  # fmt: skip
KEY = (*CSV_COLUMNS[:5], "instruction_set")
"""The columns that tell rows apart: a later run replaces the rows that it measured again."""

Row = dict[str, Any]


def quantile(values: list[float], share: float) -> float:
    """The value below which a share of the values lies."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[round(100 * share) - 1]


UNKNOWN = "unversioned"
"""pytest-benchmark's word for the commit of a tree without a repository."""


def commit_info(text: str) -> dict[str, Any]:
    """ "c0ffee" or "c0ffee+changes", as `--commit` takes it and the CSV has it."""
    name, _, changes = text.partition("+")
    if not re.fullmatch(r"[0-9a-f]{6,40}", name) or changes not in ("", "changes"):
        raise ValueError(f"a commit is hexadecimal, perhaps with +changes, got {text!r}")
    return {"id": name, "dirty": bool(changes)}


def contents(path: Path) -> Iterator[dict[str, Any]]:
    """What pytest-benchmark would write, once for each session of the file.

    A file of `--rows` has a session's header, then a line for each result; the last line may be
    cut, of a process that was ended.

    Raises:
        ValueError: the file is none that this suite wrote.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        yield json.loads(text)
        return
    sessions: list[dict[str, Any]] = []
    for number, line in enumerate(lines := text.splitlines()):
        try:
            value = json.loads(line)
        except ValueError:
            if number == len(lines) - 1:
                break
            raise ValueError(f"{path}, line {number + 1}: no JSON") from None
        if "machine_info" in value:
            sessions.append(value | {"benchmarks": []})
        elif sessions:
            sessions[-1]["benchmarks"].append(value)
        else:
            raise ValueError(f"{path}: a result comes before what it was measured on")
    yield from sessions


def read(path: Path, commit: str | None = None) -> list[Row]:
    """The rows of one JSON file, with numbers in the units of the CSV; unknown ones are None.

    Args:
        path: What pytest-benchmark wrote, or a file of `--rows`.
        commit: What was measured, where the file does not say.

    Raises:
        ValueError: the file is none that this suite wrote.
    """
    return [row for content in contents(path) for row in rows_of(content, path, commit)]


def rows_of(content: dict[str, Any], path: Path, known: str | None) -> list[Row]:
    """The rows of one session."""
    machine = content.get("machine_info", {})
    if "devices" not in machine:
        raise ValueError(f"{path} was not written by this suite: it does not name its devices")
    commit = content.get("commit_info", {})
    if known is not None and commit.get("id") in (None, UNKNOWN):
        commit = commit_info(known)
    properties = machine.get("gpu")
    rows = []
    for entry in content["benchmarks"]:
        info = entry["extra_info"]
        if "op" not in info:
            continue
        times = [1e3 * seconds for seconds in entry["stats"]["data"]]
        errors = info.get("errors", {})
        on_gpu = info["device"] == "cuda"
        device_seconds = info.get("device_seconds")
        instruction_set = (machine.get("compiled_module") or {}).get("instruction_set")
        if on_gpu:  # None in place of a processor's; the capability is NVIDIA's
            known = properties and properties["capability"]
            instruction_set = f"compute capability {known}" if known else None
        row: Row = {
            "op": info["op"],
            "shape": " ".join(f"{name}={value}" for name, value in info["shape"].items()),
            "sizes": info["shape"],
            "peer": info["peer"],
            "ours": info["ours"],
            "assigns_only": info.get("assigns_only", False),
            "compared": "work" in info,
            "device_type": info["device"],
            "precision": info.get("precision", "highest"),
            # Those of the processor tell rows of a GPU nothing.
            "threads": None if on_gpu else info["threads"],
            "dtype": info["dtype"],
            "median_ms": statistics.median(times),
            "p20_ms": quantile(times, 0.2),
            "p80_ms": quantile(times, 0.8),
            "device_ms": None if device_seconds is None else 1e3 * device_seconds,
            "launches": info.get("launches"),
            "floor_ms": None,
            "limit_share": None,
            "limit_unit": None,
            "peak_mb": None if info.get("peak_bytes") is None else info["peak_bytes"] / 1e6,
            "loss_error": errors.get("loss"),
            "gradient_error": errors.get("gradient"),
            "images_per_second": info.get("images_per_second"),
            "device": machine["devices"][info["device"]],
            "instruction_set": instruction_set,
            "versions": " ".join(f"{k}={v}" for k, v in machine["versions"].items()),
            "commit": str(commit.get("id"))[:12] + ("+changes" if commit.get("dirty") else ""),
            "date": content["datetime"][:10],
        }
        if "part" in info:
            row["shape"] += f", {info['part']}"
        if "work" in info and (found := limit(Work(**info["work"]), row, machine)):
            row["floor_ms"], row["limit_unit"] = found
            row["limit_share"] = row["floor_ms"] / row["median_ms"]
        rows.append(row)
    return rows


def limit(work: Work, row: Row, machine: dict[str, Any]) -> tuple[float, str | None] | None:
    """The limit of a row's machine in milliseconds, and a GPU's unit; None if it has none."""
    if row["device_type"] == "cpu" and (rates := machine.get("limits")):
        return 1e3 * work.seconds(**rates), None
    if row["device_type"] == "cuda" and (properties := machine.get("gpu")):
        rates = gpu_rates(properties)
        if rates is not None:
            seconds, unit = gpu_limit(work, rates, row["precision"])
            return 1e3 * seconds, unit
    return None


def merge(runs: Iterable[list[Row]]) -> list[Row]:
    """Rows of several runs, the later ones in place of the earlier, with ratios filled in.

    A row's ratio is its time over that of our fastest implementation at the same shape and
    precision of products.
    """
    found = {tuple(row[name] for name in ("device", *KEY)): row for run in runs for row in run}
    rows = list(found.values())
    for row in rows:
        best = best_of_ours(rows, row)
        row["ratio"] = row["median_ms"] / best["median_ms"] if best else None
    return rows


def best_of_ours(rows: list[Row], like: Row) -> Row | None:
    """Our fastest implementation at a row's op, shape, device, instruction set and precision."""
    same = ("op", "shape", "device", "threads", "instruction_set", "precision")
    ours = [r for r in rows if r["ours"] and all(r[name] == like[name] for name in same)]
    return min(ours, key=lambda row: row["median_ms"], default=None)


# Markdown


def significant(value: float, digits: int = 3) -> str:
    """The value with so many digits and no exponent: 0.0123, 4.56, 789, 1230."""
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e" in text and value > 1 else text


def table(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table; the first column to the left, the rest to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def unique(values: Iterable[Any]) -> list[Any]:
    """The values in order, each once."""
    return list(dict.fromkeys(values))


def op_tables(rows: list[Row]) -> str:
    """Times, then peak memory and gradient errors, of one op on one device."""
    peers = unique(row["peer"] for row in rows)
    by_case = {(row["shape"], row["peer"]): row for row in rows}
    ours = {row["peer"] for row in rows if row["ours"]}
    partly = {row["peer"] for row in rows if row["assigns_only"]}
    # A sweep has few peers and a figure of its own; on GPUs the longest shapes are ours alone.
    shapes = [
        shape
        for shape in unique(row["shape"] for row in rows)
        if any((shape, peer) in by_case for peer in peers if peer not in ours)
        or len(ours) == len(peers)
        or rows[0]["device_type"] == "cuda"
    ]
    times, rest = [], []
    for shape in shapes:
        best = best_of_ours(rows, next(row for row in rows if row["shape"] == shape))
        if best is None:
            continue
        others = [peer for peer in peers if peer != best["peer"]]
        share = "" if best["limit_share"] is None else f"{best['limit_share']:.0%}"
        line = [shape, f"{significant(best['median_ms'])} ({best['peer']})", share]
        for peer in peers:
            row = by_case.get((shape, peer))
            if row is None:
                line.append("")
            elif peer not in others:
                line.append("1")
            else:
                line.append(f"{significant(row['ratio'], 2)}")
        times.append(line)
        rest.append([shape, *(memory_and_error(by_case.get((shape, peer))) for peer in peers)])
    named = [f"{peer} *" if peer in partly else peer for peer in peers]
    text = table(["shape", "best of ours, ms", "share of limit", *named], times)
    if partly:
        text += "\n\n\\* assignment only, neither loss nor gradients"
    text = (
        f"Time; peers as multiples of the best of ours:\n\n{text}\n\n"
        "Peak memory beyond the inputs in MB, relative error of the gradient:\n\n"
        + table(["shape", *named], rest)
    )
    if any(row["launches"] for row in rows):
        lines = [
            [shape, *(on_device(by_case.get((shape, peer))) for peer in peers)] for shape in shapes
        ]
        text += "\n\nTime on the GPU alone in ms, kernels launched:\n\n"
        text += table(["shape", *named], lines)
    return text


def on_device(row: Row | None) -> str:
    """A cell of the third table, which only GPUs have."""
    if row is None:
        return ""
    device_ms = "" if row["device_ms"] is None else significant(row["device_ms"])
    return ", ".join(part for part in (device_ms, str(row["launches"] or "")) if part)


def memory_and_error(row: Row | None) -> str:
    """A cell of the second table."""
    if row is None:
        return ""
    memory = "" if row["peak_mb"] is None else significant(row["peak_mb"], 2)
    error = "" if row["gradient_error"] is None else f"{row['gradient_error']:.0e}"
    return ", ".join(part for part in (memory, error) if part)


def plain_table(rows: list[Row]) -> str:
    """A line for each row, for what has no shapes to compare."""
    lines = []
    for row in rows:
        cells = [row["shape"], row["peer"], significant(row["median_ms"])]
        rate, peak = row["images_per_second"], row["peak_mb"]
        cells.append("" if rate is None else significant(rate))
        cells.append("" if peak is None else significant(peak))
        lines.append(cells)
    return table(["shape", "peer", "ms", "images/s", "peak MB"], lines)


def markdown(rows: list[Row]) -> str:
    """All tables, with what they were measured on."""
    parts = []
    machine = ("device", "threads", "instruction_set")
    for place in unique(tuple(row[name] for name in machine) for row in rows):
        here = [row for row in rows if tuple(row[name] for name in machine) == place]
        first = here[0]
        parts.append(
            f"## {', '.join((first['device'], *running_on(first)))}\n\n"
            f"{first['date']}, commit {first['commit']}, {first['versions']}"
        )
        for op in unique(row["op"] for row in here):
            of_op = [row for row in here if row["op"] == op]
            if not any(row["compared"] for row in of_op):
                parts.append(f"### {op}\n\n{plain_table(of_op)}")
                continue
            for precision in unique(row["precision"] for row in of_op):
                title = op if precision == "highest" else f"{op}, products at {precision!r}: tf32"
                same = [row for row in of_op if row["precision"] == precision]
                parts.append(f"### {title}\n\n{op_tables(same)}")
    return "\n\n".join(parts)


def running_on(row: Row) -> list[str]:
    """Threads and instruction set, or capability, of those that a row has."""
    threads = row["threads"]
    words = [] if threads is None else [f"{threads} thread{'s' if threads > 1 else ''}"]
    return words + ([row["instruction_set"]] if row["instruction_set"] else [])


# CSV


def slug(name: str) -> str:
    """A device's name as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write_csv(rows: list[Row], folder: Path) -> list[Path]:
    """Add the rows to the file of their device, in place of what they measure again."""
    paths = []
    for device in unique(row["device"] for row in rows):
        path = folder / f"{slug(device)}.csv"
        kept: dict[tuple[str, ...], dict[str, str]] = {}
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                kept = {tuple(row[name] for name in KEY): row for row in csv.DictReader(file)}
        for row in rows:
            if row["device"] == device:
                texts = {name: as_text(row[name]) for name in CSV_COLUMNS}
                kept[tuple(texts[name] for name in KEY)] = texts
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept.values())
        paths.append(path)
    return paths


def as_text(value: Any) -> str:
    """A cell of the CSV: four digits, nothing for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> None:
    """Print the tables of one or several runs; on request, write CSV rows and figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("json", nargs="*", type=Path, help="of pytest-benchmark; the last run's")
    parser.add_argument("--csv", action="store_true", help="update benchmarks/results/*.csv")
    parser.add_argument("--commit", help="of the runs of files that do not say it")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="draw figures into FOLDER")
    options = parser.parse_args(arguments)
    try:
        rows = merge([read(path, options.commit) for path in options.json or [LAST]])
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")
    if options.csv and any(row["commit"].startswith((UNKNOWN, "None")) for row in rows):
        sys.exit(f"{parser.prog}: rows of no known commit; name it with --commit")
    print(markdown(rows))
    written: list[Path] = []
    if options.csv:
        written += write_csv(rows, HERE / "results")
    if options.figures is not None:
        from benchmarks import figures

        written += figures.draw(rows, options.figures)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
