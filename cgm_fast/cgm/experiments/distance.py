"""Kernel distances of what a study's runs generate, and of real images among themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cgm_fast.cgm.data import ImageData
from cgm_fast.cgm.evaluation.kernel_distance import (
    KernelDistance,
    features_of,
    kernel_distance,
    train_features,
)
from cgm_fast.cgm.experiments.study import Trained
from cgm_fast.cgm.training.drawing import fitted_prior

IMAGES = 5000  # generated, and codes that a prior is fitted to
NOTE = """Kernel distance: 1000 times the unbiased MMD² between classifier's features of test images
and of so many generated ones, from the model's own prior and from the fitted one with full
covariances; ± is a standard error. Of training images it is {value}."""


class Judge:
    """A classifier's features, trained once, that generated images are compared by.

    Args:
        data: Real images, with labels.
        device: Where features are computed.
    """

    def __init__(self, data: ImageData, device: torch.device) -> None:
        self.features: nn.Module = train_features(data, device)
        self.real = features_of(self.features, data.test)
        self.device = device
        train = data.train[
            torch.randperm(len(data.train), generator=_generator(), device="cpu")[:IMAGES]
        ]
        self.note = NOTE.format(value=show(self._distance(train)))

    def columns(self, run: Trained) -> dict[str, Any]:
        """Distances of images that a run generates, by the prior."""
        model, config, data = run.load(self.device)
        fitted = fitted_prior(model, data.train[:IMAGES], config)
        found: dict[str, Any] = {}
        for name, prior in (("own prior", None), ("fitted", fitted)):
            generator = torch.Generator(self.device).manual_seed(config.seed)
            images = model.generate(IMAGES, prior=prior, generator=generator)[0]
            found[f"kernel distance, {name}"] = show(self._distance(images))
        return found

    def _distance(self, images: torch.Tensor) -> KernelDistance:
        return kernel_distance(self.real, features_of(self.features, images))


def show(distance: KernelDistance) -> str:
    """In thousandths, with its standard error."""
    return f"{1000 * distance.value:.1f} ± {1000 * distance.standard_error:.1f}"


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
