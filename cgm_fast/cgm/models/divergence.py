"""The term L_M of eq. 6: how far encoded samples are from the prior's, and its other readings.

The paper's is MMD² of all samples of a batch (eq. 5), which `cgm_loss` computes with the rest in
one pass. What else the text allows, or its sources do, is put together here from public functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from cgm_fast import mmd
from cgm_fast.cgm.models.config import DivergenceConfig, check_divergence

OfSamples = Callable[[Tensor, Tensor], Tensor]

ROOT = 1e-6  # added to MMD² under a root, whose slope at 0 would be infinite


@dataclass(frozen=True)
class Divergence:
    """How far samples are from each other, without λ.

    Attributes:
        config: "mmd2" (eq. 5), "mmd" (its root), "energy" (the energy distance: twice the mean
            distance between encoded and prior samples, less those within each); conditional is
            Σ_k (n_k / B) MMD² of each category's own samples, at least as large as that of all.
        backend: Implementation of the MMD, "auto" or a name.
        own: In place of the config's, a function of both samples, [B, N], to [].

    Raises:
        ValueError: an option does not go with a function of one's own.
    """

    config: DivergenceConfig[NoReturn]
    backend: str = "auto"
    own: OfSamples | None = None

    def __post_init__(self) -> None:
        if self.own is not None:
            check_divergence(self.config, "own")

    @property
    def plain(self) -> bool:
        """Whether it is the paper's, which `cgm_loss` computes."""
        given = self.config
        mmd2 = given.divergence == "mmd2" and self.own is None
        return mmd2 and given.prior_sampling == "assigned" and not given.conditional

    def __call__(self, z: Tensor, prior: Tensor, categories: Tensor, k: int) -> Tensor:
        """Of encoded and prior samples, both [B, N], of categories [B] in [0, k): []."""
        if self.own is not None:
            return self.own(z, prior)
        given = self.config
        if given.divergence == "energy":
            return (
                _mean_distance(z, prior) * 2 - _mean_distance(z, z) - _mean_distance(prior, prior)
            )
        if given.conditional:
            return self._conditional(z, prior, categories, k)
        value = mmd(
            z, prior, bandwidth=given.bandwidth, estimator=given.estimator, backend=self.backend
        )
        return value if given.divergence == "mmd2" else (value.clamp_min(0) + ROOT).sqrt()

    def _conditional(self, z: Tensor, prior: Tensor, categories: Tensor, k: int) -> Tensor:
        member = torch.nn.functional.one_hot(categories, k).T.to(z.dtype)  # [k, B]
        counts = member.sum(1, keepdim=True)
        # A category without a sample has no share; its own weights only have to be finite.
        weights = member / counts.clamp_min(1)
        x, y = (part.expand(k, *part.shape) for part in (z, prior))
        of_each = mmd(
            x, y, bandwidth=self.config.bandwidth, x_weights=weights, y_weights=weights,
            backend=self.backend,
        )  # fmt: skip
        return (counts.squeeze(1) / len(z) * of_each).sum()


def _mean_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean of |a_i − b_j| by differences: by products, coincident points would be apart."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").mean()
