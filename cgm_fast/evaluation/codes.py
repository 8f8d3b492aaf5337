"""Encode a whole set of images, in batches, reproducibly."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cgm_fast.data import prepare
from cgm_fast.models.cgm import CGM

BATCH = 512


def prepared_batches(
    model: CGM, images: Tensor, binarization: str, seed: int = 0
) -> Iterator[Tensor]:
    """Batches of uint8 images [n, c, h, w] as the model takes them, on its device.

    Random binarisation and dequantisation draw from `seed`, so every caller sees the same.
    """
    generator = torch.Generator().manual_seed(seed)
    device = model.usage.device
    for batch in images.split(BATCH):
        x = prepare(batch.cpu(), binarization, model.likelihood.continuous, generator)
        yield x.to(device)


@torch.no_grad()
def encode_images(model: CGM, images: Tensor, binarization: str, seed: int = 0) -> Tensor:
    """The codes r [n, N] of uint8 images [n, c, h, w], float32, on the model's device."""
    batches = prepared_batches(model, images, binarization, seed)
    return torch.cat([model.encode(x) for x in batches])
