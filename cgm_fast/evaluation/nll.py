"""log p(x) by importance sampling, and the ELBO, for a fixed-variance encoder and a mixture prior.

log p(x) ≈ log (1/S) Σ_s p(x given z_s) p(z_s) / q̃(z_s). The proposal q̃ is the encoder's own
N(r, σ²) where the prior's components are no wider than that (τ² = σ²: the ratio's moments are all
finite), and the defensive mixture ½ N(r, σ²) + ½ N(r, τ²) where they are, half of the samples
from each part. With components of unequal width τ² is the largest, whatever the image's category:
a tail that any component has must be one of the proposal's too.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from cgm_fast.evaluation.codes import prepared_batches
from cgm_fast.models.cgm import CGM
from cgm_fast.models.prior import MixturePrior

DECODE = 4096  # latents decoded at once


@dataclass(frozen=True)
class Likelihoods:
    """Averages over images, in nats per image.

    Attributes:
        nll: −log p(x), estimated; on average an upper bound of the true value.
        nll_standard_error: Of that average, over images.
        effective_samples: Mean over images of (Σw)²/Σw².
        samples: S, latents per image.
        images: How many images.
        elbo: E_q[log p(x given z) + log p(z) − log q(z given x)].
        reconstruction: E_q[−log p(x given z)].
        kl: E_q[log q(z given x) − log p(z)], the mixture KL.
    """

    nll: float
    nll_standard_error: float
    effective_samples: float
    samples: int
    images: int
    elbo: float
    reconstruction: float
    kl: float

    def to_dict(self) -> dict[str, float]:
        """For a JSON file."""
        return asdict(self)


@torch.no_grad()
def likelihoods(
    model: CGM,
    images: Tensor,
    binarization: str,
    prior: MixturePrior,
    *,
    samples: int = 128,
    seed: int = 0,
) -> Likelihoods:
    """Estimate log p(x) and the ELBO of a set of images under a prior.

    Args:
        model: In evaluation mode.
        images: [n, c, h, w] uint8. A Bernoulli likelihood is of binary images: with binarization
            "none" the encoder sees grey ones, and what is explained is drawn from them.
        binarization: As in training.
        prior: On the model's device.
        samples: S, at least 2.
        seed: Of binarisation and latents.

    Raises:
        ValueError: fewer than 2 samples.
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
    device = model.usage.device
    generator = torch.Generator(device).manual_seed(seed)
    prior = prior.to(torch.float64)
    tau2 = float(prior.variances[prior.weights > 0].max())
    rows = []
    for x in prepared_batches(model, images, binarization, seed):
        target = x
        if not model.likelihood.continuous and binarization == "none":
            draw = torch.rand(x.shape, device=device, generator=generator)
            target = (draw < x).float()
        code = model.mapper(model.encode(x)).double()
        for i in range(len(x)):
            rows.append(_one_image(model, target[i], code[i], tau2, prior, samples, generator))
    table = torch.stack(rows)  # [n, 4]: log p, effective samples, reconstruction, elbo
    log_p, effective, reconstruction, elbo = table.mean(0).tolist()
    spread = float(table[:, 0].std()) if len(table) > 1 else math.nan
    return Likelihoods(
        nll=-log_p,
        nll_standard_error=spread / math.sqrt(len(table)),
        effective_samples=effective,
        samples=samples,
        images=len(table),
        elbo=elbo,
        reconstruction=reconstruction,
        kl=-reconstruction - elbo,
    )


def _one_image(
    model: CGM,
    target: Tensor,
    code: Tensor,
    tau2: float,
    prior: MixturePrior,
    samples: int,
    generator: torch.Generator,
) -> Tensor:
    """log p(x), effective samples, −E_q log p(x given z), ELBO, for x [c, h, w] and code [N]."""
    sigma2 = model.sigma2
    # From τ² = 2σ² on, the ratio's second moment is infinite under the encoder's own proposal.
    defensive = tau2 > 1.5 * sigma2
    own = samples - samples // 2 if defensive else samples
    noise = torch.randn(
        samples, len(code), device=code.device, dtype=torch.float64, generator=generator
    )
    scale = noise.new_full((samples, 1), math.sqrt(sigma2))
    scale[own:] = math.sqrt(tau2)
    z = code + scale * noise
    log_q = _log_normal(z, code, sigma2)
    proposal = log_q
    if defensive:
        shares = torch.stack(
            (
                log_q + math.log(own / samples),
                _log_normal(z, code, tau2) + math.log(1 - own / samples),
            )
        )
        proposal = torch.logsumexp(shares, 0)
    log_x = torch.cat(
        [
            model.likelihood.log_prob(
                model.decode(part.float()), target.expand(len(part), *target.shape)
            )
            for part in z.split(DECODE)
        ]
    ).double()
    log_prior = prior.log_prob(z)
    log_w = log_x + log_prior - proposal
    total = torch.logsumexp(log_w, 0)
    effective = torch.exp(2 * total - torch.logsumexp(2 * log_w, 0))
    elbo = (log_x + log_prior - log_q)[:own].mean()
    return torch.stack((total - math.log(samples), effective, -log_x[:own].mean(), elbo))


def _log_normal(z: Tensor, mean: Tensor, variance: float) -> Tensor:
    """log N(z; mean, variance·I) of z [S, N]: [S]."""
    latent_dim = z.shape[-1]
    squares = (z - mean).square().sum(-1)
    return -0.5 * squares / variance - 0.5 * latent_dim * math.log(2 * math.pi * variance)
