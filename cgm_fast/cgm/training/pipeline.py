"""The pipeline of one run: from settings to a finished run folder, and evaluating it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cgm_fast.cgm.data import DataError, ImageData, draw_once, load
from cgm_fast.cgm.evaluation.report import evaluate
from cgm_fast.cgm.extras import require
from cgm_fast.cgm.files import RunError, locked
from cgm_fast.cgm.models import LatentModel
from cgm_fast.cgm.training import runs
from cgm_fast.cgm.training.build import build_model, check_memory
from cgm_fast.cgm.training.config import RunConfig, Settings, TrainConfig, check
from cgm_fast.cgm.training.drawing import draw
from cgm_fast.cgm.training.graph import check_graph
from cgm_fast.cgm.training.limits import ConfigError
from cgm_fast.cgm.training.presets import resolve
from cgm_fast.cgm.training.trainer import Report, Trainer
from cgm_fast.cgm.training.workers import Workers, pick_device
from cgm_fast.ops.backends import choose


class UnsavedError(RunError):
    """An evaluation that has been made and could not be written; it is in `report`."""

    def __init__(self, message: str, report: dict[str, Any]) -> None:
        super().__init__(message)
        self.report = report


class TrainResult(NamedTuple):
    """How a run ended."""

    path: Path
    """The run folder."""
    stopped_by: int | None
    """The signal that stopped it, after saving; None if it ran to the end."""
    evaluation: dict[str, Any] | None
    """What evaluation.json holds, in the first process, if the run was evaluated."""


def load_data(config: Settings[None]) -> ImageData:
    """The data set that settings name; a folder's as grey or coloured as a run's images were."""
    channels = config.image_shape[0] if isinstance(config, RunConfig) else config.channels
    data = load(
        config.data,
        root=config.data_root,
        download=config.download,
        test=config.test_data,
        image_size=config.image_size,
        channels=channels,
        skip_broken=config.skip_broken,
    )
    return draw_once(data) if config.binarization == "static" else data


def load_run_data(config: RunConfig, data_root: str | None = None) -> ImageData:
    """The data set of a run, which must still have the shape that the run was trained on.

    Args:
        config: The run's settings.
        data_root: Where torchvision's sets lie now; None for where they were.

    Raises:
        DataError: it is not there, or has another shape.
    """
    data = load_data(dataclasses.replace(config, data_root=data_root or config.data_root))
    check_shape(data.image_shape, config)
    return data


def check_shape(shape: Sequence[int], config: RunConfig) -> None:
    """Raise DataError unless images [c, h, w] have the shape that a run was trained on."""
    if tuple(shape) != config.image_shape:
        raise DataError(
            f"images must have the run's shape {list(config.image_shape)}, got {list(shape)}"
        )


def train(
    config: TrainConfig,
    report: Report | None = None,
    warn: Callable[[str], None] | None = None,
    given: Collection[str] | None = None,
    note: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train, evaluate and draw, as `cgm-fast train` does.

    Nothing is written before settings, data and folder have been checked, and nothing while
    another process writes to the folder.

    Args:
        config: As a user gives it; what is None comes from the data set's preset.
        report: Called after each step with (step, total steps, latest averages).
        warn: Called before training with what a user should know of unusual settings.
        given: Names of the settings that were given, which with `resume` must be the run's; None
            takes those that differ from their defaults.
        note: Called before training with what was read, a line at a time.

    Raises:
        ConfigError, DataError, RunError: settings, data or folder cannot be used.
        NonFiniteError: training met NaN or infinity.
    """
    check(config)
    workers = Workers(config.device)
    try:
        path, begun = runs.open_run(config, given)
        workers.barrier()  # every process has looked at the folder before the first writes to it
        _check_backend(begun.backend, workers.device)
        check_graph(begun, workers)
        if begun.download and workers.first:
            load_data(begun)
        workers.barrier()  # the first process has fetched what was missing
        data = load_data(begun)
        if note is not None and workers.first:
            for line in data.notes:
                note(line)
        settings = resolve(begun, data)
        _check_extras(settings)
        check_memory(settings)
        torch.manual_seed(settings.seed)
        model = build_model(settings)
        if settings.init is not None and not settings.resume:
            runs.load_weights(settings.init, model)
        if warn is not None and workers.first and (text := _too_close(model, settings)):
            warn(text)
        trainer = Trainer(model, data, settings, path, workers, report, warn)
        with _held(path, workers):
            workers.on_first(lambda: _check_unchanged(runs.open_run(config, given), path, begun))
            stopped_by = trainer.fit()
            if stopped_by or not settings.evaluate or not workers.first:
                return TrainResult(path, stopped_by, None)
            return TrainResult(path, None, evaluate_model(model.eval(), data, settings, path))
    finally:
        workers.close()


@contextmanager
def _held(path: Path, workers: Workers) -> Iterator[None]:
    """Hold a run folder in the first process, for all of them."""
    with ExitStack() as stack:
        workers.on_first(lambda: stack.enter_context(locked(path)))
        yield


def _check_unchanged(now: tuple[Path, Settings[None]], path: Path, before: Settings[None]) -> None:
    if now != (path, before):
        raise RunError(f"another process changed {path} while this run was being prepared")


def _too_close(model: LatentModel, config: RunConfig) -> str | None:
    """A warning if prototypes begin at random within each other's margins (Xavier with K > 3 N)."""
    placed = config.prototype_init == "xavier" and config.init is None and not config.resume
    if config.model != "cgm" or config.descriptor not in ("learned", "ema") or not placed:
        return None
    distance = float(torch.pdist(model.prototypes.detach()).square().mean())
    if config.normalize or distance >= config.margin:
        return None
    return (
        f"prototypes begin at squared distances of {distance:.2g} on average, within the margin "
        f"{config.margin:g}: {config.num_prototypes} categories are many for {config.latent_dim} "
        "dimensions"
    )


def _check_backend(name: str, device: torch.device) -> None:
    try:
        choose(name, device)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(str(error)) from error


def _check_extras(config: RunConfig) -> None:
    """Import now what the run would otherwise miss only at its end."""
    modules = ["safetensors.torch", "tensorboard"]
    if config.prototype_init == "kmeans++":
        modules.append("sklearn.cluster")
    if config.evaluate:
        modules += ["sklearn.linear_model", "matplotlib.figure"]
    for module in modules:
        require(module, "training")


def evaluate_run(
    path: str | Path,
    *,
    data_root: str | None = None,
    nll_images: int | None = None,
    nll_samples: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Evaluate and draw a finished run again; what is None comes from its own settings.

    Raises:
        RunError, ConfigError, DataError: the run, its settings or its data cannot be used.
        UnsavedError: the evaluation could not be written.
    """
    model, config = runs.load_run(path, pick_device(device))
    changes: dict[str, Any] = {"nll_images": nll_images, "nll_samples": nll_samples}
    config = dataclasses.replace(config, **{k: v for k, v in changes.items() if v is not None})
    check(config)
    data = load_run_data(config, data_root)
    with locked(Path(path)):  # which a folder that cannot be written to refuses now, not later
        return evaluate_model(model, data, config, Path(path))


def evaluate_model(
    model: LatentModel, data: ImageData, config: RunConfig, path: Path
) -> dict[str, Any]:
    """Write evaluation.json and any pictures of a model in evaluation mode; return the former.

    Raises:
        UnsavedError: they could not be written.
    """
    if model.usage.device.type == "mps":  # which has no float64
        model = model.cpu()
    report = evaluate(
        model,
        data,
        config.binarization,
        supervised=config.supervised,
        nll_images=config.nll_images,
        nll_samples=config.nll_samples,
        seed=config.seed,
        probes=config.probes,
        pictures=config.pictures,
    )
    try:
        runs.write_json(path / runs.EVALUATION, report)
        if config.pictures:
            draw(model, data, config, path)
    except RunError as error:
        raise UnsavedError(str(error), report) from error
    return report
