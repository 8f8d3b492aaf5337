"""log p(x) by importance sampling, and the ELBO, for a Gaussian encoder and a mixture prior.

log p(x) ≈ log (1/S) Σ_s p(x given z_s) p(z_s) / q̃(z_s). Half of the latents are drawn from a t at
the mode of p(z given x) (`proposals`), where the likelihood tells what is needed to find it. The
others are drawn from the encoder's N(r, σ²), if the prior's components are no wider than that (with
τ² = σ² the ratio's moments are all finite), or half of them from N(r, τ²), to be safe. Of a learned
σ² the least counts. With components of unequal width τ² is the largest, whatever the image's
category: a tail that any component has must be one of the proposal's too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from cgm_fast.cgm.evaluation.codes import prepared_batches, with_labels
from cgm_fast.cgm.evaluation.proposals import Component, Normal, StudentT, at_modes, draw
from cgm_fast.cgm.models.base import LatentModel
from cgm_fast.cgm.models.prior import Mixture

# Latents decoded at once: on a CPU what its caches hold, which is 1.4 times as fast as 4096, and
# elsewhere what keeps a GPU busy; less where that would be more parameters of pixels than these.
DECODE, DECODE_ON_CPU = 8192, 512
PARAMETERS = 1 << 25


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
        nll_given_category: −log p(x given k), k the image's own category, by the same latents; it
            may be less than `nll` by log K. None where categories are not given.
    """

    nll: float
    nll_standard_error: float
    effective_samples: float
    samples: int
    images: int
    elbo: float
    reconstruction: float
    kl: float
    nll_given_category: float | None = None

    def to_dict(self) -> dict[str, float]:
        """For a JSON file."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@torch.no_grad()
def likelihoods(
    model: LatentModel,
    images: Tensor,
    binarization: str,
    prior: Mixture,
    *,
    samples: int = 128,
    seed: int = 0,
    labels: Tensor | None = None,
    categories: Tensor | None = None,
    modal: bool = True,
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
        categories: [n] in [0, K), components of the prior, for log p(x given category) besides.
        modal: Draw half of the latents at the mode of p(z given x), where it can be found.

    Raises:
        ValueError: fewer than 2 samples.
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
    device = model.usage.device
    generator = torch.Generator(device).manual_seed(seed)
    prior = prior.to(torch.float64)
    tau2 = prior.widest()
    c, h, w = images.shape[1:]
    at_once = DECODE_ON_CPU if device.type == "cpu" else DECODE
    at_once = max(1, min(at_once, PARAMETERS // (model.likelihood.channels(c) * h * w)))
    rows: list[Tensor] = []
    for x, own in with_labels(prepared_batches(model, images, binarization, seed), labels):
        target = x
        binary = not (model.likelihood.continuous or model.likelihood.levels)
        if binary and binarization == "none":
            draw = torch.rand(x.shape, device=device, generator=generator)
            target = (draw < x).float()
        code, variance = (part.double() for part in model.posterior(x, own))
        modes = at_modes(model, target, own, code, variance, prior) if modal else None
        proposals = [
            _proposal(code[i], variance[i], tau2, None if modes is None else modes[i], samples)
            for i in range(len(x))
        ]
        done = sum(map(len, rows))
        for part in torch.arange(len(x), device="cpu").split(max(1, at_once // samples)):
            rows.append(
                _estimates(
                    model,
                    target[part],
                    None if own is None else own[part],
                    [proposals[i] for i in part],
                    prior,
                    None if categories is None else categories[done + part].to(device),
                    at_once,
                    generator,
                )
            )
    table = torch.cat(rows)
    log_p, effective, reconstruction, elbo, given = table.mean(0).tolist()
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
        nll_given_category=None if categories is None else -given,
    )


Proposal = tuple[list[Component], list[int]]  # densities, the encoder's first; latents of each


def _proposal(
    code: Tensor, variance: Tensor, tau2: float, mode: StudentT | None, samples: int
) -> Proposal:
    """What the latents of an image are drawn from."""
    components: list[Component] = [Normal(code, variance)]
    counts = [samples if mode is None else samples - samples // 2]
    # From τ² = 2σ² on, the ratio's second moment is infinite under the encoder's own proposal.
    if tau2 > 1.5 * float(variance.min()) and counts[0] > 1:
        components.append(Normal(code, torch.full_like(code, tau2)))
        counts = [counts[0] - counts[0] // 2, counts[0] // 2]
    if mode is not None:
        components.append(mode)
        counts.append(samples // 2)
    return components, counts


def _estimates(
    model: LatentModel,
    target: Tensor,
    labels: Tensor | None,
    proposals: Sequence[Proposal],
    prior: Mixture,
    categories: Tensor | None,
    at_once: int,
    generator: torch.Generator,
) -> Tensor:
    """Of images [B, c, h, w]: [B, 5].

    log p(x), effective samples, −E_q log p(x given z), ELBO, log p(x given category) or NaN.
    """
    drawn = [draw(components, counts, generator) for components, counts in proposals]
    z = torch.stack([latents for latents, _ in drawn])  # [B, S, N]
    samples = z.shape[1]
    log_q = torch.stack([p[0][0].log_prob(of) for p, of in zip(proposals, z, strict=True)])
    log_each = prior.log_prob_of_each(z.flatten(0, 1)).view(*z.shape[:2], -1)  # [B, S, K]
    log_prior = torch.logsumexp(prior.weights.log() + log_each, 2)
    log_x = _log_likelihood(model, z, target, labels, at_once)
    log_ratio = log_x - torch.stack([density for _, density in drawn])
    log_w = log_ratio + log_prior
    total = torch.logsumexp(log_w, 1)
    effective = torch.exp(2 * total - torch.logsumexp(2 * log_w, 1))
    # The first so many are drawn from q itself.
    first = torch.tensor([counts[0] for _, counts in proposals], device=z.device)
    own = torch.arange(samples, device=z.device) < first.unsqueeze(1)
    reconstruction = -log_x.where(own, 0.0).sum(1) / first
    kl = (log_q - log_prior).where(own, 0.0).sum(1) / first
    log_p = total - math.log(samples)
    given = torch.full_like(log_p, math.nan)
    if categories is not None:
        log_own = log_each.gather(2, categories[:, None, None].expand(-1, samples, 1)).squeeze(2)
        given = torch.logsumexp(log_ratio + log_own, 1) - math.log(samples)
    return torch.stack((log_p, effective, reconstruction, -reconstruction - kl, given), 1)


def _log_likelihood(
    model: LatentModel, z: Tensor, target: Tensor, labels: Tensor | None, at_once: int
) -> Tensor:
    """log p(x given z) of every latent [B, S, N] of every image [B, c, h, w]: [B, S] float64."""
    owner = torch.arange(len(z), device=z.device).repeat_interleave(z.shape[1])
    parts = zip(z.flatten(0, 1).float().split(at_once), owner.split(at_once), strict=True)
    found = [
        model.log_prob(latents, target[i], None if labels is None else labels[i])
        for latents, i in parts
    ]
    return torch.cat(found).double().view(z.shape[:2])
