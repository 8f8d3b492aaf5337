"""What a run's model makes: pictures of reconstructions, samples and codes, and their arrays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgm_fast.cgm import figures
from cgm_fast.cgm.data import ImageData, Noise, prepare
from cgm_fast.cgm.evaluation.codes import BATCH, codes_and_posteriors, encode_images, with_labels
from cgm_fast.cgm.evaluation.denoising import denoise, psnr
from cgm_fast.cgm.files import RunError
from cgm_fast.cgm.models import LatentModel
from cgm_fast.cgm.models.prior import Mixture
from cgm_fast.cgm.training.config import RunConfig
from cgm_fast.cgm.training.runs import PICTURES

COLUMNS = 10  # images per row of a picture
MAX_ROWS = 10  # categories drawn


def draw(model: LatentModel, data: ImageData, config: RunConfig, path: Path) -> None:
    """Write reconstructions.png, samples.png and latents.png."""
    reconstructions, samples, latents = (path / name for name in PICTURES)
    shown = 3 * COLUMNS
    labels = None
    if model.sees_labels and data.test_labels is not None:
        labels = data.test_labels[:shown]
    draw_reconstructions(model, data.test[:shown], config, reconstructions, labels)
    draw_samples(model, data, config, samples)
    draw_latents(model, data, config, latents)


def test_batch(model: LatentModel, images: Tensor, config: RunConfig) -> Tensor:
    """Test images as the model takes them, on its device; the same at every call."""
    generator = torch.Generator().manual_seed(config.seed)
    x = prepare(images, config.binarization, model.likelihood.continuous, generator)
    return x.to(model.usage.device)


def draw_reconstructions(
    model: LatentModel,
    images: Tensor,
    config: RunConfig,
    path: Path,
    seen_labels: Tensor | None = None,
) -> None:
    """Rows of images, each above the row of their reconstructions."""
    rows = -(-len(images) // COLUMNS)
    figures.check_grid(path, 2 * rows * COLUMNS, COLUMNS, images.shape[-2:])
    x = test_batch(model, images, config)
    reconstructed = torch.cat(
        [
            model.reconstruct(part, own)
            for part, own in with_labels(iter(x.split(BATCH)), seen_labels)
        ]
    )
    pairs, labels = [], []
    for original, decoded in zip(x.split(COLUMNS), reconstructed.split(COLUMNS), strict=True):
        blank = original.new_ones(COLUMNS - len(original), *original.shape[1:])  # fills the row
        pairs += [original, blank, decoded, blank]
        labels += ["input", "decoded"]
    figures.save_grid(path, torch.cat(pairs), COLUMNS, row_labels=labels, title="Test images")


def generated(model: LatentModel, count: int, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of generated images [b, c, h, w] in [0, 1] and their categories [b], on the CPU.

    Args:
        model: In evaluation mode.
        count: How many in all; memory is for a batch.
        **options: As `LatentModel.generate` takes them.

    Raises:
        RunError: images hold NaN or infinity.
        ValueError: as `LatentModel.generate`.
    """
    for first in range(0, count, BATCH):
        images, categories = model.generate(min(BATCH, count - first), **options)
        if not bool(images.isfinite().all()):
            raise RunError("the model's images hold NaN or infinity")
        yield images.cpu(), categories.cpu()


def draw_generated(
    model: LatentModel, count: int, config: RunConfig, path: Path, **options: Any
) -> None:
    """Rows of generated images; arguments as in `generated`."""
    figures.check_grid(path, count, COLUMNS, config.image_shape[1:])
    images = torch.cat([drawn for drawn, _ in generated(model, count, **options)])
    figures.save_grid(path, images, COLUMNS, title="Generated")


def generated_arrays(model: LatentModel, count: int, **options: Any) -> dict[str, Any]:
    """The same as numpy arrays: images [n, h, w, c] uint8, and labels [n]."""
    images, labels = [], []
    for drawn, chosen in generated(model, count, **options):
        images.append((drawn * 255).round().byte())  # at once: a quarter of the memory
        labels.append(chosen)
    pixels = torch.cat(images).permute(0, 2, 3, 1)
    return {"images": pixels.numpy(), "labels": torch.cat(labels).numpy()}


def fitted_prior(model: LatentModel, images: Tensor, config: RunConfig) -> Mixture:
    """The prior with weights, means and covariances of the latents of training images."""
    r, _, variance = codes_and_posteriors(model, images, config.binarization, config.seed)
    return model.fitted_priors(r, variance.mean(0))["full"]


def draw_samples(
    model: LatentModel,
    data: ImageData | None,
    config: RunConfig,
    path: Path,
    seed: int | None = None,
    prior: Mixture | None = None,
) -> None:
    """A row of generated images per category, the most used categories first if there are many."""
    generator = torch.Generator(model.usage.device)
    generator.manual_seed(config.seed if seed is None else seed)
    categories = list(range(model.num_prototypes))
    if len(categories) > MAX_ROWS:
        categories = sorted(model.usage.argsort(descending=True)[:MAX_ROWS].tolist())
    rows = [
        model.generate(COLUMNS, category=k, prior=prior, generator=generator)[0] for k in categories
    ]
    figures.save_grid(
        path,
        torch.cat(rows),
        COLUMNS,
        row_labels=category_names(model, data, config, categories),
        title="Generated, a row per category",
    )


def category_names(
    model: LatentModel, data: ImageData | None, config: RunConfig, categories: list[int]
) -> list[str]:
    """Class names where categories are classes, numbers otherwise."""
    names = data.class_names if data is not None and config.supervised else ()
    return [names[k] if k < len(names) else str(k) for k in categories]


def draw_latents(model: LatentModel, data: ImageData, config: RunConfig, path: Path) -> None:
    """Codes of test images, coloured by label, or by nearest prototype where there are none."""
    own = data.test_labels[:5000] if model.sees_labels and data.test_labels is not None else None
    r = encode_images(model, data.test[:5000], config.binarization, config.seed, own)
    labelled = data.test_labels is not None
    categories = model.assign(r) if data.test_labels is None else data.test_labels[:5000]
    figures.save_latents(
        path,
        r,
        model.prototypes,
        categories,
        data.class_names if labelled else (),
        f"Codes of test images by {'label' if labelled else 'nearest prototype'}, and prototypes",
    )


def draw_denoised(
    model: LatentModel, images: Tensor, config: RunConfig, noise: Noise, seed: int, path: Path
) -> tuple[float, float]:
    """Some test images, clean, noisy and denoised; the PSNR of all of them, noisy and denoised."""
    clean = test_batch(model, images, config)
    generator = torch.Generator(clean.device).manual_seed(seed)
    noisy, cleaned = denoise(model, clean, noise, generator)
    shown = torch.cat([part[:COLUMNS] for part in (clean, noisy, cleaned)])
    labels = ("clean", "noisy", "denoised")
    figures.save_grid(path, shown, min(COLUMNS, len(clean)), row_labels=labels)
    return psnr(noisy, clean), psnr(cleaned, clean)


def latent_arrays(model: LatentModel, data: ImageData, config: RunConfig) -> dict[str, Any]:
    """Codes, categories, labels (if any) and prototypes of the test images, as numpy arrays."""
    own = data.test_labels if model.sees_labels else None
    r = encode_images(model, data.test, config.binarization, config.seed, own)
    assignment = model.assign(r, None if own is None else own.to(r.device))
    arrays = {"r": r, "assignment": assignment, "prototypes": model.prototypes.detach()}
    if data.test_labels is not None:
        arrays["labels"] = data.test_labels
    return {name: value.cpu().numpy() for name, value in arrays.items()}
