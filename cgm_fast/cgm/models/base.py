"""What every model here is: an encoder, noise of some variance, a decoder, a prior, a loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cgm_fast.cgm.models.descriptor import category_counts
from cgm_fast.cgm.models.likelihoods import Likelihood, make_likelihood
from cgm_fast.cgm.models.networks.autoregressive import AutoregressiveDecoder
from cgm_fast.cgm.models.precision import RunningMeans, apply, own_dtype, share, widened
from cgm_fast.cgm.models.prior import Mixture, MixturePrior


class Output(NamedTuple):
    """One batch through a model. Losses are means over the batch, in nats where they can be."""

    loss: Tensor
    """[], reconstruction + λ·mmd + β·margin + kl."""
    reconstruction: Tensor
    """[], L_E = −log p(x given z), summed over pixels; detached."""
    mmd: Tensor
    """[], MMD² without λ, 0 for a model without it; detached."""
    margin: Tensor
    """[], L_D without β, 0 for a model without it; detached."""
    kl: Tensor
    """[], KL(q(z given x), p(z)), 0 for a model without it; detached."""
    assignment: Tensor
    """[B], each image's category."""
    r: Tensor
    """[B, N], the encoder's means; detached."""
    variance: Tensor
    """[B, N], of q(z given x); detached."""


class LatentModel(RunningMeans):
    """Interface of a model, and what all share.

    Images and latents may have any floating dtype; codes, parameters of likelihoods and losses are
    float32, or float64 if the networks are.

    A subclass has `forward(x, labels, target, generator) -> Output`, `posterior` and `prior`.

    Args:
        decoder: Latents [B, N] to the likelihood's parameters, or an `AutoregressiveDecoder`, which
            sees the image too.
        latent_dim: N.
        categories: K, how many components the prior has; 1 for a plain one.
        likelihood: A name of `likelihoods.LIKELIHOODS`, or a `Likelihood`.

    Raises:
        ValueError: no likelihood has this name.
    """

    usage: Tensor
    running = ("usage",)
    sees_labels = False
    """Whether encoder and decoder need each image's label."""
    maps_codes = False
    """Whether the mean of q(z given x) is something else than the code r."""

    def __init__(
        self, decoder: nn.Module, latent_dim: int, categories: int, likelihood: str | Likelihood
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.num_prototypes = categories
        self.decoder = decoder
        self.likelihood = make_likelihood(likelihood) if isinstance(likelihood, str) else likelihood
        # How often each category occurs, as a running mean.
        self.register_buffer("usage", torch.full((categories,), 1.0 / categories))

    @property
    def weights(self) -> tuple[float, float]:
        """(λ, β), of `Output.mmd` and `Output.margin` in the loss."""
        return 0.0, 0.0

    @property
    def prototypes(self) -> Tensor:
        """The prior's centres [K, N], as they are between batches."""
        raise NotImplementedError

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The codes r [B, N] of images x [B, c, h, w], float32 or float64 under autocast too."""
        raise NotImplementedError

    def posterior(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean [B, N] and variance [B, N] of q(z given x), a Gaussian of independent parts."""
        raise NotImplementedError

    def prior(self, mixing: str = "empirical") -> MixturePrior:
        """The prior p(z) to generate from, with the categories' shares or "uniform" weights."""
        raise NotImplementedError

    def fitted_priors(self, r: Tensor, noise: Tensor) -> dict[str, Mixture]:
        """Priors with the same categories, fitted to training data.

        Args:
            r: [n, N], its codes.
            noise: [N], mean variance of q(z given x).

        Returns:
            "full": weights, means and covariances of the categories' latents. "fitted", where
            categories have centres of their own: these, with weights and one variance each.
        """
        raise NotImplementedError

    def assign(self, r: Tensor, labels: Tensor | None = None) -> Tensor:
        """The categories [B] of codes r [B, N]: the labels if given, else the nearest."""
        return r.new_zeros(len(r), dtype=torch.int64) if labels is None else labels

    def decode(self, z: Tensor, x: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """The likelihood's parameters for latents z [B, N], float32 or float64.

        Args:
            z: Latents.
            x: [B, c, h, w] images, for a decoder that is autoregressive.
            labels: [B], for a decoder that sees them.

        Raises:
            ValueError: the decoder is autoregressive, and there is no x.
        """
        z = self.decoder_input(z, labels)
        if isinstance(self.decoder, AutoregressiveDecoder):
            if x is None:
                raise ValueError("an autoregressive decoder needs x beside z")
            return apply(self.decoder, z, x)
        return apply(self.decoder, z)

    def decoder_input(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """What the decoder gets for latents z [B, N]: these, unless it sees labels too."""
        return z

    def log_prob(self, z: Tensor, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(x given z) of images x [B, c, h, w] in nats, [B]."""
        params = self.decode(z, x, labels)
        return self.likelihood.log_prob(params, x.to(params.dtype))

    @torch.no_grad()
    def image(
        self,
        z: Tensor,
        generator: torch.Generator | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Images [B, c, h, w] in [0, 1] for latents z [B, N].

        They are expected ones; drawn pixel by pixel where the decoder is autoregressive, which has
        no other.
        """
        if not isinstance(self.decoder, AutoregressiveDecoder):
            return self.likelihood.mean(self.decode(z, labels=labels))
        z = widened(self.decoder_input(z, labels))
        x = z.new_zeros(len(z), *self.decoder.image_shape)
        context = self.decoder.context(own_dtype(self.decoder, z))
        for i in range(x.shape[2]):
            rows = (slice(None), slice(None), slice(i + 1))  # no pixel sees what is below it
            for j in range(x.shape[3]):
                pixel = (slice(None), slice(None), slice(i, i + 1), slice(j, j + 1))
                params = self.decoder.predict(context[rows], own_dtype(self.decoder, x[rows]))
                x[pixel] = self.likelihood.sample(widened(params[pixel]), generator)
        return x

    @torch.no_grad()
    def generate(
        self,
        count: int,
        *,
        category: int | None = None,
        mixing: str = "empirical",
        prior: Mixture | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images from the prior.

        Args:
            count: How many.
            category: The component to sample around; None for one drawn by weight each time.
            mixing: Weights for that, "empirical" or "uniform".
            prior: In place of the model's own, such as a fitted one.
            generator: On the model's device; None for torch's own.

        Returns:
            Images [count, c, h, w] in [0, 1] and their categories [count].

        Raises:
            ValueError: no such category or mixing.
        """
        prior = self.prior(mixing) if prior is None else prior
        z, chosen = prior.sample(count, category, generator)
        return self.image(z, generator, chosen if self.sees_labels else None), chosen

    @torch.no_grad()
    def reconstruct(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        noise: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Images for the codes of x [B, c, h, w], with the encoder's noise or without."""
        z, variance = self.posterior(x, labels)
        if noise:
            draw = torch.randn(z.shape, device=z.device, dtype=z.dtype, generator=generator)
            z = z + variance.sqrt() * draw
        return self.image(z, generator, labels)

    @torch.no_grad()
    def after_step(self, output: Output, decay: float = 0.99) -> None:
        """Update what the model counts; to be called after each training step.

        Args:
            output: What `forward` returned for the step's batch.
            decay: Weight of the past in the running usage.
        """
        counts = category_counts(output.assignment, self.num_prototypes)
        self.usage.lerp_(share(counts, self.usage), 1 - decay)
