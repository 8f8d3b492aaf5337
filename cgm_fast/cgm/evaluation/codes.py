"""Encode a whole set of images, in batches, reproducibly."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cgm_fast.cgm.data import UNLABELLED, prepare
from cgm_fast.cgm.models.base import LatentModel

BATCH = 512  # images that are encoded, decoded or generated at a time


def prepared_batches(
    model: LatentModel, images: Tensor, binarization: str, seed: int = 0
) -> Iterator[Tensor]:
    """Batches of uint8 images [n, c, h, w] as the model takes them, on its device.

    Random binarisation and dequantisation draw from `seed`, so every caller sees the same.
    """
    generator = torch.Generator().manual_seed(seed)
    device = model.usage.device
    for batch in images.split(BATCH):
        x = prepare(batch.cpu(), binarization, model.likelihood.continuous, generator)
        yield x.to(device)


def with_labels(
    batches: Iterator[Tensor], labels: Tensor | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches, each with its own of the labels [n], on its device; or with None."""
    first = 0
    for x in batches:
        yield x, None if labels is None else labels[first : first + len(x)].to(x.device)
        first += len(x)


def labelled(labels: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    """The labels [n] that are given, on the CPU, and the rows of other tensors [n, ...] with one.

    Rows stay where they are.
    """
    known = labels.cpu() != UNLABELLED
    return labels.cpu()[known], *(part[known.to(part.device)] for part in parts)


@torch.no_grad()
def encode_images(
    model: LatentModel,
    images: Tensor,
    binarization: str,
    seed: int = 0,
    labels: Tensor | None = None,
) -> Tensor:
    """The codes r [n, N] of uint8 images [n, c, h, w], float32, on the model's device.

    Labels [n] are for an encoder that sees them (CVAE).
    """
    batches = prepared_batches(model, images, binarization, seed)
    return torch.cat([model.encode(x, own) for x, own in with_labels(batches, labels)])


@torch.no_grad()
def codes_and_posteriors(
    model: LatentModel,
    images: Tensor,
    binarization: str,
    seed: int = 0,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes r, means and variances [n, N], encoded once unless the model maps its codes."""
    mean, variance = posteriors(model, images, binarization, seed, labels)
    r = encode_images(model, images, binarization, seed, labels) if model.maps_codes else mean
    return r, mean, variance


@torch.no_grad()
def posteriors(
    model: LatentModel,
    images: Tensor,
    binarization: str,
    seed: int = 0,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Means and variances [n, N] of q(z given x) of uint8 images [n, c, h, w], as above."""
    batches = prepared_batches(model, images, binarization, seed)
    found = [model.posterior(x, own) for x, own in with_labels(batches, labels)]
    return torch.cat([mean for mean, _ in found]), torch.cat([variance for _, variance in found])
