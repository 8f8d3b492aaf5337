"""Fixed-variance latents: noise from a rate, the rate from noise, and the unit-power head.

With encoder noise of variance σ² and N dimensions of unit variance in all, the nominal rate is
I = −(N/2) log2 σ² bits per image, so σ² = 4^(−I/N) (section IV-B4 of the paper).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cgm_fast.ops.checks import check_number

DEFAULT_SIGMA2 = 0.02


def sigma2_of_rate(rate_bits: float, latent_dim: int) -> float:
    """The noise variance σ² = 4^(−I/N) at which N unit-variance dimensions carry I bits."""
    return float(4.0 ** (-check_number("rate_bits", rate_bits, at_least=0) / latent_dim))


def nominal_rate(sigma2: float, latent_dim: int) -> float:
    """I = −(N/2) log2 σ², in bits per image; the inverse of `sigma2_of_rate`."""
    return -0.5 * latent_dim * math.log2(sigma2)


def gaussian_rate_bound(
    variance: Tensor, sigma2: float | Tensor, log_sigma2: Tensor | None = None
) -> float:
    """½ Σ_j log2(1 + Var μ_j / σ²) in bits, for the variances [N] of the encoder's means.

    An upper bound of the mutual information I(x; z), attained when z is Gaussian with
    independent coordinates: h(z) of a Gaussian, less E h(z given x).

    Args:
        variance: [N], Var μ_j.
        sigma2: Variance of the noise; or [N], its mean over images where it is learned.
        log_sigma2: [N], then the mean of its logarithm.
    """
    ratio = 1 + variance.double() / sigma2
    bits = torch.log2(ratio).sum()
    if log_sigma2 is not None:
        sigma2 = torch.as_tensor(sigma2, device=variance.device)
        bits = bits + (sigma2.log() - log_sigma2).sum() / math.log(2)
    return 0.5 * float(bits)


def resolve_sigma2(sigma2: float | None, rate_bits: float | None, latent_dim: int) -> float:
    """The noise variance from exactly one of the two ways to give it; 0.02 from neither.

    Raises:
        ValueError: both are given, or the one given is out of range.
    """
    if sigma2 is not None and rate_bits is not None:
        raise ValueError(
            f"give sigma2 or rate_bits, not both; got sigma2={sigma2} and rate_bits={rate_bits}"
        )
    if rate_bits is None:
        return check_number("sigma2", DEFAULT_SIGMA2 if sigma2 is None else sigma2, above=0)
    found = sigma2_of_rate(rate_bits, latent_dim)
    if found == 0:
        raise ValueError(
            f"rate_bits must leave a noise variance 4^(-I/N) above 0 in float64, got {rate_bits} "
            f"for {latent_dim} dimensions"
        )
    return found


def check_power(sigma2: float) -> None:
    """Raise ValueError if noise leaves no power to a signal beside it, of one in all."""
    if sigma2 > 1:
        raise ValueError(f"power=unit needs sigma2 <= 1, got {sigma2}")


class UnitPower(nn.Module):
    """Encoder head for which z = μ + noise has unit variance in every dimension.

    Standardises μ over the batch (running statistics in evaluation) and scales it by
    √(1 − σ²); only then is the nominal rate the rate of a Gaussian code.

    Args:
        latent_dim: N.
        sigma2: Noise variance, at most 1.

    Raises:
        ValueError: sigma2 exceeds 1, so no unit power is left for the signal.
    """

    def __init__(self, latent_dim: int, sigma2: float) -> None:
        super().__init__()
        check_power(sigma2)
        self.norm = nn.BatchNorm1d(latent_dim, affine=False)
        self.scale = math.sqrt(1 - sigma2)

    def forward(self, mean: Tensor) -> Tensor:
        """Scale [B, N] to variance 1 − σ²."""
        return self.scale * self.norm(mean)
