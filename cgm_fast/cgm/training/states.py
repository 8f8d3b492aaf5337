"""Weights and checkpoints as files: written whole, with checksums, and read with suspicion.

A checkpoint is torch's zip archive, which has a CRC-32 of each of its records; torch does not look
at them, so they are checked here. Weights are a safetensors file with a SHA-256 of their names,
shapes and values in its header. Files that were written before there was one are read without.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cgm_fast.cgm.extras import require
from cgm_fast.cgm.files import RunError, reason, write_whole
from cgm_fast.cgm.models import LatentModel

MODEL, CHECKPOINT = "model.safetensors", "checkpoint.pt"
FORMAT = 2  # of checkpoints
_CHECKSUM = "sha256"

# Weights


def save_model(path: Path, model: nn.Module) -> None:
    """Write the weights to a run folder as safetensors, whole or not at all."""
    safetensors = require("safetensors.torch", "saving a model")
    state = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
    # One entry: several are written in no particular order, and equal weights are equal files.
    write_whole(path / MODEL, safetensors.save(state, {_CHECKSUM: checksum(state)}))


def checksum(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of the names, dtypes, shapes and values of dense CPU tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        RunError: it is damaged, or no safetensors file.
    """
    safetensors = require("safetensors", "loading a model")
    load = require("safetensors.torch", "loading a model").load_file
    try:
        with safetensors.safe_open(str(file), framework="pt") as opened:
            expected = (opened.metadata() or {}).get(_CHECKSUM)
        state: dict[str, Tensor] = load(str(file))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{file} is damaged or no safetensors file: {error}") from error
    if expected is not None and checksum(state) != expected:
        raise RunError(f"{file} is damaged: its content differs from its checksum")
    return state


def restore_model(file: Path, model: LatentModel, state: Any) -> None:
    """Give a model the tensors of a file.

    Args:
        file: Where they come from, for the message.
        model: Of the same sizes; on the meta device, only names and shapes are compared.
        state: By name.

    Raises:
        RunError: they do not fit, or are not what training leaves: finite numbers, and a share of
            the images for each category.
    """
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise RunError(f"{file} does not fit this run's config: it holds no tensors by name")
    own = model.state_dict()
    for wrong, names in (("lacks", own.keys() - state.keys()), ("has", state.keys() - own.keys())):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            raise RunError(f"{file} does not fit this run's config: it {wrong} {shown}")
    for name, value in state.items():
        wanted = own[name]
        if (wanted.shape, wanted.dtype) != (value.shape, value.dtype):
            raise RunError(
                f"{file} does not fit this run's config: size or dtype of {name} must be "
                f"{list(wanted.shape)} {wanted.dtype}, got {list(value.shape)} {value.dtype}"
            )
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise RunError(f"{file} holds NaN or infinity in {name}")
    usage = state["usage"]
    if bool((usage < 0).any()) or float(usage.sum()) <= 0:
        raise RunError(
            f"{file} holds shares of categories (usage) that are none: they must be at least 0, "
            "and not all 0"
        )
    if not own["usage"].is_meta:
        model.load_state_dict(dict(state))


# Checkpoints


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a resumable checkpoint to a run folder, whole or not at all."""
    buffer = io.BytesIO()
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)  # whatever the caller has chosen for others
    try:
        torch.save({"format": FORMAT, **content}, buffer)
    finally:
        torch.serialization.set_crc32_options(before)
    write_whole(path / CHECKPOINT, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values, so a stranger's file runs no code.

    Raises:
        RunError: it is missing, truncated, changed, or not a checkpoint of this package.
    """
    file = path / CHECKPOINT
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise RunError(f"{path} holds no {CHECKPOINT} to resume from") from error
    except OSError as error:
        raise RunError(f"{file} could not be read: {reason(error)}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError,
            NotImplementedError, UnicodeError) as error:  # fmt: skip
        raise RunError(f"{file} is damaged or not a checkpoint: {_brief(error)}") from error
    if damaged is not None:
        raise RunError(f"{file} is damaged: the content of {damaged} differs from its checksum")
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose advice is to trust the file
        raise RunError(
            f"{file} is damaged or not a checkpoint: it holds more than tensors and plain values, "
            "or none"
        ) from error
    except Exception as error:  # pickle, zip and torch each raise classes of their own
        raise RunError(f"{file} is damaged or not a checkpoint: {_brief(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RunError(f"{file} is not a checkpoint of this version (format {FORMAT})")
    absent = {"step", "latest", "model", "optimizer", "window", "random"} - set(content)
    if absent:
        raise RunError(f"{file} lacks its part {', '.join(sorted(absent))}")
    _check_plain(file, content)
    return content


def _check_plain(file: Path, content: dict[str, Any]) -> None:
    """Raise RunError unless the parts that are plain values are what training writes."""
    step, latest = content["step"], content["latest"]
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**63:
        raise RunError(f"{file}: step must be an integer >= 0, got {_shown(step)}")
    numbers = isinstance(latest, dict) and all(
        isinstance(key, str) and isinstance(value, int | float) for key, value in latest.items()
    )
    if not numbers:
        raise RunError(f"{file}: latest must be numbers by name, got {_shown(latest)}")
    random = content["random"]
    states = isinstance(random, list) and all(
        isinstance(each, dict) and all(isinstance(value, Tensor) for value in each.values())
        for each in random
    )
    if not states or not random:
        raise RunError(f"{file}: random must hold tensors for each process, got {_shown(random)}")
    data = content.get("data")
    if data is not None and not isinstance(data, str):
        raise RunError(f"{file}: data must be a fingerprint of the images, got {_shown(data)}")


def restore_optimizer(file: Path, optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Give an optimizer its running averages; its rate and other options stay as they are.

    Raises:
        RunError: they do not fit the parameters.
    """

    def load(state: Any) -> None:
        groups = optimizer.state_dict()["param_groups"]
        sizes = [len(group["params"]) for group in state["param_groups"]]
        if sizes != [len(group["params"]) for group in groups]:
            raise ValueError(f"it is of {sizes} parameters")
        optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        known = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for parameter, averages in optimizer.state.items():
            if parameter not in known:
                raise ValueError("it is of other parameters")
            for name in ("exp_avg", "exp_avg_sq"):
                _check_tensor(name, averages[name], parameter)
            step = averages["step"]
            if not isinstance(step, Tensor) or step.numel() != 1 or not 0 <= float(step) < math.inf:
                raise ValueError(f"step must be a number >= 0, got {_shown(step)}")

    restore(file, "optimizer", load, state)


def _check_tensor(name: str, value: Any, like: Tensor) -> None:
    if not isinstance(value, Tensor) or value.shape != like.shape or value.dtype != like.dtype:
        raise ValueError(f"{name} must be {list(like.shape)} {like.dtype}, got {_shown(value)}")
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity")


def restore(file: Path, entry: str, load: Callable[[Any], Any], state: Any) -> None:
    """Give a file's entry to the object it belongs to; raise RunError if it does not fit."""
    try:
        load(state)
    except (
        RuntimeError, ValueError, LookupError, TypeError, AttributeError, OverflowError
    ) as error:  # fmt: skip
        if isinstance(error, RunError):
            raise
        raise RunError(
            f"{file} does not fit this run's config: its {entry}: {_brief(error)}"
        ) from error


def _shown(value: Any) -> str:
    """A value in a message: tensors by their shape, the rest cut short."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {value.dtype}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _brief(error: BaseException) -> str:
    """Its first two lines: torch's first says only that a state does not fit."""
    lines = str(error).splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[:2])
