"""CGM, figure 1 of the paper: encoder, descriptor, latent mapper, decoder, and their objective.

V. Abrol, P. Sharma, A. Patra, "Improving Generative Modelling in VAEs using Multimodal Prior",
IEEE Transactions on Multimedia, 2020. An image x is encoded to r = E(x); z = r + σe is decoded;
the prior is a mixture around K prototypes g_k. Eq. 6: L = L_E + λ·MMD²(z, z') + β·L_D with
z' = g_{k(x)} + τe' and k(x) the nearest prototype (CGM1) or the label (CGM2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cgm_fast.losses import CGMLoss
from cgm_fast.models.base import LatentModel, Output
from cgm_fast.models.descriptor import Descriptor, category_counts, make_descriptor
from cgm_fast.models.divergence import Divergence, OfSamples
from cgm_fast.models.latent import UnitPower, resolve_latent_dim, resolve_sigma2
from cgm_fast.models.likelihoods import Likelihood
from cgm_fast.models.precision import apply, check_codes, codes_of, share
from cgm_fast.models.prior import PRIORS, FullMixturePrior, Mixture, MixturePrior
from cgm_fast.ops.backends import AUTO
from cgm_fast.ops.cgm_loss.api import CGMLossResult
from cgm_fast.ops.checks import check_choice
from cgm_fast.ops.prototype_margin.api import PrototypeMarginResult, prototype_margin

Similarity = Callable[[Tensor, Tensor], Tensor]


def _cosine(r: Tensor, g: Tensor) -> Tensor:
    return nn.functional.normalize(r) @ nn.functional.normalize(g).T


def _dot(r: Tensor, g: Tensor) -> Tensor:
    return r @ g.T


SIMILARITIES: dict[str, Similarity] = {"cosine": _cosine, "dot": _dot}
ASSIGNMENTS = ("euclidean", *SIMILARITIES)


class CGM(LatentModel):
    """An autoencoder whose prior is a mixture of K learned prototypes.

    Args:
        encoder: Images [B, c, h, w] to [B, N] (further axes are flattened).
        decoder: Latents [B, N] to the likelihood's parameters, or an `AutoregressiveDecoder`.
        latent_dim: N; None for what the encoder says of itself (an attribute `latent_dim`, or a
            linear last layer), else 10.
        num_prototypes: K, at least 2.
        likelihood: A name of `likelihoods.LIKELIHOODS`, or a `Likelihood`.
        descriptor: A name of `descriptor.DESCRIPTORS`, or a `Descriptor`.
        assignment: What an image without a label is closest by: "euclidean" distance, or a
            similarity, "cosine", "dot" or a function of r [B, N] and g [K, N] to [B, K].
        divergence: L_M: "mmd2" (eq. 5), "mmd" (its root), "energy" (the energy distance), or a
            function of encoded and prior samples, both [B, N], to [].
        prior_sampling: A prior sample is drawn around its image's prototype ("assigned"), or
            around any at random ("iid").
        estimator: Of MMD², "biased" or, with prior_sampling "iid", "unbiased".
        conditional: MMD² of each category's samples, averaged by their shares of the batch.
        negatives: "sum" over the other prototypes in the margin loss, or their "mean".
        normalize: Scale codes and prototypes to unit length for the margin loss and the nearest
            prototype.
        mapper: Applied to both codes and prototypes before the noise; None for the identity.
        sigma2: Variance of the encoder's noise. Give this or `rate_bits`; neither means 0.02.
        rate_bits: Nominal rate I in bits per image, σ² = 4^(−I/N).
        prior_sigma2: τ², variance of a prior component; None for σ².
        mmd_weight: λ.
        margin_weight: β.
        margin: m, on the squared distance; prototypes begin √m times as far apart as for 1.
        bandwidth: Of the kernel: "paper" (σ_k² = N), "infovae", a number or several.
        power: "free", or "unit" to standardise codes to variance 1 − σ² (see `UnitPower`).
        detach_prior: Keep the MMD from moving the prototypes.
        reseed_dead: After how many steps without a member a prototype moves to a code of the
            batch; 0 for never.
        backend: Implementation of the loss, "auto" or a name.

    Raises:
        ValueError: an argument is out of range, both sigma2 and rate_bits are given, or an option
            does not go with another (see `divergence.Divergence`).
    """

    idle_steps: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        latent_dim: int | None = None,
        num_prototypes: int = 10,
        likelihood: str | Likelihood = "bernoulli",
        descriptor: str | Descriptor = "learned",
        assignment: str | Similarity = "euclidean",
        divergence: str | OfSamples = "mmd2",
        prior_sampling: str = "assigned",
        estimator: str = "biased",
        conditional: bool = False,
        negatives: str = "sum",
        normalize: bool = False,
        mapper: nn.Module | None = None,
        sigma2: float | None = None,
        rate_bits: float | None = None,
        prior_sigma2: float | None = None,
        mmd_weight: float = 1000.0,
        margin_weight: float = 1.0,
        margin: float = 1.0,
        bandwidth: str | float | Sequence[float] = "paper",
        power: str = "free",
        detach_prior: bool = False,
        reseed_dead: int = 0,
        backend: str = AUTO,
    ) -> None:
        latent_dim = resolve_latent_dim(latent_dim, codes_of(encoder))
        if num_prototypes < 2:
            raise ValueError(f"num_prototypes must be at least 2, got {num_prototypes}")
        if reseed_dead < 0:
            raise ValueError(f"reseed_dead must be at least 0, got {reseed_dead}")
        check_choice("power", power, ("free", "unit"))
        if isinstance(assignment, str):
            check_choice("assignment", assignment, ASSIGNMENTS)
        super().__init__(decoder, latent_dim, num_prototypes, likelihood)
        self.sigma2 = resolve_sigma2(sigma2, rate_bits, latent_dim)
        self.reseed_dead = reseed_dead
        self.similarity = (
            SIMILARITIES.get(assignment) if isinstance(assignment, str) else assignment
        )
        self.divergence = Divergence(
            divergence, prior_sampling, estimator, conditional, bandwidth, backend
        )
        self.normalize = normalize
        self.encoder = encoder
        self.head = UnitPower(latent_dim, self.sigma2) if power == "unit" else nn.Identity()
        self.mapper = nn.Identity() if mapper is None else mapper
        self.maps_codes = not isinstance(self.mapper, nn.Identity)
        self.descriptor = (
            make_descriptor(descriptor, num_prototypes, latent_dim)
            if isinstance(descriptor, str)
            else descriptor
        )
        if isinstance(descriptor, str) and margin > 1:
            # Xavier's prototypes are two margins of 1 apart, in squares, where N = K. Closer than
            # a margin they would have to be pushed apart first, and every code with them.
            with torch.no_grad():
                self.prototypes.mul_(margin**0.5)
        if list(self.prototypes.shape) != [num_prototypes, latent_dim]:
            raise ValueError(
                f"the descriptor's prototypes must be [{num_prototypes}, {latent_dim}], got "
                f"{list(self.prototypes.shape)}"
            )
        self.latent_loss = CGMLoss(
            self.sigma2,
            prior_sigma2=prior_sigma2,
            mmd_weight=mmd_weight,
            margin_weight=margin_weight,
            margin=margin,
            bandwidth=bandwidth,
            negatives=negatives,
            detach_prior=detach_prior,
            backend=backend,
        )
        # For how many steps each category has not occurred.
        self.register_buffer("idle_steps", torch.zeros(num_prototypes, dtype=torch.int64))

    @property
    def prototypes(self) -> Tensor:
        """The prototypes g [K, N], as they are between batches."""
        return self.descriptor.prototypes

    @property
    def weights(self) -> tuple[float, float]:
        """(λ, β)."""
        return self.latent_loss.mmd_weight, self.latent_loss.margin_weight

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The codes r [B, N] of images x [B, c, h, w], float32 or float64 whatever autocast does.

        Labels, which the encoder never sees, are ignored.
        """
        codes = apply(self.encoder, x).flatten(1)
        check_codes(codes, self.latent_dim, self.latent_dim)
        return apply(self.head, codes)

    def posterior(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean [B, N] and variance [B, N], σ², of q(z given x)."""
        mean = apply(self.mapper, self.encode(x))
        return mean, torch.full_like(mean, self.sigma2)

    def assign(self, r: Tensor, labels: Tensor | None = None) -> Tensor:
        """The categories [B] of codes r [B, N]: the labels if given, else the nearest.

        A label below 0 stands for none.
        """
        g = self.prototypes.to(r.dtype)
        if self.similarity is not None:
            nearest = self.similarity(r, g).argmax(1)
        else:
            nearest = self._margin(r, g, None).assignment
        return nearest if labels is None else torch.where(labels < 0, nearest, labels)

    def forward(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        target: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Output:
        """The objective of one batch (eq. 6).

        Args:
            x: [B, c, h, w] images in [0, 1], what the encoder sees.
            labels: [B] categories in [0, K) for CGM2, below 0 for an image that has none, whose
                category is then its nearest prototype; None for CGM1.
            target: [B, c, h, w], what the decoder must explain; None for x itself.
            generator: For the noise; None for torch's own.

        Returns:
            The loss, its terms, and what they were computed from.
        """
        r = self.encode(x)
        if self.similarity is not None or labels is not None:
            with torch.no_grad():
                labels = self.assign(r, labels)
        g = self.descriptor(r, labels).to(r.dtype)
        latent = self._latent(r, g, labels, generator)
        target = x if target is None else target
        reconstruction = -self.log_prob(latent.z, target).mean()
        return Output(
            reconstruction + latent.loss,
            reconstruction.detach(),
            latent.mmd,
            latent.margin,
            torch.zeros_like(latent.margin),
            latent.assignment,
            r.detach(),
            torch.full_like(r, self.sigma2),
        )

    def _latent(
        self, r: Tensor, g: Tensor, labels: Tensor | None, generator: torch.Generator | None
    ) -> CGMLossResult:
        if not self.maps_codes and not self.normalize and self.divergence.plain:
            return self.latent_loss(r, g, labels, generator=generator)
        # The margin loss acts on codes, the divergence on what the mapper makes of them.
        options = self.latent_loss
        pull, assignment = self._margin(r, g, labels)
        noise = torch.randn((2, *r.shape), device=r.device, dtype=r.dtype, generator=generator)
        tau2 = self.sigma2 if options.prior_sigma2 is None else options.prior_sigma2
        centres = assignment
        if self.divergence.prior_sampling == "iid":
            k = self.num_prototypes
            centres = torch.randint(k, assignment.shape, device=r.device, generator=generator)
        z = apply(self.mapper, r) + self.sigma2**0.5 * noise[0]
        prior = apply(self.mapper, g)[centres] + tau2**0.5 * noise[1]
        prior = prior.detach() if options.detach_prior else prior
        value = self.divergence(z, prior, assignment, self.num_prototypes)
        loss = options.mmd_weight * value + options.margin_weight * pull
        return CGMLossResult(loss, value.detach(), pull.detach(), assignment, z)

    def _margin(self, r: Tensor, g: Tensor, labels: Tensor | None) -> PrototypeMarginResult:
        """The margin loss of codes r [B, N] and prototypes g [K, N], and the nearest of these."""
        if self.normalize:
            r, g = nn.functional.normalize(r), nn.functional.normalize(g)
        options = self.latent_loss
        return prototype_margin(
            r,
            g,
            labels,
            margin=options.margin,
            negatives=options.negatives,
            backend=options.backend,
        )

    @torch.no_grad()
    def after_step(self, output: Output, decay: float = 0.99) -> None:
        """Update usage counts and running prototypes; to be called after each training step.

        Args:
            output: What `forward` returned for the step's batch.
            decay: Weight of the past in the running usage.
        """
        super().after_step(output, decay)
        counts = category_counts(output.assignment, self.num_prototypes)
        self.descriptor.update(output.r, output.assignment)
        self.idle_steps.add_(1).masked_fill_(counts > 0, 0)
        if not self.reseed_dead:
            return
        for k in (self.idle_steps >= self.reseed_dead).nonzero().flatten().tolist():
            chosen = torch.randint(len(output.r), (), device=output.r.device)
            self.descriptor.move(k, output.r[chosen].to(self.prototypes.dtype))
            self.idle_steps[k] = 0

    @torch.no_grad()
    def prior(self, mixing: str = "empirical") -> MixturePrior:
        """The prior to generate from: prototypes, component variance τ², mixing weights.

        Args:
            mixing: "empirical" (running usage of the categories) or "uniform".

        Raises:
            ValueError: `mixing` is neither.
        """
        check_choice("mixing", mixing, PRIORS)
        tau2 = self.latent_loss.prior_sigma2
        paper = MixturePrior.paper(
            apply(self.mapper, self.prototypes), self.sigma2 if tau2 is None else tau2
        )
        weights = paper.weights if mixing == "uniform" else share(self.usage, paper.means)
        return MixturePrior(paper.means, weights, paper.variances)

    @torch.no_grad()
    def fitted_priors(self, r: Tensor, noise: Tensor) -> dict[str, Mixture]:
        """Of each prototype's share of the codes; "fitted" keeps prototypes as means."""
        centres, mean = (apply(self.mapper, part) for part in (self.prototypes, r))
        own = self.assign(r)
        return {
            "fitted": MixturePrior.fitted(centres, mean, own, self.sigma2),
            "full": FullMixturePrior.fitted(centres, mean, own, noise),
        }

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"latent_dim={self.latent_dim}, num_prototypes={self.num_prototypes}, " + (
            f"sigma2={self.sigma2:g}"
        )
