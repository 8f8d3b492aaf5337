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

from cgm_fast.data import ImageData
from cgm_fast.evaluation.codes import BATCH
from cgm_fast.models.networks.dcgan import DCGANEncoder
from cgm_fast.ops.mmd.api import mmd

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
        data: With labels; its training images are what is learned from.
        device: To train on; the network stays there.
        seed: Of its weights and of the order of images.

    Raises:
        ValueError: there are no labels.
    """
    if data.train_labels is None:
        raise ValueError(f"features need labels, and {data.name} has none")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = DCGANEncoder(data.image_shape, FEATURES, width=16)
        classifier = nn.Sequential(features, nn.ReLU(), nn.Linear(FEATURES, len(data.class_names)))
    classifier.to(device).train()
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for _ in range(STEPS):
        index = torch.randint(len(data.train), (PER_STEP,), generator=generator)
        x = data.train[index].to(device).float() / 255
        loss = nn.functional.cross_entropy(classifier(x), data.train_labels[index].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return features.eval()


@torch.no_grad()
def features_of(features: nn.Module, images: Tensor) -> Tensor:
    """Features [n, d] of images [n, c, h, w], uint8 or in [0, 1], in batches."""
    device = next(features.parameters()).device
    found = []
    for batch in images.split(BATCH):
        x = batch.to(device)
        found.append(features(x if x.is_floating_point() else x.float() / 255))
    return torch.cat(found)


@torch.no_grad()
def kernel_distance(x: Tensor, y: Tensor, seed: int = 0) -> KernelDistance:
    """The unbiased MMD² of features x [n, d] of real and y [m, d] of other images.

    The mean over subsets of a thousand of each, and of three Gaussian kernels.

    Args:
        x: At least two of them.
        y: At least two.
        seed: Of the subsets.
    """
    size = min(SIZE, len(x), len(y))
    generator = torch.Generator().manual_seed(seed)

    def subsets(of: Tensor) -> Tensor:
        chosen = [torch.randperm(len(of), generator=generator)[:size] for _ in range(SUBSETS)]
        return of[torch.stack(chosen).to(of.device)]

    xs, ys = subsets(x), subsets(y)
    median = float(torch.pdist(xs[0].float()).median())
    found = mmd(xs, ys, bandwidth=[scale * median for scale in SCALES], estimator="unbiased")
    spread = float(found.double().std())
    return KernelDistance(float(found.double().mean()), spread / math.sqrt(SUBSETS))
