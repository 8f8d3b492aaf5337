"""The descriptor: where the K prototypes g_k come from (section II-D(2) of the paper).

"learned" prototypes are parameters, moved by the losses. "ema" ones are running means of their
category's codes. "batch_mean" ones are the mean of the batch's codes, through which gradients
flow; "attention" weighs that mean by a learned score. A category absent from a batch keeps its
running mean.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cgm_fast import prototype_margin
from cgm_fast.cgm.models.precision import RunningMeans, apply, widened

DESCRIPTORS = ("learned", "ema", "batch_mean", "attention")


class Descriptor(nn.Module):
    """Interface of a descriptor, and what all share: a tensor of K prototypes of N numbers.

    A replacement has `prototypes` [K, N], `forward(r, labels)` that returns the prototypes for a
    batch, and `update(r, assignment)`, called once after each training step.
    """

    prototypes: Tensor

    def forward(self, r: Tensor, labels: Tensor | None) -> Tensor:
        """Prototypes [K, N] for a batch of codes r [B, N] with labels [B] or none."""
        return self.prototypes

    @torch.no_grad()
    def update(self, r: Tensor, assignment: Tensor) -> None:
        """Learn from a batch's codes r [B, N] and the prototypes they were given, [B]."""

    @torch.no_grad()
    def move(self, k: int, position: Tensor) -> None:
        """Put prototype k at `position` [N] (initialisation, reseeding)."""
        self.prototypes[k].copy_(position)


def _xavier(num_prototypes: int, latent_dim: int) -> Tensor:
    return nn.init.xavier_normal_(torch.empty(num_prototypes, latent_dim))


class LearnedDescriptor(Descriptor):
    """Prototypes as parameters, Xavier normal at first."""

    def __init__(self, num_prototypes: int, latent_dim: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(_xavier(num_prototypes, latent_dim))


class EMADescriptor(RunningMeans, Descriptor):
    """Prototypes as exponential moving averages of their categories' codes.

    Args:
        num_prototypes: K.
        latent_dim: N.
        decay: Weight of the past, per batch in which the category occurs.
    """

    running = ("prototypes",)

    def __init__(self, num_prototypes: int, latent_dim: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("prototypes", _xavier(num_prototypes, latent_dim))

    @torch.no_grad()
    def update(self, r: Tensor, assignment: Tensor) -> None:
        """Move each category that occurs towards the mean of its codes."""
        means, counts = category_means(
            r.to(self.prototypes.dtype), assignment, len(self.prototypes)
        )
        rate = ((1 - self.decay) * (counts > 0)).unsqueeze(1)
        self.prototypes.lerp_(means, rate.to(self.prototypes.dtype))


class BatchMeanDescriptor(EMADescriptor):
    """Prototypes as the mean of the batch's codes per category, in training.

    Without labels, a code's category is that of the nearest running prototype.
    """

    def forward(self, r: Tensor, labels: Tensor | None) -> Tensor:
        """Means over the batch where a category occurs, running means elsewhere, [K, N]."""
        if not self.training:
            return self.prototypes
        r = widened(r)
        running = self.prototypes.to(r.dtype)
        if labels is None:
            labels = prototype_margin(r.detach(), running).assignment
        means, counts = self.pool(r, labels)
        return torch.where((counts > 0).unsqueeze(1), means, running)

    def pool(self, r: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Per category, one vector for its codes [K, N], and their number [K]."""
        return category_means(r, labels, len(self.prototypes))


class AttentionDescriptor(BatchMeanDescriptor):
    """As `BatchMeanDescriptor`, with each code weighed by a learned score.

    A linear score per code, softmax within the category; at first all scores are equal, so it
    starts as the mean.
    """

    def __init__(self, num_prototypes: int, latent_dim: int, decay: float = 0.99) -> None:
        super().__init__(num_prototypes, latent_dim, decay)
        self.score = nn.Linear(latent_dim, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def pool(self, r: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Attention-weighted mean per category, and the number of its codes."""
        k = len(self.prototypes)
        scores = apply(self.score, r).squeeze(1)
        highest = scores.new_zeros(k).scatter_reduce(
            0, labels, scores.detach(), "amax", include_self=False
        )
        weights = (scores - highest[labels]).exp()  # the highest of a category weighs 1
        total = weights.new_zeros(k).index_add(0, labels, weights)
        summed = r.new_zeros(k, r.shape[1]).index_add(0, labels, weights.unsqueeze(1) * r)
        return summed / total.clamp_min(1).unsqueeze(1), category_counts(labels, k)


def category_counts(categories: Tensor, k: int) -> Tensor:
    """How many of categories [B] are each of k, [k]; bincount would wait for a GPU."""
    return categories.new_zeros(k).scatter_add_(0, categories, torch.ones_like(categories))


def category_means(r: Tensor, categories: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Mean of the rows of r [B, N] in each of k categories [k, N], and their number [k]."""
    counts = category_counts(categories, k)
    summed = r.new_zeros(k, r.shape[1]).index_add(0, categories, r)
    return summed / counts.clamp_min(1).unsqueeze(1).to(r.dtype), counts


def make_descriptor(name: str, num_prototypes: int, latent_dim: int) -> Descriptor:
    """The descriptor of this name, one of `DESCRIPTORS`.

    Raises:
        ValueError: no descriptor has this name.
    """
    kinds: dict[str, type[LearnedDescriptor] | type[EMADescriptor]] = {
        "learned": LearnedDescriptor,
        "ema": EMADescriptor,
        "batch_mean": BatchMeanDescriptor,
        "attention": AttentionDescriptor,
    }
    if name not in kinds:
        raise ValueError(f"descriptor must be one of {', '.join(kinds)}, got {name!r}")
    return kinds[name](num_prototypes, latent_dim)
