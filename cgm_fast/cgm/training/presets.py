"""The paper's settings per data set, and what is filled in where a user gives none."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cgm_fast.cgm.data import UNLABELLED, ImageData
from cgm_fast.cgm.models.latent import DEFAULT_SIGMA2, resolve_sigma2
from cgm_fast.cgm.training.config import LEAST_SIDE, RunConfig, Settings, check
from cgm_fast.cgm.training.limits import ConfigError


@dataclass(frozen=True)
class Preset:
    """Settings for a kind of data; section 1.3 of the paper's tables where it names them."""

    latent_dim: int
    num_prototypes: int
    mmd_weight: float
    batch_size: int
    rate_bits: float
    epochs: int
    lr: float
    width: int
    likelihood: str
    binarization: str


# A rate is one of two ways to give the noise, and λ goes with β and m: not filled in like others.
PRESET_SETTINGS = tuple(
    f.name for f in dataclasses.fields(Preset) if f.name not in ("rate_bits", "mmd_weight")
)

_MNIST = Preset(10, 10, 1000.0, 64, 15.0, 200, 1e-4, 64, "bernoulli", "dynamic")
PRESETS = {
    # Small images, little data: ten times the paper's step, so that a minute is enough.
    "digits": Preset(10, 10, 1000.0, 64, 15.0, 100, 1e-3, 32, "bernoulli", "none"),
    "mnist": _MNIST,
    "fashion-mnist": _MNIST,
    "cifar10": Preset(300, 10, 1100.0, 100, 120.0, 200, 1e-4, 64, "gaussian", "none"),
}
# An npz or a folder: the paper's settings for ImageNet 64 x 64, with fewer prototypes and
# dimensions, which suit collections that are smaller than ImageNet.
GREY = dataclasses.replace(_MNIST, binarization="none")
COLOUR = Preset(128, 10, 1100.0, 64, 120.0, 200, 1e-4, 64, "gaussian", "none")


def preset_for(data: ImageData) -> Preset:
    """The preset of a data set by name, or by its number of channels."""
    return PRESETS.get(data.name, GREY if data.image_shape[0] == 1 else COLOUR)


def resolve(config: Settings[None], data: ImageData) -> RunConfig:
    """Fill in what was left to the data set, and check what was given.

    Raises:
        ConfigError: a setting is out of range or contradicts another or the data.
    """
    check(config)
    preset = preset_for(data)
    filled: dict[str, Any] = {
        name: getattr(preset, name) for name in PRESET_SETTINGS if getattr(config, name) is None
    }
    if config.prototype_init is None:
        random = config.supervised or config.model != "cgm"
        filled["prototype_init"] = "xavier" if random else "kmeans++"
    for name, value in _of_objective(config, preset, _sigma2(config, preset)).items():
        if getattr(config, name) is None:
            filled[name] = value
    noise_given = config.sigma2 is not None or config.rate_bits is not None
    if not noise_given and config.model in ("cgm", "bir-vae"):
        if config.preset == "paper-rate" or config.model == "bir-vae":
            filled["rate_bits"] = preset.rate_bits
        else:
            filled["sigma2"] = DEFAULT_SIGMA2
    if config.binarization is None and config.likelihood not in (None, preset.likelihood):
        filled["binarization"] = "none"
    given = dataclasses.asdict(config)
    resolved = RunConfig(**{**given, **filled, "image_shape": data.image_shape})
    if min(data.image_shape[1:]) < LEAST_SIDE:
        raise ConfigError(
            f"data must hold images of at least {LEAST_SIDE} x {LEAST_SIDE} pixels, got "
            f"{data.image_shape[1]} x {data.image_shape[2]}"
        )
    if resolved.model == "cvae" and (lacking := _unlabelled(data.test, data.test_labels)):
        raise ConfigError(
            f"model cvae needs labels of the test images too, and {lacking} of those of "
            f"{config.test_data or data.name} have none"
        )
    if resolved.supervised:
        if data.train_labels is None:
            raise ConfigError(f"supervised needs labels, and {data.name} has none")
        lacking = _unlabelled(data.train, data.train_labels)
        if lacking and resolved.model == "cvae":
            raise ConfigError(
                f"model cvae needs a label for each image, and {lacking} of those of {data.name} "
                "have none"
            )
        classes = int(data.train_labels.max()) + 1
        if classes > resolved.num_prototypes:
            raise ConfigError(
                f"num_prototypes must be at least the number of classes {classes} with "
                f"supervised, got {resolved.num_prototypes}"
            )
    if resolved.batch_size > len(data.train):
        raise ConfigError(
            f"batch_size must be at most the {len(data.train)} training images, "
            f"got {resolved.batch_size}"
        )
    if resolved.prototype_init == "kmeans++" and resolved.num_prototypes > len(data.train):
        raise ConfigError(
            f"num_prototypes must be at most the {len(data.train)} training images with "
            f"prototype_init kmeans++, got {resolved.num_prototypes}"
        )
    if resolved.likelihood != "bernoulli" and resolved.binarization != "none":
        raise ConfigError(
            f"binarization must be none with the {resolved.likelihood} likelihood, "
            f"got {resolved.binarization}"
        )
    return resolved


def _unlabelled(images: Tensor, labels: Tensor | None) -> int:
    """How many images have no label."""
    return len(images) if labels is None else int((labels == UNLABELLED).sum())


def _sigma2(config: Settings[None], preset: Preset) -> float:
    """σ², from either way to give it."""
    try:
        return resolve_sigma2(
            config.sigma2, config.rate_bits, config.latent_dim or preset.latent_dim
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _of_objective(config: Settings[None], preset: Preset, sigma2: float) -> dict[str, float]:
    """λ, β, m and τ² where they are not given."""
    if config.preset != "tuned" or preset.likelihood != "bernoulli":
        return {"mmd_weight": preset.mmd_weight, "margin_weight": 1.0, "margin": 1.0}
    objective = {"mmd_weight": 100.0, "margin_weight": 1.0, "margin": 1.0}
    if config.model == "cgm":
        latent_dim = float(config.latent_dim or preset.latent_dim)
        # Where prototypes choose their own images, those that push hard end with all of them.
        objective["margin"] = (5.0 if config.supervised else 0.3) * latent_dim
        objective["prior_sigma2"] = max(1.0 if config.supervised else 0.3, sigma2)
    return objective
