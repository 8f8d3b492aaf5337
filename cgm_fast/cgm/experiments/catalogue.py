"""Every experiment by name, and its two sizes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cgm_fast.cgm.experiments.pictures import fig2, fig3, fig4, fig5, fig6, fig7
from cgm_fast.cgm.experiments.rehearsal import rehearsal
from cgm_fast.cgm.experiments.study import Study
from cgm_fast.cgm.experiments.sweeps import SWEEPS, few_shot, sweep
from cgm_fast.cgm.experiments.tables import table1, table2
from cgm_fast.cgm.training.config import ConfigError, TrainConfig
from cgm_fast.cgm.training.workers import read_group

EXPERIMENTS: dict[str, Callable[[Study], None]] = {
    "table1": table1,
    "table2": table2,
    "fig2": fig2,
    "fig3": fig3,
    "fig4": fig4,
    "fig5": fig5,
    "fig6": fig6,
    "fig7": fig7,
    **{f"sweep-{name}": functools.partial(sweep, name) for name in SWEEPS},
    "few-shot": few_shot,
    "rehearsal": rehearsal,
}


@dataclass(frozen=True)
class Experiment:
    """Reproduce a table, a figure or a claim of the paper: train what it needs, write it as files.

    Finished runs are kept, and interrupted ones go on: the same command may be given again. With
    other --nll-images or --nll-samples they are evaluated again; runs of other settings are
    refused, and want another --out.
    """

    name: Literal[
        "table1",
        "table2",
        "fig2",
        "fig3",
        "fig4",
        "fig5",
        "fig6",
        "fig7",
        "sweep-mmd-weight",
        "sweep-margin-weight",
        "sweep-margin",
        "sweep-prior-variance",
        "sweep-batch-size",
        "sweep-num-prototypes",
        "sweep-latent-dim",
        "sweep-descriptor",
        "few-shot",
        "rehearsal",
    ]
    """Which table, figure or claim."""
    preset: Literal["small", "full"] = "small"
    """small: one to four minutes a run on two processor cores (table1 has 24 runs, fig2 two);
    full: the paper's size, for a GPU."""
    data_root: str = "data"
    """Folder that holds torchvision's data sets, or NAME-train.npz and NAME-test.npz for one."""
    download: bool = False
    """Download a data set that is not there."""
    photographs: str | None = None
    """An npz or folder of photographs of 64 x 64 pixels, for fig5 and table2's other half."""
    out: str | None = None
    """Folder of the study; default: results/<name>-<preset>."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    seeds: int = 1
    """Runs of each system, where the experiment takes several."""
    epochs: int | None = None
    """Passes over the training images; default: 4 (small; 60 over photographs), or the data set's
    own (full)."""
    max_steps: int | None = None
    """Stop each run after this many steps."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: networks under autocast in training; faster on GPUs and on processors that have it."""
    width: int | None = None
    """Channels of the networks' outermost layer; default: 16 (small), 64 (full)."""
    nll_images: int | None = None
    """Test images for the likelihood; default: 300 (small), 10000 (full)."""
    nll_samples: int | None = None
    """Latents per image for it; default: 200 (small), 5000 (full)."""


def base_of(given: Experiment) -> TrainConfig:
    """Settings that all runs of an experiment share."""
    full = given.preset == "full"

    def choose(value: int | None, small: int, large: int | None) -> int | None:
        return value if value is not None else large if full else small

    return TrainConfig(
        data_root=given.data_root,
        download=given.download,
        device=given.device,
        epochs=choose(given.epochs, 4, None),
        max_steps=given.max_steps,
        width=choose(given.width, 16, 64),
        lr=None if full else 1e-3,
        lr_schedule="constant" if full else "cosine",
        precision=given.precision,
        nll_images=choose(given.nll_images, 300, 10_000) or 0,
        nll_samples=choose(given.nll_samples, 200, 5000) or 0,
    )


ELSEWHERE = ("data_root", "download", "out", "device")  # says nothing of results


def command_of(given: Experiment) -> str:
    """The command line that asks for an experiment, without where things lie."""
    words = ["cgm-fast", "experiment", given.name]
    for field in dataclasses.fields(Experiment):
        value = getattr(given, field.name)
        if field.name not in ("name", *ELSEWHERE) and value != field.default:
            shown = Path(value).name if field.name == "photographs" else str(value)
            words += [f"--{field.name.replace('_', '-')}", shown]
    return " ".join(words)


def run_experiment(
    given: Experiment,
    report: Callable[[str, int, int, dict[str, float]], None] | None = None,
) -> Path:
    """Run it; the folder that holds what it wrote.

    Raises:
        StoppedError: a signal stopped it; what is done is kept.
        ConfigError, DataError, RunError, NonFiniteError: as in training.
    """
    if given.seeds < 1:
        raise ConfigError(f"seeds must be at least 1, got {given.seeds}")
    if (group := read_group()).size > 1:
        raise ConfigError(
            f"an experiment runs in one process, got WORLD_SIZE {group.size}: start it without "
            "torchrun"
        )
    out = Path(given.out or Path("results") / f"{given.name}-{given.preset}")
    out.mkdir(parents=True, exist_ok=True)
    full, seeds = given.preset == "full", range(given.seeds)
    study = Study(
        out,
        base_of(given),
        full=full,
        seeds=seeds,
        report=report,
        photographs=given.photographs,
        epochs=given.epochs,
        command=command_of(given),
    )
    EXPERIMENTS[given.name](study)
    return out
