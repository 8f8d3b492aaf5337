"""Denoising: the reconstruction of a noisy image, judged against the clean one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cgm_fast.cgm.data import Noise
from cgm_fast.cgm.evaluation.codes import BATCH
from cgm_fast.cgm.extras import require
from cgm_fast.cgm.models.base import LatentModel


@torch.no_grad()
def denoise(
    model: LatentModel, clean: Tensor, noise: Noise, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Add noise to images in [0, 1] and reconstruct them.

    Args:
        model: In evaluation mode; best one trained with the same noise.
        clean: [B, c, h, w] in [0, 1], on the model's device.
        noise: What to add.
        generator: For the noise, on that device; None for torch's own.

    Returns:
        The noisy and the denoised images.
    """
    noisy = noise.add(clean, generator)
    return noisy, torch.cat([model.reconstruct(part) for part in noisy.split(BATCH)])


def psnr(images: Tensor, clean: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images against clean ones in [0, 1]."""
    mse = float((images.cpu().double() - clean.cpu().double()).square().mean())
    return math.inf if mse == 0 else -10 * math.log10(mse)


def ssim(images: Tensor, clean: Tensor) -> float:
    """Mean structural similarity (Wang et al., 2004) of images [B, c, h, w] to clean ones."""
    image = require("torchmetrics.functional.image", "SSIM")
    found = image.structural_similarity_index_measure(
        images.cpu().double(), clean.cpu().double(), data_range=1.0
    )
    return float(found)
