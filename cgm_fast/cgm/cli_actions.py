"""What the commands on a finished run do."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgm_fast.cgm.cli_options import Denoise, Evaluate, Generate, Latents, Reconstruct
from cgm_fast.cgm.data import Noise, load_images
from cgm_fast.cgm.files import write_whole
from cgm_fast.cgm.training import drawing, pipeline, runs
from cgm_fast.cgm.training.config import MAX_SEED
from cgm_fast.cgm.training.limits import check_range
from cgm_fast.cgm.training.workers import pick_device


class UsageError(ValueError):
    """A command that cannot be carried out as given."""


def evaluate_again(command: Evaluate) -> None:
    """Evaluate a finished run again and print the evaluation, also if it cannot be written."""
    try:
        report = pipeline.evaluate_run(
            command.run,
            data_root=command.data_root,
            nll_images=command.nll_images,
            nll_samples=command.nll_samples,
            device=command.device,
        )
    except pipeline.UnsavedError as error:
        print(json.dumps(error.report, indent=2))
        raise
    print(json.dumps(report, indent=2))


def generate(command: Generate) -> None:
    """Draw images from a model's prior, as a picture or as arrays."""
    if command.category is not None and command.mixing is not None:
        raise UsageError("give category or mixing, not both")
    if command.prior == "fitted" and command.mixing == "uniform":
        raise UsageError("mixing must be empirical with prior fitted, got uniform")
    out = _output(command.out, (".png", ".npz"))
    rows = command.category is None and command.mixing is None and out.suffix == ".png"
    if rows and command.count is not None:
        raise UsageError(
            "count must be left out of a picture of a row per category: give category or mixing "
            f"with it, or an .npz as out; got {command.count}"
        )
    count = 100 if command.count is None else command.count
    _check_count(count)
    _check_seed(command.seed)
    model, config = runs.load_run(command.run, pick_device(command.device))
    prior = None
    if command.prior == "fitted":
        if model.sees_labels:
            raise UsageError(f"prior must be own with a {config.model}, which needs labels")
        data = pipeline.load_run_data(config, command.data_root)
        prior = drawing.fitted_prior(model, data.train, config)
    if rows:
        drawing.draw_samples(model, None, config, out, command.seed, prior)
        print(out)
        return
    generator = torch.Generator(model.usage.device).manual_seed(command.seed)
    options: dict[str, Any] = {
        "category": command.category,
        "mixing": command.mixing or "empirical",
        "prior": prior,
        "generator": generator,
    }
    try:
        if out.suffix == ".png":
            drawing.draw_generated(model, count, config, out, **options)
        else:
            _write_npz(out, **drawing.generated_arrays(model, count, **options))
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(out)


def reconstruct(command: Reconstruct) -> None:
    """Draw test images above their reconstructions."""
    _check_count(command.count)
    out = _output(command.out, (".png",))
    model, config = runs.load_run(command.run, pick_device(command.device))
    labels = None
    if command.data is None:
        data = pipeline.load_run_data(config, command.data_root)
        images = data.test
        if model.sees_labels and data.test_labels is not None:
            labels = data.test_labels[: command.count]
    elif model.sees_labels:
        raise UsageError(f"data must be left out with a {config.model}, which needs labels")
    else:
        root = command.data_root or config.data_root
        images = load_images(
            command.data,
            config.image_shape,
            count=command.count,
            root=root,
            skip_broken=command.skip_broken,
        )
    drawing.draw_reconstructions(model, images[: command.count], config, out, labels)
    print(out)


def denoise_images(command: Denoise) -> None:
    """Draw noisy test images beside what a model makes of them, and measure it."""
    _check_count(command.count)
    if not 0 < command.variance < math.inf:
        raise UsageError(f"variance must be a finite number > 0, got {command.variance}")
    check_range("variance", command.variance)
    _check_seed(command.seed)
    out = _output(command.out, (".png",))
    model, config = runs.load_run(command.run, pick_device(command.device))
    images = pipeline.load_run_data(config, command.data_root).test[: command.count]
    noise = Noise(command.variance, command.range == "signed", command.clip)
    noisy, denoised = drawing.draw_denoised(model, images, config, noise, command.seed, out)
    if config.noise != noise:
        had = config.noise if config.denoise_variance else "none"
        print(f"note: the run was trained with noise of {had}, not {noise}")
    print(f"PSNR over {len(images)} images, noise of {noise}: noisy {noisy:.2f} dB, "
          f"denoised {denoised:.2f} dB")  # fmt: skip
    print(out)


def latents(command: Latents) -> None:
    """Draw the codes of test images, or write them as arrays."""
    out = _output(command.out, (".png", ".npz"))
    model, config = runs.load_run(command.run, pick_device(command.device))
    data = pipeline.load_run_data(config, command.data_root)
    if out.suffix == ".png":
        drawing.draw_latents(model, data, config, out)
    else:
        arrays = drawing.latent_arrays(model, data, config)
        _write_npz(out, **arrays)
    print(out)


def _write_npz(path: Path, **arrays: Any) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def _check_count(count: int) -> None:
    if count < 1:
        raise UsageError(f"count must be at least 1, got {count}")
    check_range("count", count)


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed must lie in [0, {MAX_SEED}], got {seed}")


def _output(name: str, suffixes: tuple[str, ...]) -> Path:
    """Check before any work that the output can be written."""
    path = Path(name)
    if path.suffix not in suffixes:
        raise UsageError(f"out must end in {' or '.join(suffixes)}, got {name!r}")
    if not path.parent.is_dir():
        raise UsageError(f"out must be in an existing folder, got {name!r}")
    return path
