"""Going on with a run: which settings may be given anew, and which must be those it began with."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cgm_fast.cgm.training.config import SETTINGS, RunConfig, Settings
from cgm_fast.cgm.training.limits import ConfigError
from cgm_fast.cgm.training.presets import PRESETS

# Settings that may be given anew with resume: they change how far and how a run goes, or what is
# logged and looked at, and not what the weights mean.
MAY_CHANGE = (
    "epochs", "max_steps", "lr", "lr_schedule", "clip_grad_norm", "backend", "data_root",
    "skip_broken", "log_every", "checkpoint_every", "evaluate", "probes", "pictures", "nll_images",
    "nll_samples",
)  # fmt: skip
# Settings of a call, of which a run's config.json holds none, or an older one.
OF_CALL = ("out", "resume", "overwrite", "download", "device", "cuda_graph")


def differences(
    saved: RunConfig, config: Settings[None], given: Collection[str] | None = None
) -> dict[str, Any]:
    """What a resumed run takes from the settings that were given beside `resume`.

    Args:
        saved: The run's own settings.
        config: Settings as a user gives them.
        given: Names of those that were given; None takes those that differ from their defaults.

    Returns:
        Values of settings in `MAY_CHANGE`, and of `data` and `test_data`, which may have moved:
        whether they are the same images is for a fingerprint to say.

    Raises:
        ConfigError: another setting differs from the run's.
    """
    if given is None:
        given = [name for name, it in SETTINGS.items() if getattr(config, name) != it.default]
    config = absolute(config)
    changes: dict[str, Any] = {}
    for name, known in SETTINGS.items():
        if name not in given or name in OF_CALL:
            continue
        old, new = getattr(saved, name), getattr(config, name)
        if new is None and known.unset and name in MAY_CHANGE:
            continue  # left to the data: the run has it
        if name in MAY_CHANGE or (name in ("data", "test_data") and old is not None):
            changes[name] = new
        elif name == "init" and None not in (old, new) and Path(old).name == Path(new).name:
            continue  # it may have moved, and has been used
        elif old != new:
            raise ConfigError(
                f"{name} must stay {_option(old)} with resume, got {_option(new)}: leave it out, "
                "or pass --out for another run"
            )
    return changes


def _option(value: object) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def absolute(config: Settings[None]) -> Settings[None]:
    """The same with whole paths, which mean the same from wherever the run is looked at later."""
    found: dict[str, Any] = {"data_root": os.path.abspath(config.data_root)}
    for name in ("data", "test_data", "init"):
        value = getattr(config, name)
        if value is not None and value not in PRESETS and Path(value).exists():
            found[name] = os.path.abspath(value)
    return dataclasses.replace(config, **found)
