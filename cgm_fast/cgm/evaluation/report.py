"""Everything that evaluation.json says about a trained model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cgm_fast.cgm.data import UNLABELLED, ImageData
from cgm_fast.cgm.evaluation.clustering import clustering_scores
from cgm_fast.cgm.evaluation.codes import (
    codes_and_posteriors,
    labelled,
    prepared_batches,
    with_labels,
)
from cgm_fast.cgm.evaluation.nll import likelihoods
from cgm_fast.cgm.evaluation.probe import PROBES, probe_error
from cgm_fast.cgm.evaluation.rate import rates, with_known_noise
from cgm_fast.cgm.models.base import LatentModel
from cgm_fast.cgm.models.likelihoods import bits_per_dim
from cgm_fast.cgm.models.networks.autoregressive import AutoregressiveDecoder
from cgm_fast.cgm.models.prior import Mixture

DRAWN = 64  # images that an autoregressive decoder reconstructs
RATE_CODES = 10_000  # training codes for the Monte-Carlo rate, which compares each with all


@torch.no_grad()
def evaluate(
    model: LatentModel,
    data: ImageData,
    binarization: str,
    *,
    supervised: bool,
    nll_images: int = 1000,
    nll_samples: int = 128,
    seed: int = 0,
    probes: bool = True,
    pictures: bool = True,
) -> dict[str, Any]:
    """Evaluate a model on test images; whatever is fitted is fitted on training images.

    Args:
        model: In evaluation mode.
        data: Both sets.
        binarization: As in training.
        supervised: Whether categories are labels (CGM2), so that the nearest prototype is a
            prediction.
        nll_images: Test images for the importance-sampled likelihood, the same for every seed.
        nll_samples: Latents per image for it.
        seed: Of every draw.
        probes: Whether to fit classifiers on the codes.
        pictures: Whether an autoregressive decoder draws images, for the mean squared error of
            reconstructions: it takes a pass for each pixel.

    Returns:
        Values ready for JSON, with the units in their names.
    """
    # Labels for a model that sees them.
    train_seen = data.train_labels if model.sees_labels else None
    test_seen = data.test_labels if model.sees_labels else None
    train, *of_train = codes_and_posteriors(model, data.train, binarization, seed, train_seen)
    test, *of_test = codes_and_posteriors(model, data.test, binarization, seed + 1, test_seen)
    report: dict[str, Any] = {
        "data": data.name,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "binarization": binarization,
    }
    autoregressive = isinstance(model.decoder, AutoregressiveDecoder)
    if pictures or not autoregressive:
        shown = data.test[:DRAWN] if autoregressive else data.test
        report["mean_squared_error"] = _mse(model, shown, binarization, seed + 1, test_seen)
        report["mean_squared_error_images"] = len(shown)
    mean, variance = (part[:RATE_CODES] for part in of_train)
    report["rate_bits"] = rates(*with_known_noise(mean, variance), seed)
    priors: dict[str, Mixture] = {"paper": model.prior("uniform")}
    priors |= model.fitted_priors(train, variance.mean(0))
    report["nats_per_image"] = {}
    explained = _subset(len(data.test), nll_images)
    given = None  # the images' categories, where labels are that, and all have been seen
    if supervised and not model.sees_labels and data.test_labels is not None:
        own = data.test_labels[explained]
        known = int(data.test_labels.max()) < model.num_prototypes
        given = own if known and not bool((own == UNLABELLED).any()) else None
    for name, prior in priors.items():
        found = likelihoods(
            model,
            data.test[explained],
            binarization,
            prior,
            samples=nll_samples,
            seed=seed,
            labels=None if test_seen is None else test_seen[explained],
            categories=given,
        ).to_dict()
        if model.likelihood.continuous or model.likelihood.levels:
            found["bits_per_dim"] = bits_per_dim(
                found["nll"], data.test[0].numel(), dequantised=model.likelihood.continuous
            )
        report["nats_per_image"][f"prior_{name}"] = found
    assignment = model.assign(test, None if test_seen is None else test_seen.to(test.device))
    report["test_usage"] = torch.bincount(assignment, minlength=model.num_prototypes).tolist()
    report["within_variance"] = _within_variance(test, assignment, model.num_prototypes)
    if data.train_labels is not None and data.test_labels is not None:
        classes = labelled(data.train_labels)[0].unique()
        if probes and len(classes) > 1:  # else there is nothing to tell apart
            report["probe_error"] = _probe_errors(data, (train, test), (of_train, of_test), seed)
        if model.num_prototypes > 1 and not model.sees_labels:
            labels, own = labelled(data.test_labels, assignment)
            report["clustering"] = clustering_scores(own, labels)
            if supervised:
                wrong = own.cpu() != labels
                report["nearest_prototype_error"] = float(wrong.float().mean())
    report["warnings"] = _warnings(model, report["rate_bits"]["monte_carlo"])
    return report


def _warnings(model: LatentModel, rate: float) -> list[str]:
    """What a user should know before trusting the figures."""
    k = model.num_prototypes
    if k == 1 or model.sees_labels or rate >= math.log2(k) + 1:
        return []
    return [
        f"codes tell {rate:.1f} bit of an image, hardly more than its category does (at most "
        f"log2 {k} = {math.log2(k):.1f}): mmd_weight, margin_weight or sigma2 is too large for it"
    ]


def _within_variance(r: Tensor, assignment: Tensor, k: int) -> list[float | None]:
    """s² of each category: of its codes, the mean over dimensions; None without two of them."""
    own = [r[assignment == j].double() for j in range(k)]
    return [float(c.var(0, correction=0).mean()) if len(c) > 1 else None for c in own]


def _subset(total: int, count: int) -> Tensor:
    """Which images stand for all: drawn, since a set's first ones may be easier (MNIST's are).

    The same ones whatever the run's seed, so that runs can be compared.
    """
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0), device="cpu")
    return order[:count].sort().values


def _mse(
    model: LatentModel, images: Tensor, binarization: str, seed: int, labels: Tensor | None
) -> float:
    """Mean squared error per pixel of noiseless reconstructions of [0, 1] images."""
    total = 0.0
    for x, own in with_labels(prepared_batches(model, images, binarization, seed), labels):
        total += float((model.reconstruct(x, own) - x).square().cpu().double().sum())
    return total / images.numel()


def _probe_errors(
    data: ImageData,
    codes: tuple[Tensor, Tensor],
    posterior: tuple[list[Tensor], list[Tensor]],
    seed: int,
) -> dict[str, float]:
    """Probe errors on the means r and on noisy latents z, of training and test images."""
    assert data.train_labels is not None
    assert data.test_labels is not None
    generator = torch.Generator().manual_seed(seed)
    latents = []
    for mean, variance in posterior:
        noise = torch.randn(mean.shape, device="cpu", generator=generator)
        latents.append(mean.cpu() + variance.cpu().sqrt() * noise)
    train_labels, *fitted = labelled(data.train_labels, codes[0], latents[0])
    test_labels, *judged = labelled(data.test_labels, codes[1], latents[1])
    return {
        f"{kind}_{name}": probe_error(kind, fit, train_labels, judge, test_labels, seed)
        for name, fit, judge in zip("rz", fitted, judged, strict=True)
        for kind in PROBES
    }
