"""CGM, figure 1 of the paper: encoder, descriptor, latent mapper, decoder, and their objective.

V. Abrol, P. Sharma, A. Patra, "Improving Generative Modelling in VAEs using Multimodal Prior",
IEEE Transactions on Multimedia, 2020. An image x is encoded to r = E(x); z = r + σe is decoded;
the prior is a mixture around K prototypes g_k. Eq. 6: L = L_E + λ·MMD²(z, z') + β·L_D with
z' = g_{k(x)} + τe' and k(x) the nearest prototype (CGM1) or the label (CGM2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cgm_fast import CGMLoss, CGMLossResult, PrototypeMarginResult, prototype_margin
from cgm_fast.cgm.models.base import LatentModel, Output
from cgm_fast.cgm.models.config import CGMConfig, decide
from cgm_fast.cgm.models.descriptor import Descriptor, category_counts, make_descriptor
from cgm_fast.cgm.models.divergence import Divergence
from cgm_fast.cgm.models.latent import UnitPower
from cgm_fast.cgm.models.options import own_parts
from cgm_fast.cgm.models.precision import apply, check_codes, codes_of, share
from cgm_fast.cgm.models.prior import PRIORS, FullMixturePrior, Mixture, MixturePrior
from cgm_fast.ops.checks import check_choice

Similarity = Callable[[Tensor, Tensor], Tensor]


def _cosine(r: Tensor, g: Tensor) -> Tensor:
    return nn.functional.normalize(r) @ nn.functional.normalize(g).T


def _dot(r: Tensor, g: Tensor) -> Tensor:
    return r @ g.T


SIMILARITIES: dict[str, Similarity] = {"cosine": _cosine, "dot": _dot}

# Options for which a user's own object may be given in place of a word.
OWN = ("likelihood", "descriptor", "assignment", "divergence")


class CGM(LatentModel):
    """An autoencoder whose prior is a mixture of K learned prototypes.

        CGM(encoder, decoder, num_prototypes=20, rate_bits=15)
        CGM(encoder, decoder, CGMConfig.of(latent_dim=10, num_prototypes=20, rate_bits=15))

    Args:
        encoder: Images [B, c, h, w] to [B, N] (further axes are flattened).
        decoder: Latents [B, N] to the likelihood's parameters, or an `AutoregressiveDecoder`.
        config: The options; None for those given by name.
        mapper: Applied to both codes and prototypes before the noise; None for the identity.
        **options: In place of config, options by name: those of `CGMConfig` and of its parts say
            what there is, and what is left out is as there. latent_dim is by default what the
            encoder says of itself (an attribute `latent_dim`, or a linear last layer), else 10.
            Beside a config or in place of a word, one's own: a `Likelihood` as likelihood, a
            `Descriptor` as descriptor, as assignment a similarity of r [B, N] and g [K, N] to
            [B, K], as divergence a function of encoded and prior samples, both [B, N], to [].

    Raises:
        TypeError: an option is unknown, or is given beside a config.
        ValueError: an option is out of range, both sigma2 and rate_bits are given, or an option
            does not go with another (see `config.check_divergence`).
    """

    idle_steps: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        config: CGMConfig | None = None,
        *,
        mapper: nn.Module | None = None,
        **options: Any,
    ) -> None:
        own = own_parts(options, OWN)
        config = decide(CGMConfig, config, options, codes_of(encoder))
        latent_dim, k = config.latent_dim, config.prototypes.num_prototypes
        super().__init__(decoder, latent_dim, k, own.get("likelihood", config.likelihood))
        self.config = config
        self.sigma2 = config.noise.sigma2
        self.similarity: Similarity | None = own.get(
            "assignment", SIMILARITIES.get(config.prototypes.assignment)
        )
        self.divergence = Divergence(config.mmd, config.backend, own.get("divergence"))
        self.encoder = encoder
        unit = config.noise.power == "unit"
        self.head = UnitPower(latent_dim, self.sigma2) if unit else nn.Identity()
        self.mapper = nn.Identity() if mapper is None else mapper
        self.maps_codes = not isinstance(self.mapper, nn.Identity)
        loss = config.margin_loss
        if "descriptor" in own:
            self.descriptor: Descriptor = own["descriptor"]
        else:
            self.descriptor = make_descriptor(config.prototypes.descriptor, k, latent_dim)
            if loss.margin > 1:
                # Xavier's prototypes are two margins of 1 apart, in squares, where N = K. Closer
                # than a margin they would have to be pushed apart first, and every code with them.
                with torch.no_grad():
                    self.prototypes.mul_(loss.margin**0.5)
        if list(self.prototypes.shape) != [k, latent_dim]:
            raise ValueError(
                f"the descriptor's prototypes must be [{k}, {latent_dim}], got "
                f"{list(self.prototypes.shape)}"
            )
        self.latent_loss = CGMLoss(
            config.noise.sigma2,
            prior_sigma2=config.noise.prior_sigma2,
            mmd_weight=config.mmd.mmd_weight,
            margin_weight=loss.margin_weight,
            margin=loss.margin,
            bandwidth=config.mmd.bandwidth,
            negatives=loss.negatives,
            detach_prior=config.mmd.detach_prior,
            backend=config.backend,
        )
        # For how many steps each category has not occurred.
        self.register_buffer("idle_steps", torch.zeros(k, dtype=torch.int64))

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
        config, options = self.config, self.latent_loss
        if not self.maps_codes and not config.margin_loss.normalize and self.divergence.plain:
            return options(r, g, labels, generator=generator)
        # The margin loss acts on codes, the divergence on what the mapper makes of them.
        pull, assignment = self._margin(r, g, labels)
        noise = torch.randn((2, *r.shape), device=r.device, dtype=r.dtype, generator=generator)
        centres = assignment
        if config.mmd.prior_sampling == "iid":
            k = self.num_prototypes
            centres = torch.randint(k, assignment.shape, device=r.device, generator=generator)
        z = apply(self.mapper, r) + self.sigma2**0.5 * noise[0]
        prior = apply(self.mapper, g)[centres] + config.noise.prior_sigma2**0.5 * noise[1]
        prior = prior.detach() if options.detach_prior else prior
        value = self.divergence(z, prior, assignment, self.num_prototypes)
        loss = options.mmd_weight * value + options.margin_weight * pull
        return CGMLossResult(loss, value.detach(), pull.detach(), assignment, z)

    def _margin(self, r: Tensor, g: Tensor, labels: Tensor | None) -> PrototypeMarginResult:
        """The margin loss of codes r [B, N] and prototypes g [K, N], and the nearest of these."""
        if self.config.margin_loss.normalize:
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
        after = self.config.prototypes.reseed_dead
        if not after:
            return
        for k in (self.idle_steps >= after).nonzero().flatten().tolist():
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
        paper = MixturePrior.paper(
            apply(self.mapper, self.prototypes), self.config.noise.prior_sigma2
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
