"""log p(x) by importance sampling, and the ELBO, for a Gaussian encoder and a mixture prior.

log p(x) ≈ log (1/S) Σ_s p(x given z_s) p(z_s) / q̃(z_s). The proposal q̃ is the encoder's own
N(r, σ²) where the prior's components are no wider than that (τ² = σ²: the ratio's moments are all
finite), and the defensive mixture ½ N(r, σ²) + ½ N(r, τ²) where they are, half of the samples
from each part. Of a learned σ² the least counts. With components of unequal width τ² is the
largest, whatever the image's category: a tail that any component has must be one of the
proposal's too.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from cgm_fast.evaluation.codes import prepared_batches, with_labels
from cgm_fast.models.base import LatentModel
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
    model: LatentModel,
    images: Tensor,
    binarization: str,
    prior: MixturePrior,
    *,
    samples: int = 128,
    seed: int = 0,
    labels: Tensor | None = None,
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
        labels: [n], for a model that sees them (CVAE): log p(x given label).

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
    for x, own in with_labels(prepared_batches(model, images, binarization, seed), labels):
        target = x
        binary = not (model.likelihood.continuous or model.likelihood.levels)
        if binary and binarization == "none":
            draw = torch.rand(x.shape, device=device, generator=generator)
            target = (draw < x).float()
        code, variance = (part.double() for part in model.posterior(x, own))
        for i in range(len(x)):
            rows.append(
                _one_image(
                    model,
                    target[i],
                    None if own is None else own[i],
                    code[i],
                    variance[i],
                    tau2,
                    prior,
                    samples,
                    generator,
                )
            )
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
    model: LatentModel,
    target: Tensor,
    label: Tensor | None,
    code: Tensor,
    variance: Tensor,
    tau2: float,
    prior: MixturePrior,
    samples: int,
    generator: torch.Generator,
) -> Tensor:
    """log p(x), effective samples, −E_q log p(x given z), ELBO, of one x [c, h, w] and its q."""
    # From τ² = 2σ² on, the ratio's second moment is infinite under the encoder's own proposal.
    defensive = tau2 > 1.5 * float(variance.min())
    own = samples - samples // 2 if defensive else samples
    noise = torch.randn(
        samples, len(code), device=code.device, dtype=torch.float64, generator=generator
    )
    scale = variance.sqrt().expand(samples, -1).clone()
    scale[own:] = math.sqrt(tau2)
    z = code + scale * noise
    log_q = _log_normal(z, code, variance)
    proposal = log_q
    if defensive:
        shares = torch.stack(
            (
                log_q + math.log(own / samples),
                _log_normal(z, code, torch.full_like(code, tau2)) + math.log(1 - own / samples),
            )
        )
        proposal = torch.logsumexp(shares, 0)
    log_x = torch.cat(
        [
            model.log_prob(
                part.float(),
                target.expand(len(part), *target.shape),
                None if label is None else label.expand(len(part)),
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


def _log_normal(z: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log N(z; mean, diag variance) of z [S, N], mean and variance [N]: [S]."""
    log_density = (z - mean).square() / variance + torch.log(2 * math.pi * variance)
    return -0.5 * log_density.sum(-1)
