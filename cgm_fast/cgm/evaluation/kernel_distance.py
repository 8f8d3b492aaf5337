"""How far generated images are from real ones: MMD² of a classifier's features, as KID has it.

Binkowski, Sutherland, Arbel, Gretton, "Demystifying MMD GANs", ICLR 2018: the unbiased MMD² over
subsets of features. Theirs are Inception's, with a cubic kernel; here they are of a small
classifier of the same images, with Gaussian kernels around the median distance. So values compare
models on one set of images, not with what others print.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cgm_fast import mmd
from cgm_fast.cgm.data import UNLABELLED, ImageData
from cgm_fast.cgm.evaluation.codes import BATCH
from cgm_fast.cgm.models.networks.dcgan import DCGANEncoder

FEATURES = 64
STEPS, PER_STEP = 1000, 64
SUBSETS, SIZE = 20, 1000
SCALES = (0.5, 1.0, 2.0)  # of the median distance


class KernelDistance(NamedTuple):
    """MMD² between features of two sets of images; 0 in the mean if they are alike."""

    value: float
    standard_error: float
    """From the spread over subsets."""


def train_features(data: ImageData, device: torch.device, seed: int = 0) -> nn.Module:
    """A network from images [B, c, h, w] in [0, 1] to features [B, 64] that tell their classes.

    Args:
        data: With labels; its training images that have one are what is learned from.
        device: To train on; the network stays there.
        seed: Of its weights and of the order of images.

    Raises:
        ValueError: there are no labels.
    """
    if data.train_labels is None:
        raise ValueError(f"features need labels, and {data.name} has none")
    labelled = data.train_labels != UNLABELLED
    images, labels = data.train[labelled], data.train_labels[labelled]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = DCGANEncoder(data.image_shape, FEATURES, width=16)
        classifier = nn.Sequential(features, nn.ReLU(), nn.Linear(FEATURES, len(data.class_names)))
    classifier.to(device).train()
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for _ in range(STEPS):
        index = torch.randint(len(images), (PER_STEP,), generator=generator, device="cpu")
        x = images[index].to(device, torch.get_default_dtype()) / 255
        loss = nn.functional.cross_entropy(classifier(x), labels[index].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return features.eval()


@torch.no_grad()
def features_of(features: nn.Module, images: Tensor) -> Tensor:
    """Features [n, d] of images [n, c, h, w], uint8 or in [0, 1], in batches."""
    own = next(features.parameters())
    found = []
    for batch in images.split(BATCH):
        scale = 1 if batch.is_floating_point() else 255
        found.append(features(batch.to(own) / scale))
    return torch.cat(found)


@torch.no_grad()
def kernel_distance(x: Tensor, y: Tensor, seed: int = 0) -> KernelDistance:
    """The unbiased MMD² of features x [n, d] of real and y [m, d] of other images.

    The mean over subsets of a thousand of each, and of three Gaussian kernels around the median
    distance of different features of real images.

    Args:
        x: At least two of them, not all the same.
        y: At least two.
        seed: Of the subsets.

    Raises:
        ValueError: there are too few features, or all real ones are the same.
    """
    for name, features in (("x", x), ("y", y)):
        if features.dim() != 2 or len(features) < 2:
            raise ValueError(f"{name} must be [n, d] with n at least 2, got {list(features.shape)}")
    size = min(SIZE, len(x), len(y))
    generator = torch.Generator().manual_seed(seed)

    def subsets(of: Tensor) -> Tensor:
        chosen = [
            torch.randperm(len(of), generator=generator, device="cpu")[:size]
            for _ in range(SUBSETS)
        ]
        return of[torch.stack(chosen).to(of.device)]

    xs, ys = subsets(x), subsets(y)
    distances = torch.pdist(xs[0].float())
    # Many images may share their features, as all that a network with dead units sees as black.
    apart = distances[distances > 0]
    if not len(apart):
        raise ValueError(f"x must hold different features, got {size} equal ones")
    median = float(apart.median())
    found = mmd(xs, ys, bandwidth=[scale * median for scale in SCALES], estimator="unbiased")
    spread = float(found.double().std())
    return KernelDistance(float(found.double().mean()), spread / math.sqrt(SUBSETS))
