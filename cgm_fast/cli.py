"""The command line, `cgm-fast`: a dataclass per command, read by tyro."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cgm_fast import figures
from cgm_fast.data import DataError, Noise, load
from cgm_fast.doctor import report as doctor_report
from cgm_fast.evaluation.denoising import denoise, psnr
from cgm_fast.experiments import run as experiments
from cgm_fast.experiments.catalogue import Experiment, run_experiment
from cgm_fast.experiments.study import StoppedError
from cgm_fast.extras import MissingExtraError, require
from cgm_fast.training import runs
from cgm_fast.training.config import ConfigError, TrainConfig
from cgm_fast.training.trainer import NonFiniteError
from cgm_fast.training.workers import pick_device


class UsageError(ValueError):
    """A command that cannot be carried out as given."""


@dataclass(frozen=True)
class OnRun:
    """Options of every command that takes a finished run."""

    run: str
    """The run folder."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


@dataclass(frozen=True)
class Evaluate(OnRun):
    """Evaluate a run again; writes its evaluation.json and pictures."""

    data_root: str | None = None
    """Folder that holds torchvision's data sets; default: as in training."""
    nll_images: int | None = None
    """Test images for the importance-sampled likelihood; default: as in training."""
    nll_samples: int | None = None
    """Latents per image for it; default: as in training."""


@dataclass(frozen=True)
class Generate(OnRun):
    """Generate images: a row per category, one category, or categories by mixing weight."""

    category: int | None = None
    """Only this category."""
    mixing: Literal["empirical", "uniform"] | None = None
    """Draw each image's category: by its share of the training images, or all alike."""
    prior: Literal["own", "fitted"] = "own"
    """The model's own, or one with means and covariances of the training images' latents."""
    data_root: str | None = None
    """Folder that holds torchvision's data sets, for a fitted prior; default: as in training."""
    count: int = 100
    """How many images, where a category or mixing is given."""
    seed: int = 0
    """Of the draws."""
    out: str = "generated.png"
    """A .png picture, or an .npz with `images` [n, h, w, c] uint8 and `labels` [n]."""


@dataclass(frozen=True)
class Reconstruct(OnRun):
    """Draw test images above their reconstructions."""

    count: int = 50
    """How many images."""
    data: str | None = None
    """An npz or a folder of images of the same size; default: the run's own test images."""
    data_root: str | None = None
    """Folder that holds torchvision's data sets; default: as in training."""
    out: str = "reconstructed.png"
    """The picture."""


@dataclass(frozen=True)
class Denoise(OnRun):
    """Add noise to test images and reconstruct them; best on a run trained with the same noise."""

    variance: float = 0.5
    """Variance of the Gaussian noise."""
    range: Literal["unit", "signed"] = "unit"
    """Which range of the images that is for: [0, 1], or [-1, 1], where it is a quarter."""
    clip: bool = False
    """Clip noisy images to the range."""
    count: int = 1000
    """How many images the measurements are over."""
    seed: int = 0
    """Of the noise."""
    data_root: str | None = None
    """Folder that holds torchvision's data sets; default: as in training."""
    out: str = "denoised.png"
    """The picture: clean, noisy, denoised."""


@dataclass(frozen=True)
class Latents(OnRun):
    """Draw the codes of test images with the prototypes."""

    data_root: str | None = None
    """Folder that holds torchvision's data sets; default: as in training."""
    out: str = "latents.png"
    """A .png scatter (two dimensions, or two principal components), or an .npz with `r`, `labels`,
    `assignment` and `prototypes`."""


@dataclass(frozen=True)
class Doctor:
    """Show versions, devices, which implementations are usable and why not, and build flags."""


COMMANDS: dict[str, Any] = {
    "train": TrainConfig,
    "evaluate": Evaluate,
    "generate": Generate,
    "reconstruct": Reconstruct,
    "denoise": Denoise,
    "latents": Latents,
    "experiment": Experiment,
    "doctor": Doctor,
}


# Errors whose message is all a user needs; of a folder or disk that refuses, too.
ERRORS = (
    ConfigError,
    DataError,
    UsageError,
    MissingExtraError,
    runs.RunError,
    NonFiniteError,
    OSError,
)


def main(args: list[str] | None = None) -> int:
    """Run one command; the entry point of `cgm-fast`.

    Args:
        args: The command and its options; None for the process's own.

    Returns:
        0; 1 after an error that was printed; 128 + n after stopping for signal n.
    """
    try:
        command = _parse(sys.argv[1:] if args is None else args)
        return _run(command)
    except ERRORS as error:
        print(f"cgm-fast: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cgm-fast: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _parse(args: list[str]) -> Any:
    tyro = require("tyro", "the command line")
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="cgm-fast",
        description="Train CGM models (VAEs with a mixture of prototypes as prior) and use them.",
        args=args,
        config=(
            tyro.conf.PositionalRequiredArgs,
            tyro.conf.PositionalMetavarFromFieldName,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.DisallowNone,
        ),
    )


def _run(command: Any) -> int:
    if isinstance(command, TrainConfig):
        return _train(command)
    if isinstance(command, Doctor):
        print(doctor_report())
        return 0
    if isinstance(command, Experiment):
        return _experiment(command)
    actions: dict[type, Callable[[Any], None]] = {
        Evaluate: _evaluate,
        Generate: _generate,
        Reconstruct: _reconstruct,
        Denoise: _denoise,
        Latents: _latents,
    }
    actions[type(command)](command)
    return 0


def _train(config: TrainConfig) -> int:
    first = int(os.environ.get("RANK", "0")) == 0
    with _progress(first) as report:
        result = experiments.train(config, report, _warn)
    if result.stopped_by:
        if first:
            print(f"stopped by signal {result.stopped_by} after saving; go on with --resume")
        return 128 + result.stopped_by
    if not first:
        return 0
    if result.evaluation is not None:
        print(_summary(result.evaluation))
    print(f"run folder: {result.path}")
    return 0


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _experiment(command: Experiment) -> int:
    lines = _PlainProgress()

    def report(name: str, step: int, total: int, latest: dict[str, float]) -> None:
        if step == 1:
            print(f"{name}:", file=sys.stderr, flush=True)
            lines.next = 1
        lines(step, total, latest)

    try:
        out = run_experiment(command, report)
    except StoppedError as stopped:
        print(stopped)
        return 128 + stopped.number
    for path in sorted(file for file in out.iterdir() if file.is_file()):
        print(path)
    return 0


@contextmanager
def _progress(show: bool) -> Iterator[Any]:
    """A progress bar with the three terms of eq. 6 and the rate; plain lines off a terminal."""
    if not show:
        yield None
        return
    progress = require("rich.progress", "the progress bar")
    console = require("rich.console", "the progress bar").Console(stderr=True)
    if not console.is_terminal:
        yield _PlainProgress()
        return
    bar = progress.Progress(
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.description}"),
        progress.TimeRemainingColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("starting")

        def report(step: int, total: int, latest: dict[str, float]) -> None:
            bar.update(task, completed=step, total=total, description=_terms(latest))

        yield report


class _PlainProgress:
    """About twenty lines over a run, for logs."""

    def __init__(self) -> None:
        self.next = 0

    def __call__(self, step: int, total: int, latest: dict[str, float]) -> None:
        if step >= self.next and latest:
            print(f"step {step}/{total}  {_terms(latest)}", file=sys.stderr, flush=True)
            self.next = step + max(1, total // 20)


def _terms(latest: dict[str, float]) -> str:
    if not latest:
        return "starting"
    return (
        f"L_E {latest['reconstruction']:.1f}  λ·MMD² {latest['mmd_weighted']:.2f}  "
        f"β·L_D {latest['margin_weighted']:.2f} nats  rate {latest['rate_bits']:.1f} bit  "
        f"{latest['images_per_second']:.0f} img/s"
    )


def _summary(evaluation: dict[str, Any]) -> str:
    nats = evaluation["nats_per_image"]
    lines = [
        f"{name.replace('_', ' ')}: NLL {part['nll']:.2f} ± {part['nll_standard_error']:.2f} nats, "
        f"ELBO {part['elbo']:.2f}"
        + (
            f", given the label {part['nll_given_category']:.2f}"
            if "nll_given_category" in part
            else ""
        )
        + (f", {part['bits_per_dim']:.3f} bits/dim" if "bits_per_dim" in part else "")
        + f" ({part['images']} images, S = {part['samples']}, "
        f"ESS {part['effective_samples']:.1f})"
        for name, part in nats.items()
    ]
    rate = evaluation["rate_bits"]
    nominal = f"nominal {rate['nominal']:.1f}, " if "nominal" in rate else ""
    lines.append(f"rate: {nominal}Gaussian bound {rate['gaussian_bound']:.1f} bit")
    if "probe_error" in evaluation:
        probe = evaluation["probe_error"]
        lines += [
            f"{name} probe error {100 * probe[f'{kind}_r']:.2f} % on r, "
            f"{100 * probe[f'{kind}_z']:.2f} % on z"
            for kind, name in (("linear", "linear"), ("mlp", "MLP"))
        ]
    if "clustering" in evaluation:
        clusters = evaluation["clustering"]
        lines.append(
            f"clustering accuracy {100 * clusters['accuracy']:.1f} %, NMI {clusters['nmi']:.3f}"
        )
    if "nearest_prototype_error" in evaluation:
        error = evaluation["nearest_prototype_error"]
        lines.append(f"nearest-prototype error {100 * error:.2f} %")
    lines += [f"warning: {text}" for text in evaluation["warnings"]]
    return "\n".join(lines)


def _evaluate(command: Evaluate) -> None:
    report = experiments.evaluate_run(
        command.run,
        data_root=command.data_root,
        nll_images=command.nll_images,
        nll_samples=command.nll_samples,
        device=command.device,
    )
    print(json.dumps(report, indent=2))


def _generate(command: Generate) -> None:
    if command.category is not None and command.mixing is not None:
        raise UsageError("give category or mixing, not both")
    if command.prior == "fitted" and command.mixing == "uniform":
        raise UsageError("mixing must be empirical with prior fitted, got uniform")
    _check_count(command.count)
    out = _output(command.out, (".png", ".npz"))
    model, config = runs.load_run(command.run, pick_device(command.device))
    prior = None
    if command.prior == "fitted":
        if model.sees_labels:
            raise UsageError(f"prior must be own with a {config.model}, which needs labels")
        data = experiments.load_run_data(config, command.data_root)
        prior = experiments.fitted_prior(model, data.train, config)
    if command.category is None and command.mixing is None and out.suffix == ".png":
        experiments.draw_samples(model, None, config, out, command.seed, prior)
        print(out)
        return
    generator = torch.Generator(model.usage.device).manual_seed(command.seed)
    try:
        images, categories = model.generate(
            command.count,
            category=command.category,
            mixing=command.mixing or "empirical",
            prior=prior,
            generator=generator,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    if out.suffix == ".npz":
        pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        np.savez_compressed(out, images=pixels, labels=categories.cpu().numpy())
    else:
        figures.save_grid(out, images, experiments.COLUMNS, title="Generated")
    print(out)


def _reconstruct(command: Reconstruct) -> None:
    _check_count(command.count)
    out = _output(command.out, (".png",))
    model, config = runs.load_run(command.run, pick_device(command.device))
    labels = None
    if command.data is None:
        data = experiments.load_run_data(config, command.data_root)
        images = data.test
        if model.sees_labels and data.test_labels is not None:
            labels = data.test_labels[: command.count]
    elif model.sees_labels:
        raise UsageError(f"data must be left out with a {config.model}, which needs labels")
    else:
        root = command.data_root or config.data_root
        data = load(command.data, root=root, image_size=config.image_shape[-1])
        experiments.check_shape(data.image_shape, config)
        images = torch.cat((data.test, data.train))
    experiments.draw_reconstructions(model, images[: command.count], config, out, labels)
    print(out)


def _denoise(command: Denoise) -> None:
    _check_count(command.count)
    if not 0 < command.variance < math.inf:
        raise UsageError(f"variance must be a finite number > 0, got {command.variance}")
    out = _output(command.out, (".png",))
    model, config = runs.load_run(command.run, pick_device(command.device))
    images = experiments.load_run_data(config, command.data_root).test[: command.count]
    clean = experiments.test_batch(model, images, config)
    generator = torch.Generator(clean.device).manual_seed(command.seed)
    noise = Noise(command.variance, command.range == "signed", command.clip)
    noisy, cleaned = denoise(model, clean, noise, generator)
    shown = torch.cat([part[: experiments.COLUMNS] for part in (clean, noisy, cleaned)])
    labels = ("clean", "noisy", "denoised")
    columns = min(experiments.COLUMNS, len(clean))
    figures.save_grid(out, shown, columns, row_labels=labels)
    if config.noise != noise:
        had = config.noise if config.denoise_variance else "none"
        print(f"note: the run was trained with noise of {had}, not {noise}")
    print(f"PSNR over {len(clean)} images, noise of {noise}: noisy {psnr(noisy, clean):.2f} dB, "
          f"denoised {psnr(cleaned, clean):.2f} dB")  # fmt: skip
    print(out)


def _latents(command: Latents) -> None:
    out = _output(command.out, (".png", ".npz"))
    model, config = runs.load_run(command.run, pick_device(command.device))
    data = experiments.load_run_data(config, command.data_root)
    if out.suffix == ".png":
        experiments.draw_latents(model, data, config, out)
    else:
        arrays = experiments.latent_arrays(model, data, config)
        np.savez_compressed(out, **arrays)
    print(out)


def _check_count(count: int) -> None:
    if count < 1:
        raise UsageError(f"count must be at least 1, got {count}")


def _output(name: str, suffixes: tuple[str, ...]) -> Path:
    """Check before any work that the output can be written."""
    path = Path(name)
    if path.suffix not in suffixes:
        raise UsageError(f"out must end in {' or '.join(suffixes)}, got {name!r}")
    if not path.parent.is_dir():
        raise UsageError(f"out must be in an existing folder, got {name!r}")
    return path
