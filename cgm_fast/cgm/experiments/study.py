"""What every experiment has: runs that are made once, a table, a figure, and where they lie.

A study's folder holds runs/<name>, one for each model and seed, and what was made of them. Runs
that have finished are not made again and interrupted ones go on: a study may be stopped any time.
Runs of other settings are refused rather than shown under the new ones' name.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cgm_fast.cgm.data import ImageData
from cgm_fast.cgm.extras import require
from cgm_fast.cgm.files import RunError, locked, write_whole
from cgm_fast.cgm.models import LatentModel
from cgm_fast.cgm.training import pipeline, runs
from cgm_fast.cgm.training.config import RunConfig, TrainConfig, to_dict
from cgm_fast.cgm.training.presets import resolve
from cgm_fast.cgm.training.trainer import Report
from cgm_fast.cgm.training.workers import pick_device

SECONDS = "study.json"

# Settings that say nothing of what comes out, or only of how a finished run is evaluated.
ELSEWHERE = {"out", "data_root", "device", "log_every", "checkpoint_every"}
OF_EVALUATION = {"nll_images", "nll_samples", "probes", "pictures"}


class StoppedError(RuntimeError):
    """A signal stopped a run of the study; it goes on where it was when the study is run again."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number} after saving; run the same command to go on")
        self.number = number


@dataclass(frozen=True)
class Trained:
    """A finished run of a study."""

    name: str
    path: Path
    evaluation: dict[str, Any]
    seconds: float
    """Wall time of training and evaluation, over all its parts."""

    @property
    def steps(self) -> int:
        """Of training, as far as it went."""
        with (self.path / runs.METRICS).open(newline="") as file:
            return int(list(csv.DictReader(file))[-1]["step"])

    @property
    def epochs(self) -> str:
        """Passes over the training images, as far as it went, to three digits."""
        batch_size = runs.read_config(self.path).batch_size
        return f"{self.steps * batch_size / self.evaluation['train_images']:.3g}"

    def data(self) -> ImageData:
        """What it was trained and evaluated on."""
        return pipeline.load_run_data(runs.read_config(self.path))

    def load(self, device: torch.device) -> tuple[LatentModel, RunConfig, ImageData]:
        """The model in evaluation mode, its settings and its data."""
        model, config = runs.load_run(self.path, device)
        return model, config, pipeline.load_run_data(config)


@dataclass(frozen=True)
class Study:
    """Where and how an experiment runs.

    Attributes:
        out: Its folder.
        base: Settings of every run, which an experiment changes.
        full: Whether at the paper's size, rather than one for two processor cores.
        seeds: Of which there is a run each.
        report: Called after each training step with (run, step, total steps, latest averages).
        photographs: Where some of 64 x 64 pixels are.
        epochs: As asked for; None leaves them to the base, or to what an experiment knows better.
        command: What makes it, for the notes.
    """

    out: Path
    base: TrainConfig
    full: bool = False
    seeds: Sequence[int] = (0,)
    report: Callable[[str, int, int, dict[str, float]], None] | None = None
    photographs: str | None = None
    epochs: int | None = None
    command: str = ""

    @property
    def light(self) -> dict[str, Any]:
        """Settings of runs whose probes are not shown, and likelihoods not, or hard to have."""
        few = self.base.nll_images if self.full else min(50, self.base.nll_images)
        return {"probes": False, "nll_images": few}

    def pixel_by_pixel(self, steps: int | None = None) -> dict[str, Any]:
        """Settings of runs with an autoregressive decoder, which sees an image for every latent.

        Args:
            steps: Of training, at most, in the small preset.
        """
        images, samples = (1000, 100) if self.full else (20, 20)
        base = self.base
        limits = (None if self.full else steps, base.max_steps)
        return {
            "max_steps": min(filter(None, limits), default=None),
            "nll_images": min(images, base.nll_images),
            "nll_samples": min(samples, base.nll_samples),
            "pictures": self.full,
        }

    @property
    def of_photographs(self) -> dict[str, Any]:
        """Settings of runs on them; a small set, such as fits the small preset, is seen often."""
        many = self.epochs if self.full else self.epochs or 60
        return self.light | {"data": self.photographs, "epochs": many}

    def train(self, name: str, **changes: Any) -> Trained:
        """A run of this name, made unless it is there, and evaluated again if only that differs.

        Args:
            name: Of its folder.
            **changes: Settings that differ from the base's.

        Raises:
            StoppedError: a signal stopped it.
            RunError: it was made with other settings.
            ConfigError, DataError, RunError, NonFiniteError: as in training.
        """
        path = self.out / "runs" / name
        notes = path / SECONDS
        given = {key: value for key, value in changes.items() if value is not None}
        config = replace(self.base, **given, out=str(path))
        there = (path / runs.CONFIG).exists()
        if there:
            _agree(path, config)
        if notes.exists():
            evaluation = json.loads((path / runs.EVALUATION).read_text())
            return Trained(name, path, evaluation, json.loads(notes.read_text())["seconds"])
        config = replace(config, resume=there)
        started, before = time.perf_counter(), _spent(path)
        try:
            result = pipeline.train(config, self._reporter(name))
            if result.stopped_by:
                raise StoppedError(result.stopped_by)
        except BaseException:  # also an evaluation that Ctrl-C ends
            if (path / runs.CONFIG).exists():
                spent = before + time.perf_counter() - started
                runs.write_json(path / f"part-{SECONDS}", {"seconds": spent})
            raise
        seconds = before + time.perf_counter() - started
        assert result.evaluation is not None
        runs.write_json(notes, {"seconds": seconds})
        return Trained(name, path, result.evaluation, seconds)

    def _reporter(self, name: str) -> Report | None:
        if self.report is None:
            return None
        report = self.report
        return lambda step, total, latest: report(name, step, total, latest)

    def write_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], notes: str
    ) -> None:
        """name.csv and name.md, which ends in the notes and in what it was made with."""
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        shown = [{column: "" if x is None else str(x) for column, x in row.items()} for row in rows]
        writer.writerows(shown)
        write_whole(self.out / f"{name}.csv", text.getvalue().encode())
        lines = [f"| {' | '.join(columns)} |", "| --- |" + " ---: |" * (len(columns) - 1)]
        lines += [f"| {' | '.join(row.get(column, '') for column in columns)} |" for row in shown]
        self.write_notes(name, "\n".join(lines) + f"\n\n{notes}")

    def write_notes(self, name: str, text: str) -> None:
        """name.md, which ends in what it was made with."""
        made = f"`{self.command}` on {describe(self.base.device)}, torch {torch.__version__}."
        write_whole(self.out / f"{name}.md", f"{text}\n\n{made}\n".encode())


def _agree(path: Path, config: TrainConfig) -> None:
    """Raise RunError if the run that is there differs; mark it unevaluated if only that does."""
    saved = runs.read_config(path)
    asked = resolve(config, pipeline.load_data(config))
    before, now = _settings(saved), _settings(asked)
    changed = [name for name in now if before[name] != now[name]]
    if trained := [name for name in changed if name not in OF_EVALUATION]:
        differ = ", ".join(f"{name} {before[name]} (now {now[name]})" for name in trained)
        raise RunError(f"{path} was made with {differ}: pass --out for another folder")
    if changed:
        notes = path / SECONDS
        if notes.exists():  # first: a process killed in between leaves a run to be gone on with
            notes.replace(path / f"part-{SECONDS}")
        with locked(path):
            runs.reopen(path, replace(saved, **{name: now[name] for name in changed}))


def _settings(config: RunConfig) -> dict[str, Any]:
    """Those that decide what comes out; files and folders by their names, for they may move."""
    values = {key: value for key, value in to_dict(config).items() if key not in ELSEWHERE}
    names = {key: Path(values[key]).name for key in ("data", "test_data", "init") if values[key]}
    return values | names


def _spent(path: Path) -> float:
    notes = path / f"part-{SECONDS}"
    return float(json.loads(notes.read_text())["seconds"]) if notes.exists() else 0.0


def describe(device: str) -> str:
    """The device's name and how much of it was used."""
    found = pick_device(device)
    if found.type == "cuda":
        return str(torch.cuda.get_device_name(found))
    threads = torch.get_num_threads()
    cpu = f"{threads} thread{'s' if threads > 1 else ''} of a CPU"
    return cpu if found.type == "cpu" else found.type


RATES = {
    "nominal rate, bit": "nominal",
    "Gaussian bound, bit": "gaussian_bound",
    "Monte-Carlo rate, bit": "monte_carlo",
}
RATE_NOTE = """Rates in bits per image: the nominal one of a fixed noise, the Gaussian bound of the
codes, and Monte Carlo of I(x; z) over 10,000 training codes or all, at most log2 of their number,
13.3."""


def rate_columns(found: Sequence[Trained]) -> dict[str, str]:
    """Rates by column, over runs of several seeds; a learned noise has no nominal one."""
    rates = [run.evaluation["rate_bits"] for run in found]
    return {
        column: interval([rate[name] for rate in rates])
        for column, name in RATES.items()
        if name in rates[0]
    }


def interval(values: Sequence[float], digits: int = 2) -> str:
    """The mean, and half the width of its 95 % interval by Student's t if there are several."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    stats = require("scipy.stats", "intervals")
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"
