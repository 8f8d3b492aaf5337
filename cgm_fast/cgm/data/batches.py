"""From uint8 images to what a likelihood takes: binarisation, dequantisation, noise."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cgm_fast.cgm.data.dataset import SEED, ImageData

BINARIZATIONS = ("none", "dynamic", "static", "threshold")


def draw_once(data: ImageData) -> ImageData:
    """The same with every pixel drawn once and for all with its grey value as probability.

    As in Larochelle's statically binarised MNIST, of which this is another draw, with labels.
    """
    generator = torch.Generator().manual_seed(SEED)

    def drawn(images: Tensor) -> Tensor:
        return torch.cat(
            [prepare(part, "dynamic", False, generator).byte() * 255 for part in images.split(4096)]
        )

    return dataclasses.replace(data, train=drawn(data.train), test=drawn(data.test))


def prepare(
    images: Tensor, binarization: str, continuous: bool, generator: torch.Generator | None = None
) -> Tensor:
    """A batch of uint8 images as floats in [0, 1].

    Args:
        images: [B, c, h, w] uint8.
        binarization: "none"; "dynamic": each pixel drawn anew with its grey value as
            probability; "threshold": at half; "static": the same, of images that `draw_once` has
            made black and white.
        continuous: Whether the likelihood is a density, for which 8-bit values are spread
            uniformly over their interval (dequantised).
        generator: For the draws; None for torch's own.

    Raises:
        ValueError: unknown binarization.
    """
    if binarization == "dynamic":
        grey = images.float() / 255
        noise = _uniform(grey, generator)
        return (noise < grey).float()
    if binarization in ("static", "threshold"):
        return (images > 127).float()
    if binarization != "none":
        raise ValueError(
            f"binarization must be one of {', '.join(BINARIZATIONS)}, got {binarization!r}"
        )
    if continuous:
        return (images.float() + _uniform(images, generator)) / 256
    return images.float() / 255


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform draws, float32 whatever torch's default dtype is."""
    return torch.rand(like.shape, device=like.device, dtype=torch.float32, generator=generator)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise for images, to be taken off them again (section IV-D).

    Attributes:
        variance: For images in [0, 1].
        signed: Whether it is for images in [-1, 1] instead: a quarter of it on [0, 1].
        clip: Whether noisy images are clipped to the range.
    """

    variance: float
    signed: bool = False
    clip: bool = False

    def add(self, clean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Noisy versions of images in [0, 1] of any shape; the generator is on their device."""
        deviation = math.sqrt(self.variance) * (0.5 if self.signed else 1.0)
        noise = torch.randn(
            clean.shape, device=clean.device, dtype=clean.dtype, generator=generator
        )
        noisy = clean + deviation * noise
        return noisy.clamp(0, 1) if self.clip else noisy

    def __str__(self) -> str:
        """For notes: the same variance is four times as much noise on one range."""
        clipped = "clipped" if self.clip else "not clipped"
        return f"variance {self.variance:g} on [{'-1' if self.signed else '0'}, 1], {clipped}"
