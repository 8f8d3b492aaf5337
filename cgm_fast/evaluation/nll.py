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
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from cgm_fast.evaluation.codes import prepared_batches, with_labels
from cgm_fast.evaluation.proposals import Component, Normal, StudentT, at_modes, draw
from cgm_fast.models.base import LatentModel
from cgm_fast.models.prior import Mixture

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
    prior: Mixture,
    *,
    samples: int = 128,
    seed: int = 0,
    labels: Tensor | None = None,
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
    rows = []
    for x, own in with_labels(prepared_batches(model, images, binarization, seed), labels):
        target = x
        binary = not (model.likelihood.continuous or model.likelihood.levels)
        if binary and binarization == "none":
            draw = torch.rand(x.shape, device=device, generator=generator)
            target = (draw < x).float()
        code, variance = (part.double() for part in model.posterior(x, own))
        modes = at_modes(model, target, own, code, variance, prior) if modal else None
        for i in range(len(x)):
            components, counts = _proposal(
                code[i], variance[i], tau2, None if modes is None else modes[i], samples
            )
            rows.append(
                _one_image(
                    model,
                    target[i],
                    None if own is None else own[i],
                    components,
                    counts,
                    prior,
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


def _proposal(
    code: Tensor, variance: Tensor, tau2: float, mode: StudentT | None, samples: int
) -> tuple[list[Component], list[int]]:
    """What the latents of an image are drawn from, the encoder's N(r, σ²) first, and how many."""
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


def _one_image(
    model: LatentModel,
    target: Tensor,
    label: Tensor | None,
    components: list[Component],
    counts: list[int],
    prior: Mixture,
    generator: torch.Generator,
) -> Tensor:
    """log p(x), effective samples, −E_q log p(x given z), ELBO, of one x [c, h, w]."""
    z, proposal = draw(components, counts, generator)
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
    own = slice(counts[0])  # drawn from q itself
    elbo = (log_x[own] + log_prior[own] - components[0].log_prob(z[own])).mean()
    return torch.stack((total - math.log(len(z)), effective, -log_x[own].mean(), elbo))
