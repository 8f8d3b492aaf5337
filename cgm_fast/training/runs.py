"""The run folder: its files, writing them whole or not at all, and building its model again."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cgm_fast.extras import require
from cgm_fast.models import LatentModel
from cgm_fast.training.build import build_model
from cgm_fast.training.config import RunConfig, TrainConfig, from_dict, to_dict

CONFIG, METRICS, MODEL, CHECKPOINT = (
    "config.json",
    "metrics.csv",
    "model.safetensors",
    "checkpoint.pt",
)
EVALUATION, EVENTS = "evaluation.json", "events"
PICTURES = ("reconstructions.png", "samples.png", "latents.png")
FILES = (CHECKPOINT, MODEL, METRICS, EVALUATION, *PICTURES, CONFIG)
FORMAT = 2  # of checkpoints


class RunError(RuntimeError):
    """A run folder or checkpoint that cannot be used or written; the message says why."""


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, either the old or the new one is there, complete.

    Raises:
        RunError: the disk is full or refuses; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "no space left" if full else error.strerror
        raise RunError(f"{path} could not be written: {reason}; the old one stands") from error
    finally:
        temporary.unlink(missing_ok=True)  # not there after the renaming


def leftovers(path: Path) -> list[Path]:
    """The temporary files of processes that were killed while they wrote to a run folder."""
    return [file for name in FILES for file in path.glob(f".{name}.*.tmp")]


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all; NaN and infinity, which JSON lacks, become null."""
    write_whole(path, (json.dumps(_finite(value), indent=2, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def default_out(config: TrainConfig) -> Path:
    """runs/<data>-<cgm1, cgm2 or another model>."""
    cgm = "cgm2" if config.supervised else "cgm1"
    kind = cgm if config.model == "cgm" else config.model
    return Path("runs") / f"{Path(config.data).stem or 'data'}-{kind}"


def open_run(config: TrainConfig) -> tuple[Path, TrainConfig]:
    """Decide on the run folder before anything is written to it.

    Returns:
        The folder, and the settings: with `resume`, those of the run that is there, but for
        `epochs`, `max_steps`, `device` and `download`, which may be given anew.

    Raises:
        RunError: it holds another run and neither resume nor overwrite is given, or it holds
            something else, or there is no run to resume.
    """
    path = Path(config.out) if config.out is not None else default_out(config)
    holds_run = (path / CONFIG).exists()
    if config.resume:
        if not holds_run:
            raise RunError(f"{path} holds no run to resume ({CONFIG} is not there)")
        saved = read_config(path)
        longer = {
            name: value
            for name in ("epochs", "max_steps")
            if (value := getattr(config, name)) is not None
        }
        return path, dataclasses.replace(
            saved, **longer, device=config.device, download=config.download, resume=True
        )
    if holds_run and not config.overwrite:
        raise RunError(
            f"{path} already holds a run: pass --resume to go on with it, --overwrite to replace "
            "it, or --out for another folder"
        )
    if not holds_run and path.exists() and not _is_empty(path):
        raise RunError(f"{path} exists and is not a run folder: pass --out for another one")
    return path, config


def _is_empty(path: Path) -> bool:
    return path.is_dir() and set(path.iterdir()) <= set(leftovers(path))


def create(path: Path, config: RunConfig) -> None:
    """Make the run folder, or empty it of the run that is there, whose config goes last.

    So a process killed in between leaves a run that can be resumed (from its first step) or
    overwritten. Files that are not a run's own stay.

    Raises:
        RunError: the folder cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        for file in (*(path / name for name in FILES if name != CONFIG), *leftovers(path)):
            file.unlink(missing_ok=True)
        if (path / EVENTS).exists():
            shutil.rmtree(path / EVENTS)
    except OSError as error:
        raise RunError(f"{path} could not be made or emptied: {error.strerror}") from error
    write_json(path / CONFIG, to_dict(config))


def reopen(path: Path, config: RunConfig) -> None:
    """Note the settings with which a run goes on, and clear what a killed process left."""
    for file in leftovers(path):
        file.unlink(missing_ok=True)
    write_json(path / CONFIG, to_dict(config))


def read_config(path: Path) -> RunConfig:
    """The settings of the run in a folder.

    Raises:
        RunError: there is no run, or its config is damaged.
    """
    try:
        values = json.loads((path / CONFIG).read_text())
        return from_dict(values)
    except FileNotFoundError as error:
        raise RunError(f"{path} holds no run: there is no {CONFIG}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:  # JSON's, ours, and missing keys
        raise RunError(f"{path / CONFIG} is not the config of a run: {error}") from error


def save_model(path: Path, model: nn.Module) -> None:
    """Write the weights as safetensors, whole or not at all."""
    safetensors = require("safetensors.torch", "saving a model")
    state = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
    write_whole(path / MODEL, safetensors.save(state))


def load_run(path: str | Path, device: str | torch.device = "cpu") -> tuple[LatentModel, RunConfig]:
    """The trained model of a run folder, in evaluation mode, and its settings.

    Raises:
        RunError: the folder holds no trained model, or its files are damaged or do not match.
    """
    config = read_config(Path(path))
    model = build_model(config)
    load_weights(path, model)
    return model.to(device).eval(), config


def load_weights(path: str | Path, model: nn.Module) -> None:
    """Give a model the weights of a finished run.

    Raises:
        RunError: the folder holds no trained model, or one that does not match, or it is damaged.
    """
    path = Path(path)
    read_config(path)
    safetensors = require("safetensors", "loading a model")
    load = require("safetensors.torch", "loading a model").load_file
    if not (path / MODEL).exists():
        raise RunError(f"{path} holds no {MODEL}: the run has not finished; go on with --resume")
    try:
        state = load(str(path / MODEL))
    except (safetensors.SafetensorError, OSError) as error:
        raise RunError(f"{path / MODEL} is damaged or no safetensors file: {error}") from error
    _load_state(path / MODEL, model.load_state_dict, state)


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a resumable checkpoint, whole or not at all."""
    import io

    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_whole(path / CHECKPOINT, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values, so a stranger's file runs no code.

    Raises:
        RunError: it is missing, truncated, or not a checkpoint of this package.
    """
    file = path / CHECKPOINT
    if not file.exists():
        raise RunError(f"{path} holds no {CHECKPOINT} to resume from")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose advice is to trust the file
        raise RunError(
            f"{file} is damaged or not a checkpoint: it holds more than tensors and plain values, "
            "or none"
        ) from error
    except Exception as error:  # pickle, zip and torch each raise classes of their own
        raise RunError(f"{file} is damaged or not a checkpoint: {_brief(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RunError(f"{file} is not a checkpoint of this version (format {FORMAT})")
    return content


def restore(path: Path, load: Callable[[Any], Any], state: Any) -> None:
    """Give a checkpoint's part to the object it belongs to; raise RunError if it does not fit."""
    _load_state(path / CHECKPOINT, load, state)


def _load_state(file: Path, load: Callable[[Any], Any], state: Any) -> None:
    try:
        load(state)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(f"{file} does not fit this run's config: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    """Its first two lines: torch's first says only that a state does not fit."""
    lines = str(error).splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[:2])
