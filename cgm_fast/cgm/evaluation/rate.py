"""The rate I(x; z) of a Gaussian encoder, in bits per image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cgm_fast.cgm.models.latent import gaussian_rate_bound, nominal_rate

ROWS = 512  # codes compared with all others at once


@torch.no_grad()
def monte_carlo_rate(r: Tensor, sigma2: float | Tensor, seed: int = 0) -> float:
    """I(x; z) = E[log q(z given x) − log (1/n) Σ_j q(z given x_j)], in bits, with one z per x.

    Args:
        r: [n, N] codes of the images.
        sigma2: Variance of the encoder's noise; [n, N] where it is learned.
        seed: Of the noise.

    Returns:
        The rate of the n images as a source: at most log2 n, however fine the code.
    """
    n = len(r)
    # Only differences count, so one origin serves all; products in float64 are exact enough.
    r = (r.cpu() if r.device.type == "mps" else r).double()  # which has no float64
    r = r - r.mean(0)
    learned = isinstance(sigma2, Tensor)
    variance = torch.as_tensor(sigma2, device=r.device).to(r).expand(r.shape)
    precision = 1 / variance
    # |z − r_j|² / v_j = z²·(1/v_j) − 2 z·(r_j/v_j) + Σ r_j²/v_j
    ones = precision if learned else precision[:1]
    scaled, offset = r * precision, (r.square() * precision).sum(1)
    log_scale = 0.5 * variance.log().sum(1)
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for i in range(0, n, ROWS):
        own = r[i : i + ROWS]
        draw = torch.randn(own.shape, dtype=torch.float64, device="cpu", generator=generator)
        noise = draw.to(r.device)
        z = own + variance[i : i + ROWS].sqrt() * noise
        squares = z.square() @ ones.T + offset - 2 * z @ scaled.T
        log_mixture = torch.logsumexp(-0.5 * squares - log_scale, 1) - math.log(n)
        log_own = -0.5 * noise.square().sum(1) - log_scale[i : i + ROWS]
        total += float((log_own - log_mixture).sum())
    return total / n / math.log(2)


def with_known_noise(r: Tensor, variance: Tensor) -> tuple[Tensor, float | Tensor]:
    """Codes [n, N] with the variance of their noise: as a number where it is fixed."""
    fixed = float(variance[0, 0])
    return r, fixed if bool((variance == fixed).all()) else variance


def rates(r: Tensor, sigma2: float | Tensor, seed: int = 0) -> dict[str, float]:
    """The Gaussian bound and the Monte-Carlo estimate, for codes r [n, N]; also the nominal rate.

    Where the noise's variance is learned, sigma2 [n, N], there is no nominal rate.
    """
    spread = r.cpu().double().var(0, correction=0)
    found = {"monte_carlo": monte_carlo_rate(r, sigma2, seed)}
    if isinstance(sigma2, Tensor):
        noise = sigma2.cpu().double()
        found["gaussian_bound"] = gaussian_rate_bound(spread, noise.mean(0), noise.log().mean(0))
    else:
        found["nominal"] = nominal_rate(sigma2, r.shape[1])
        found["gaussian_bound"] = gaussian_rate_bound(spread, sigma2)
    return {**found, "monte_carlo_ceiling": math.log2(len(r))}
