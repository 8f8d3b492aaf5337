"""The term L_M of eq. 6: how far encoded samples are from the prior's, and its other readings.

The paper's is MMD² of all samples of a batch (eq. 5), which `cgm_loss` computes with the rest in
one pass. What else the text allows, or its sources do, is put together here from public functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cgm_fast import mmd
from cgm_fast.ops.checks import check_choice

OfSamples = Callable[[Tensor, Tensor], Tensor]

DIVERGENCES = ("mmd2", "mmd", "energy")
SAMPLINGS = ("assigned", "iid")
ESTIMATORS = ("biased", "unbiased")
ROOT = 1e-6  # added to MMD² under a root, whose slope at 0 would be infinite


@dataclass(frozen=True)
class Divergence:
    """How far samples are from each other.

    Attributes:
        kind: "mmd2" (eq. 5), "mmd" (its root; λ is then of another scale), "energy" (the energy
            distance: twice the mean distance between encoded and prior samples, less those within
            each), or a function of both, [B, N], to [].
        prior_sampling: A prior sample is drawn around the prototype of its image ("assigned"), or
            around any at random ("iid").
        estimator: "biased" or "unbiased"; assigned samples are no draws of the prior's own, and
            the latter would be biased with them.
        conditional: Σ_k (n_k / B) MMD² of each category's own samples: at least as large as that of
            all together.
        bandwidth: Of the MMD's kernel.
        backend: Implementation of the MMD, "auto" or a name.

    Raises:
        ValueError: an option is unknown, or does not go with another.
    """

    kind: str | OfSamples = "mmd2"
    prior_sampling: str = "assigned"
    estimator: str = "biased"
    conditional: bool = False
    bandwidth: str | float | Sequence[float] = "paper"
    backend: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.kind, str):
            check_choice("divergence", self.kind, DIVERGENCES)
        check_choice("prior_sampling", self.prior_sampling, SAMPLINGS)
        check_choice("estimator", self.estimator, ESTIMATORS)
        if self.estimator == "unbiased" and self.prior_sampling != "iid":
            raise ValueError("estimator must be biased unless prior_sampling is iid, got unbiased")
        if self.estimator == "unbiased" and self.kind != "mmd2":
            raise ValueError("estimator must be biased unless divergence is mmd2, got unbiased")
        if self.conditional and (self.kind != "mmd2" or self.prior_sampling != "assigned"):
            raise ValueError(
                "conditional must be left out unless divergence is mmd2 and prior_sampling assigned"
            )

    @property
    def plain(self) -> bool:
        """Whether it is the paper's, which `cgm_loss` computes."""
        return self.kind == "mmd2" and self.prior_sampling == "assigned" and not self.conditional

    def __call__(self, z: Tensor, prior: Tensor, categories: Tensor, k: int) -> Tensor:
        """Of encoded and prior samples, both [B, N], of categories [B] in [0, k): []."""
        if not isinstance(self.kind, str):
            return self.kind(z, prior)
        if self.kind == "energy":
            return (
                _mean_distance(z, prior) * 2 - _mean_distance(z, z) - _mean_distance(prior, prior)
            )
        if self.conditional:
            return self._conditional(z, prior, categories, k)
        value = mmd(
            z, prior, bandwidth=self.bandwidth, estimator=self.estimator, backend=self.backend
        )
        return value if self.kind == "mmd2" else (value.clamp_min(0) + ROOT).sqrt()

    def _conditional(self, z: Tensor, prior: Tensor, categories: Tensor, k: int) -> Tensor:
        member = torch.nn.functional.one_hot(categories, k).T.to(z.dtype)  # [k, B]
        counts = member.sum(1, keepdim=True)
        # A category without a sample has no share; its own weights only have to be finite.
        weights = member / counts.clamp_min(1)
        x, y = (part.expand(k, *part.shape) for part in (z, prior))
        of_each = mmd(
            x, y, bandwidth=self.bandwidth, x_weights=weights, y_weights=weights,
            backend=self.backend,
        )  # fmt: skip
        return (counts.squeeze(1) / len(z) * of_each).sum()


def _mean_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean of |a_i − b_j| by differences: by products, coincident points would be apart."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").mean()
