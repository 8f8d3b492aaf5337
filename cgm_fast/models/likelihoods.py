"""p(x given z): what the decoder's output means. All log-probabilities are in nats per image.

Images are in [0, 1]: binary, or grey for the Bernoulli likelihood (then the expected loss over
random binarisations), or dequantised, (v + u)/256 with v in 0..255 and u in [0, 1), for densities.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cgm_fast.ops.checks import check_number


class Likelihood(nn.Module):
    """Interface: subclasses map decoder outputs `params` [B, p·c, h, w] to densities of images."""

    params_per_channel = 1
    """p: how many decoder channels describe one image channel."""

    continuous = False
    """Whether this is a density of dequantised images, for which bits per dimension make sense."""

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """log p(x given z) of images x [B, c, h, w], summed over pixels: [B], nats."""
        raise NotImplementedError

    def mean(self, params: Tensor) -> Tensor:
        """The expected image [B, c, h, w]."""
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Independent binary pixels; `params` are logits."""

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Minus the binary cross-entropy, [B]."""
        loss = nn.functional.binary_cross_entropy_with_logits(params, x, reduction="none")
        return -loss.flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        """The pixels' probabilities."""
        return params.sigmoid()


class Gaussian(Likelihood):
    """Independent Gaussian pixels around the decoder's output, with one scale for all.

    Args:
        sigma: Standard deviation, in units of [0, 1] images; the initial one if learned.
        learned: Whether log σ is a parameter.
    """

    continuous = True
    log_sigma: Tensor

    def __init__(self, sigma: float = 0.1, *, learned: bool = True) -> None:
        super().__init__()
        log_sigma = torch.tensor(math.log(check_number("sigma", sigma, above=0)))
        if learned:
            self.log_sigma = nn.Parameter(log_sigma)
        else:
            self.register_buffer("log_sigma", log_sigma)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log-density of the pixels, [B]."""
        residual = (x - params) * torch.exp(-self.log_sigma)
        log_density = -0.5 * residual.square() - self.log_sigma - 0.5 * math.log(2 * math.pi)
        return log_density.flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        """The decoder's output, within the range of images."""
        return params.clamp(0, 1)


def bits_per_dim(nats: float, dimensions: int) -> float:
    """Bits per dimension of 8-bit images from the density, in nats, of dequantised [0, 1] ones."""
    return nats / (dimensions * math.log(2)) + 8


LIKELIHOODS = ("bernoulli", "gaussian", "gaussian-fixed")


def make_likelihood(name: str) -> Likelihood:
    """The likelihood of this name, one of `LIKELIHOODS`.

    Raises:
        ValueError: no likelihood has this name.
    """
    if name == "bernoulli":
        return Bernoulli()
    if name in ("gaussian", "gaussian-fixed"):
        return Gaussian(learned=name == "gaussian")
    raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {name!r}")
