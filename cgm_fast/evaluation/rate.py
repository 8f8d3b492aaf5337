"""The rate I(x; z) of a fixed-variance encoder, in bits per image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cgm_fast.models.latent import gaussian_rate_bound, nominal_rate

ROWS = 512  # codes compared with all others at once


@torch.no_grad()
def monte_carlo_rate(r: Tensor, sigma2: float, seed: int = 0) -> float:
    """I(x; z) = E[log q(z given x) − log (1/n) Σ_j q(z given x_j)], in bits, with one z per x.

    Args:
        r: [n, N] codes of the images.
        sigma2: Variance of the encoder's noise.
        seed: Of the noise.

    Returns:
        The rate of the n images as a source: at most log2 n, however fine the code.
    """
    n = len(r)
    # Only differences count, so one origin serves all; products in float64 are exact enough.
    r = r.cpu().double()
    r = r - r.mean(0)
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for i in range(0, n, ROWS):
        own = r[i : i + ROWS]
        noise = torch.randn(own.shape, dtype=torch.float64, generator=generator)
        z = own + math.sqrt(sigma2) * noise
        squares = z.square().sum(1, keepdim=True) + r.square().sum(1) - 2 * z @ r.T
        log_mixture = torch.logsumexp(-0.5 * squares / sigma2, 1) - math.log(n)
        total += float((-0.5 * noise.square().sum(1) - log_mixture).sum())
    return total / n / math.log(2)


def rates(r: Tensor, sigma2: float, seed: int = 0) -> dict[str, float]:
    """The nominal rate, the Gaussian bound and the Monte-Carlo estimate, for codes r [n, N]."""
    return {
        "nominal": nominal_rate(sigma2, r.shape[1]),
        "gaussian_bound": gaussian_rate_bound(r.cpu().double().var(0, correction=0), sigma2),
        "monte_carlo": monte_carlo_rate(r, sigma2, seed),
        "monte_carlo_ceiling": math.log2(len(r)),
    }
