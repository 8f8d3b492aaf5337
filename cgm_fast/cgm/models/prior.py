"""The mixture prior p(z) = Σ_k π_k N(z; g_k, Σ_k): density, sampling, and its fit to a code."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

PRIORS = ("uniform", "empirical")
"""Weights to generate by: all alike, or the categories' shares of the training images."""


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians; subclasses have their covariances.

    Attributes:
        means: [K, N].
        weights: [K], π, sum to one; 0 leaves a component out.
    """

    means: Tensor
    weights: Tensor

    def to(self, dtype: torch.dtype) -> Mixture:
        """The same prior in another dtype."""
        return type(self)(*(getattr(self, field.name).to(dtype) for field in fields(self)))

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) of z [..., N]: [...], nats."""
        return torch.logsumexp(self._log_joint(z), -1)

    def log_prob_of_each(self, z: Tensor) -> Tensor:
        """log p(z given k) of z [..., N]: [..., K], nats."""
        # Plain differences: clusters are narrow beside their distances from the origin.
        return self._log_density(z.unsqueeze(-2) - self.means)

    def precision(self, z: Tensor) -> Tensor:
        """Mean precision [..., N, N] of the components that z [..., N] may be of.

        −∇² log p(z), less what the components' distances add, so that it is positive definite.
        """
        return self._mean_precision(self._log_joint(z).softmax(-1))

    def widest(self) -> float:
        """The largest variance of a component along any direction."""
        raise NotImplementedError

    def _log_joint(self, z: Tensor) -> Tensor:
        """log p(z, k), [..., K]."""
        return self.weights.log() + self.log_prob_of_each(z)

    def _log_density(self, offset: Tensor) -> Tensor:
        """log N(offset; 0, Σ_k) of offsets [..., K, N] from the means: [..., K]."""
        raise NotImplementedError

    def _mean_precision(self, share: Tensor) -> Tensor:
        """Σ_k share_k Σ_k⁻¹ of shares [..., K]: [..., N, N]."""
        raise NotImplementedError

    def _spread(self, noise: Tensor, chosen: Tensor) -> Tensor:
        """Standard noise [n, N] with the covariances of components [n]."""
        raise NotImplementedError

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
        return self.means[chosen] + self._spread(noise, chosen), chosen


@dataclass(frozen=True)
class MixturePrior(Mixture):
    """A mixture of isotropic Gaussians.

    Attributes:
        means: [K, N].
        weights: [K], π, sum to one; 0 leaves a component out.
        variances: [K], τ².
    """

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

    def widest(self) -> float:
        """The largest τ² of a component that occurs."""
        return float(self.variances[self.weights > 0].max())

    def _log_density(self, offset: Tensor) -> Tensor:
        constant = 0.5 * offset.shape[-1] * torch.log(2 * math.pi * self.variances)
        return -0.5 * offset.square().sum(-1) / self.variances - constant

    def _mean_precision(self, share: Tensor) -> Tensor:
        eye = torch.eye(self.means.shape[1], device=share.device, dtype=share.dtype)
        return (share / self.variances).sum(-1)[..., None, None] * eye

    def _spread(self, noise: Tensor, chosen: Tensor) -> Tensor:
        return self.variances[chosen].sqrt().unsqueeze(1) * noise


@dataclass(frozen=True)
class FullMixturePrior(Mixture):
    """A mixture of Gaussians with covariances of their own.

    Attributes:
        means: [K, N].
        weights: [K], π, sum to one; 0 leaves a component out.
        factors: [K, N, N], lower Cholesky factors of the covariances.
    """

    factors: Tensor

    @staticmethod
    def fitted(
        prototypes: Tensor, r: Tensor, assignment: Tensor, noise: Tensor
    ) -> FullMixturePrior:
        """Weights, means and covariances by moments of the codes of training data.

        Args:
            prototypes: [K, N], the means of categories without a code.
            r: [n, N] encoder means of the training data.
            assignment: [n] the category of each.
            noise: [N] variance of the encoder's noise, which adds to that of the means.
        """
        k = len(prototypes)
        means, factors = prototypes.double().clone(), []
        diagonal = torch.diag(noise.double())
        for j in range(k):
            own = r[assignment == j].double()
            if len(own):
                means[j] = own.mean(0)
            offset = own - means[j]
            factors.append(torch.linalg.cholesky(offset.T @ offset / max(len(own), 1) + diagonal))
        counts = torch.bincount(assignment, minlength=k).double()
        parts = means, counts / counts.sum(), torch.stack(factors)
        return FullMixturePrior(*(part.to(r.dtype) for part in parts))

    def widest(self) -> float:
        """The largest eigenvalue of a covariance of a component that occurs."""
        return float(torch.linalg.matrix_norm(self.factors[self.weights > 0], 2).max()) ** 2

    def _log_density(self, offset: Tensor) -> Tensor:
        white = torch.einsum("kij,...kj->...ki", self._inverses, offset)
        log_factor = self.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = log_factor + 0.5 * offset.shape[-1] * math.log(2 * math.pi)
        return -0.5 * white.square().sum(-1) - constant

    def _mean_precision(self, share: Tensor) -> Tensor:
        return torch.einsum("...k,kij->...ij", share, self._inverses.mT @ self._inverses)

    @cached_property
    def _inverses(self) -> Tensor:
        eye = torch.eye(self.means.shape[1], device=self.means.device, dtype=self.means.dtype)
        return torch.linalg.solve_triangular(self.factors, eye.expand_as(self.factors), upper=False)

    def _spread(self, noise: Tensor, chosen: Tensor) -> Tensor:
        return (self.factors[chosen] @ noise.unsqueeze(-1)).squeeze(-1)
