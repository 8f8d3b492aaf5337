"""The mixture prior p(z) = Σ_k π_k N(z; g_k, τ_k² I): density, sampling, and its fit to a code."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PRIORS = ("uniform", "empirical")
"""Weights to generate by: all alike, or the categories' shares of the training images."""


@dataclass(frozen=True)
class MixturePrior:
    """A mixture of isotropic Gaussians.

    Attributes:
        means: [K, N].
        weights: [K], π, sum to one; 0 leaves a component out.
        variances: [K], τ².
    """

    means: Tensor
    weights: Tensor
    variances: Tensor

    @staticmethod
    def paper(prototypes: Tensor, sigma2: float) -> MixturePrior:
        """The paper's prior: uniform weights, and τ² = σ² for every component."""
        ones = torch.ones_like(prototypes[:, 0])
        return MixturePrior(prototypes, ones / len(ones), sigma2 * ones)

    @staticmethod
    def fitted(prototypes: Tensor, r: Tensor, assignment: Tensor, sigma2: float) -> MixturePrior:
        """Weights and variances by moments of the codes of training data.

        Args:
            prototypes: [K, N], kept as the means.
            r: [n, N] encoder means of the training data.
            assignment: [n] the prototype of each.
            sigma2: Variance of the encoder's noise, which adds to the spread of the means.
        """
        k, latent_dim = prototypes.shape
        counts = torch.bincount(assignment, minlength=k).to(r.dtype)
        squares = (r - prototypes[assignment]).square().sum(1)
        spread = r.new_zeros(k).index_add_(0, assignment, squares)
        variances = spread / (counts.clamp_min(1) * latent_dim) + sigma2
        return MixturePrior(prototypes, counts / counts.sum(), variances)

    def to(self, dtype: torch.dtype) -> MixturePrior:
        """The same prior in another dtype."""
        return MixturePrior(self.means.to(dtype), self.weights.to(dtype), self.variances.to(dtype))

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) of z [..., N]: [...], nats."""
        # Plain differences: clusters are narrow beside their distances from the origin.
        squares = (z.unsqueeze(-2) - self.means).square().sum(-1)
        latent_dim = self.means.shape[1]
        log_density = -0.5 * squares / self.variances - 0.5 * latent_dim * torch.log(
            2 * math.pi * self.variances
        )
        return torch.logsumexp(self.weights.log() + log_density, -1)

    def sample(
        self,
        count: int,
        category: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw latents.

        Args:
            count: How many.
            category: The component to draw from; None for one drawn by the weights each time.
            generator: On the means' device; None for torch's own.

        Returns:
            z [count, N] and the components [count].

        Raises:
            ValueError: no such category.
        """
        k, latent_dim = self.means.shape
        if category is None:
            chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        else:
            if not 0 <= category < k:
                raise ValueError(f"category must lie in [0, {k}), got {category}")
            chosen = torch.full((count,), category, device=self.means.device)
        noise = torch.randn(
            count, latent_dim, device=self.means.device, dtype=self.means.dtype, generator=generator
        )
        return self.means[chosen] + self.variances[chosen].sqrt().unsqueeze(1) * noise, chosen
