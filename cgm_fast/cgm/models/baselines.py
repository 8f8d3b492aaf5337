"""The models that the paper compares with, on the same networks: VAE, CVAE, InfoVAE, BIR-VAE.

Kingma, Welling, "Auto-encoding variational Bayes", ICLR 2014. Sohn, Lee, Yan, "Learning structured
output representation using deep conditional generative models", NIPS 2015. Zhao, Song, Ermon,
"InfoVAE: balancing learning and inference in variational autoencoders", AAAI 2019. Braithwaite,
Kleijn, "Bounded information rate variational autoencoders", 2018. All have the prior N(0, I).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cgm_fast import mmd
from cgm_fast.cgm.models.base import LatentModel, Output
from cgm_fast.cgm.models.config import VAEConfig, decide
from cgm_fast.cgm.models.options import own_parts
from cgm_fast.cgm.models.precision import apply, check_codes, codes_of
from cgm_fast.cgm.models.prior import PRIORS, FullMixturePrior, Mixture, MixturePrior
from cgm_fast.ops.checks import check_choice


class VAE(LatentModel):
    """L_E + KL(q(z given x), N(0, I)), q with a learned variance; the parts of the others too.

    Args:
        encoder: Images [B, c, h, w] to [B, 2 N]: means and log-variances; [B, N] with a fixed
            variance; with `classes`, images have that many channels more.
        decoder: Latents [B, N] to the likelihood's parameters; with `classes`, [B, N + classes].
        config: The options; None for those given by name.
        **options: In place of config, options of `VAEConfig` by name; what is left out is as there.
            latent_dim is by default what the encoder says of itself, else 10. likelihood may be a
            `Likelihood`, also beside a config.

    Raises:
        TypeError: an option is unknown, or is given beside a config.
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        config: VAEConfig | None = None,
        **options: Any,
    ) -> None:
        own = own_parts(options, ("likelihood",))
        fixed = (config.sigma2 if config is not None else options.get("sigma2")) is not None
        per_dimension = 1 if fixed else 2
        known = codes_of(encoder)
        if known is not None and known % per_dimension:
            raise ValueError(
                f"encoder must return a mean and a log-variance for each dimension, got {known} "
                "numbers"
            )
        known = None if known is None else known // per_dimension
        config = decide(VAEConfig, config, options, known)
        likelihood = own.get("likelihood", config.likelihood)
        super().__init__(decoder, config.latent_dim, max(config.classes, 1), likelihood)
        self.config = config
        self.sees_labels = config.classes > 0
        self.encoder = encoder
        self.sigma2 = config.sigma2
        self.kl_weight, self.mmd_weight = config.kl_weight, config.mmd.mmd_weight

    @property
    def weights(self) -> tuple[float, float]:
        """(λ, 0)."""
        return self.mmd_weight, 0.0

    @property
    def prototypes(self) -> Tensor:
        """The prior's centre [1, N], the origin; [classes, N] of them for a CVAE."""
        return self.usage.new_zeros(self.num_prototypes, self.latent_dim)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The means [B, N] of q(z given x)."""
        return self.posterior(x, labels)[0]

    def posterior(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and variance [B, N] of q(z given x), or q(z given x, label)."""
        if self.config.classes:
            one_hot = self._one_hot(labels).to(x.dtype)
            x = torch.cat((x, one_hot[:, :, None, None].expand(-1, -1, *x.shape[2:])), 1)
        found = apply(self.encoder, x).flatten(1)
        check_codes(found, self.latent_dim, self.latent_dim * (2 if self.sigma2 is None else 1))
        if self.sigma2 is not None:
            return found, torch.full_like(found, self.sigma2)
        mean, log_variance = found.chunk(2, 1)
        return mean, log_variance.clamp(-20, 10).exp()

    def decoder_input(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """z, and a CVAE's labels as [B, classes] ones and zeros."""
        if not self.config.classes:
            return z
        return torch.cat((z, self._one_hot(labels).to(z.dtype)), 1)

    def _one_hot(self, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("a CVAE needs labels, got none")
        return nn.functional.one_hot(labels, self.config.classes)

    def forward(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        target: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Output:
        """The objective of one batch.

        Args:
            x: [B, c, h, w] images in [0, 1], what the encoder sees.
            labels: [B] in [0, classes), for a CVAE; others do not look at them.
            target: [B, c, h, w], what the decoder must explain; None for x itself.
            generator: For the noise; None for torch's own.
        """
        mean, variance = self.posterior(x, labels)
        noise = torch.randn(
            (2, *mean.shape), device=mean.device, dtype=mean.dtype, generator=generator
        )
        z = mean + variance.sqrt() * noise[0]
        target = x if target is None else target
        reconstruction = -self.log_prob(z, target, labels).mean()
        zero = reconstruction.new_zeros(())
        kl = value = zero
        if self.kl_weight:
            kl = 0.5 * (mean.square() + variance - variance.log() - 1).sum(1).mean()
        if self.mmd_weight:
            value = mmd(
                z, noise[1], bandwidth=self.config.mmd.bandwidth, backend=self.config.backend
            )
        return Output(
            reconstruction + self.kl_weight * kl + self.mmd_weight * value,
            reconstruction.detach(),
            value.detach(),
            zero,
            kl.detach(),
            self.assign(mean, labels if self.config.classes else None),
            mean.detach(),
            variance.detach(),
        )

    @torch.no_grad()
    def prior(self, mixing: str = "empirical") -> MixturePrior:
        """N(0, I); a CVAE's is one of as many components as classes, which all are that."""
        check_choice("mixing", mixing, PRIORS)
        ones = torch.ones_like(self.usage)
        weights = ones / len(ones) if mixing == "uniform" else self.usage / self.usage.sum()
        return MixturePrior(self.prototypes, weights, ones)

    @torch.no_grad()
    def fitted_priors(self, r: Tensor, noise: Tensor) -> dict[str, Mixture]:
        """One Gaussian, whatever the classes: nothing else was asked of the codes."""
        one = torch.zeros(len(r), dtype=torch.int64, device=r.device)
        return {"full": FullMixturePrior.fitted(self.prototypes[:1], r, one, noise)}

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        variance = "learned" if self.sigma2 is None else f"{self.sigma2:g}"
        return f"latent_dim={self.latent_dim}, sigma2={variance}, mmd_weight={self.mmd_weight:g}"
