"""The run folder: its files, whose run it holds, and building its model again."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from cgm_fast import __version__
from cgm_fast.cgm.files import LOCK, RunError, leftovers, reason, write_whole
from cgm_fast.cgm.models import LatentModel
from cgm_fast.cgm.training.build import build_model, outline
from cgm_fast.cgm.training.config import RunConfig, Settings, from_dict, to_dict
from cgm_fast.cgm.training.resuming import absolute, differences
from cgm_fast.cgm.training.states import (
    CHECKPOINT,
    MODEL,
    load_checkpoint,
    read_weights,
    restore_model,
)

CONFIG, METRICS = "config.json", "metrics.csv"
EVALUATION, EVENTS = "evaluation.json", "events"
PICTURES = ("reconstructions.png", "samples.png", "latents.png")
# In the order in which a run is taken away: while a checkpoint is there, it can go on.
FILES = (MODEL, METRICS, EVALUATION, *PICTURES, CHECKPOINT, CONFIG)
MADE_WITH = "made_with"  # key of config.json that is no setting


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all; NaN and infinity, which JSON lacks, become null."""
    write_whole(path, (json.dumps(_finite(value), indent=2, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def default_out(config: Settings[None]) -> Path:
    """runs/<data>-<cgm1, cgm2 or another model>."""
    cgm = "cgm2" if config.supervised else "cgm1"
    kind = cgm if config.model == "cgm" else config.model
    return Path("runs") / f"{Path(config.data).stem or 'data'}-{kind}"


def open_run(
    config: Settings[None], given: Collection[str] | None = None
) -> tuple[Path, Settings[None]]:
    """Decide on the run folder before anything is written to it.

    Args:
        config: Settings as a user gives them.
        given: Names of those that were given, for `resume`; None takes those that differ from
            their defaults.

    Returns:
        The folder, and the settings: with `resume`, those of the run that is there, with what may
        be given anew (see `resuming.MAY_CHANGE`).

    Raises:
        RunError: it holds another run and neither resume nor overwrite is given, or it holds
            something else, or there is no run to resume, or its checkpoint is missing though
            there is something to lose.
        ConfigError: a setting that decides what the run is differs from what it began with.
    """
    path = Path(config.out) if config.out is not None else default_out(config)
    holds_run = (path / CONFIG).exists()
    if config.resume:
        if not holds_run:
            raise RunError(f"{path} holds no run to resume ({CONFIG} is not there)")
        saved = read_config(path)
        if not (path / CHECKPOINT).exists() and (lost := _would_be_lost(path)):
            raise RunError(
                f"{path} holds {', '.join(lost)} but no {CHECKPOINT} to resume from: put it back, "
                "or pass --overwrite to begin anew, or --init to begin with these weights elsewhere"
            )
        changes = differences(saved, config, given)
        return path, dataclasses.replace(
            saved, **changes, device=config.device, cuda_graph=config.cuda_graph,
            download=config.download, resume=True,
        )  # fmt: skip
    if holds_run and not config.overwrite:
        raise RunError(
            f"{path} already holds a run: pass --resume to go on with it, --overwrite to replace "
            "it, or --out for another folder"
        )
    if not holds_run and path.exists() and not _is_empty(path):
        raise RunError(f"{path} exists and is not a run folder: pass --out for another one")
    return path, absolute(config)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and set(path.iterdir()) <= {*leftovers(path, FILES), path / LOCK}


def _would_be_lost(path: Path) -> list[str]:
    """What of a run without a checkpoint took time: before the first one there is none of it."""
    return [name for name in (MODEL, METRICS, EVALUATION) if (path / name).exists()]


def create(path: Path, config: RunConfig, processes: int = 1) -> None:
    """Make the run folder, or empty it of the run that is there, whose config goes last.

    So a process killed in between leaves a run that can be resumed (from its first step) or
    overwritten. Files that are not a run's own stay.

    Raises:
        RunError: the folder cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        own = (path / name for name in FILES if name != CONFIG)
        for file in (*own, *leftovers(path, FILES)):
            file.unlink(missing_ok=True)
        if (path / EVENTS).exists():
            shutil.rmtree(path / EVENTS)
    except OSError as error:
        raise RunError(f"{path} could not be made or emptied: {reason(error)}") from error
    _write_config(path, config, processes)


def reopen(path: Path, config: RunConfig, processes: int = 1) -> None:
    """Note the settings with which a run goes on, and clear what a killed process left."""
    for file in leftovers(path, FILES):
        file.unlink(missing_ok=True)
    _write_config(path, config, processes)


def _write_config(path: Path, config: RunConfig, processes: int) -> None:
    made_with = {
        "cgm_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }
    write_json(path / CONFIG, {**to_dict(config), MADE_WITH: made_with})


def read_config(path: Path) -> RunConfig:
    """The settings of the run in a folder.

    Raises:
        RunError: there is no run, or its config is damaged.
    """
    try:
        values = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        if isinstance(values, dict):
            values.pop(MADE_WITH, None)  # told to readers
        return from_dict(values)
    except FileNotFoundError as error:
        raise RunError(f"{path} holds no run: there is no {CONFIG}") from error
    except RecursionError as error:
        raise RunError(f"{path / CONFIG} is not the config of a run: nested too deep") from error
    except (OSError, ValueError, TypeError, KeyError) as error:  # JSON's, ours, and missing keys
        raise RunError(f"{path / CONFIG} is not the config of a run: {error}") from error


def load_run(path: str | Path, device: str | torch.device = "cpu") -> tuple[LatentModel, RunConfig]:
    """The trained model of a run folder, in evaluation mode, and its settings.

    Raises:
        RunError: the folder holds no trained model, or its files are damaged, do not match, or
            hold what no training leaves there.
    """
    path = Path(path)
    config = read_config(path)
    file = path / MODEL
    if not file.exists():
        raise RunError(f"{path} holds no {MODEL}: the run has not finished; go on with --resume")
    state = read_weights(file)
    # First on paper, without memory: a config may ask for a model of any size.
    restore_model(file, outline(config, path / CONFIG), state)
    model = build_model(config)
    restore_model(file, model, state)
    return model.to(device).eval(), config


def load_weights(path: str | Path, model: LatentModel) -> None:
    """Give a model the weights of a run, to begin with: its last ones, if it has not finished.

    Raises:
        RunError: the folder holds no trained model, or one that does not match, or it is damaged.
    """
    path = Path(path)
    read_config(path)
    file = path / MODEL
    if file.exists():
        state = read_weights(file)
    elif (path / CHECKPOINT).exists():
        file = path / CHECKPOINT
        state = load_checkpoint(path)["model"]
    else:
        raise RunError(f"{path} holds neither {MODEL} nor {CHECKPOINT}")
    restore_model(file, model, state)
