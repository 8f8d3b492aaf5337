"""Everything that evaluation.json says about a trained model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgm_fast.data import ImageData
from cgm_fast.evaluation.clustering import clustering_scores
from cgm_fast.evaluation.codes import encode_images, prepared_batches
from cgm_fast.evaluation.nll import likelihoods
from cgm_fast.evaluation.probe import linear_probe_error
from cgm_fast.evaluation.rate import rates
from cgm_fast.models.cgm import CGM
from cgm_fast.models.likelihoods import bits_per_dim
from cgm_fast.models.prior import MixturePrior

RATE_CODES = 10_000  # training codes for the Monte-Carlo rate, which compares each with all


@torch.no_grad()
def evaluate(
    model: CGM,
    data: ImageData,
    binarization: str,
    *,
    supervised: bool,
    nll_images: int = 1000,
    nll_samples: int = 128,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate a model on test images; whatever is fitted is fitted on training images.

    Args:
        model: In evaluation mode.
        data: Both sets.
        binarization: As in training.
        supervised: Whether categories are labels (CGM2), so that the nearest prototype is a
            prediction.
        nll_images: Test images for the importance-sampled likelihood.
        nll_samples: Latents per image for it.
        seed: Of every draw.

    Returns:
        Values ready for JSON, with the units in their names.
    """
    train = encode_images(model, data.train, binarization, seed)
    test = encode_images(model, data.test, binarization, seed + 1)
    report: dict[str, Any] = {
        "data": data.name,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "binarization": binarization,
        "mean_squared_error": _mse(model, data.test, binarization, seed + 1),
        "rate_bits": rates(train[:RATE_CODES], model.sigma2, seed),
    }
    priors = {
        "paper": model.prior("uniform"),
        "fitted": MixturePrior.fitted(
            model.mapper(model.prototypes.float()),
            model.mapper(train),
            model.assign(train),
            model.sigma2,
        ),
    }
    report["nats_per_image"] = {}
    for name, prior in priors.items():
        found = likelihoods(
            model, data.test[:nll_images], binarization, prior, samples=nll_samples, seed=seed
        ).to_dict()
        if model.likelihood.continuous:
            found["bits_per_dim"] = bits_per_dim(found["nll"], data.test[0].numel())
        report["nats_per_image"][f"prior_{name}"] = found
    assignment = model.assign(test)
    report["test_usage"] = torch.bincount(assignment, minlength=model.num_prototypes).tolist()
    if data.train_labels is not None and data.test_labels is not None:
        if len(data.train_labels.unique()) > 1:  # else there is nothing to tell apart
            report["probe_error"] = _probe_errors(
                model, train, test, data.train_labels, data.test_labels, seed
            )
        report["clustering"] = clustering_scores(assignment, data.test_labels)
        if supervised:
            wrong = assignment.cpu() != data.test_labels
            report["nearest_prototype_error"] = float(wrong.float().mean())
    return report


def _mse(model: CGM, images: Tensor, binarization: str, seed: int) -> float:
    """Mean squared error per pixel of noiseless reconstructions of [0, 1] images."""
    total = 0.0
    for x in prepared_batches(model, images, binarization, seed):
        total += float((model.reconstruct(x) - x).square().cpu().double().sum())
    return total / images.numel()


def _probe_errors(
    model: CGM,
    train: Tensor,
    test: Tensor,
    train_labels: Tensor,
    test_labels: Tensor,
    seed: int,
) -> dict[str, float]:
    """Probe errors on the means r and on noisy latents z."""
    generator = torch.Generator().manual_seed(seed)
    scale = model.sigma2**0.5

    def noisy(r: Tensor) -> Tensor:
        mapped = model.mapper(r).cpu()
        return mapped + scale * torch.randn(mapped.shape, generator=generator)

    return {
        "linear_r": linear_probe_error(train, train_labels, test, test_labels),
        "linear_z": linear_probe_error(noisy(train), train_labels, noisy(test), test_labels),
    }
