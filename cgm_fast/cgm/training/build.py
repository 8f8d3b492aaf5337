"""The model and its networks that a run's settings describe."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch
from torch import nn

from cgm_fast.cgm.files import RunError
from cgm_fast.cgm.models import (
    CGM,
    VAE,
    CGMConfig,
    DCGANDecoder,
    DCGANEncoder,
    GatedPixelCNN,
    LatentModel,
    PixelSNAIL,
    ResNetDecoder,
    ResNetEncoder,
    VAEConfig,
    make_likelihood,
)
from cgm_fast.cgm.models.latent import resolve_sigma2
from cgm_fast.cgm.training.config import RunConfig
from cgm_fast.cgm.training.limits import ConfigError


def outline(config: RunConfig, source: Path | None = None) -> LatentModel:
    """The model that settings describe on torch's meta device: shapes, and no memory for values.

    Args:
        config: The settings.
        source: The file that they come from, where that is to blame.

    Raises:
        ConfigError: there can be no such model: its sizes overflow; RunError with a source.
    """
    try:
        with torch.device("meta"):
            return build_model(config)
    except (RuntimeError, OverflowError, TypeError, ValueError, MemoryError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        if source is not None:
            raise RunError(f"{source} describes no model that can be made: {text}") from error
        raise ConfigError(f"the settings describe no model that can be made: {text}") from error


def check_memory(config: RunConfig) -> None:
    """Raise ConfigError if this machine has not the memory to train the model that is described.

    Weights, gradients and Adam's two averages, four bytes each, are the least that training takes.
    """
    model = outline(config)
    weights = sum(parameter.numel() for parameter in model.parameters())
    needed, there = 16 * weights, _memory()
    if there is not None and needed > there:
        raise ConfigError(
            f"a model of {weights:.3g} weights (width {config.width}, latent_dim "
            f"{config.latent_dim}, num_prototypes {config.num_prototypes}) takes "
            f"{needed / 2**30:.3g} GiB to train, and this machine has {there / 2**30:.3g}"
        )


def _memory() -> int | None:
    """Bytes of this machine's memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def model_config(config: RunConfig) -> CGMConfig | VAEConfig:
    """What settings say of the model alone, all of it decided."""
    options = dataclasses.asdict(config)
    if config.model == "cgm":
        return CGMConfig.taken_from(options)
    by_mmd = config.model in ("infovae", "bir-vae")
    fixed = by_mmd and (config.sigma2 is not None or config.rate_bits is not None)
    noise = resolve_sigma2(config.sigma2, config.rate_bits, config.latent_dim) if fixed else None
    options |= {
        "sigma2": noise,
        "kl_weight": 0.0 if by_mmd else 1.0,
        "mmd_weight": config.mmd_weight if by_mmd else 0.0,
        "classes": config.num_prototypes if config.model == "cvae" else 0,
    }
    return VAEConfig.taken_from(options)


def build_model(config: RunConfig) -> LatentModel:
    """The model that settings describe, with fresh weights."""
    options = model_config(config)
    channels, *sides = config.image_shape
    latent_dim = options.latent_dim
    learned = isinstance(options, VAEConfig) and options.sigma2 is None
    classes = options.classes if isinstance(options, VAEConfig) else 0
    outputs = 2 * latent_dim if learned else latent_dim
    encoder = _encoder(config, (channels + classes, sides[0], sides[1]), outputs)
    of_pixel = make_likelihood(options.likelihood).channels(channels)
    decoder = _decoder(config, latent_dim + classes, of_pixel)
    if isinstance(options, CGMConfig):
        return CGM(encoder, decoder, options)
    return VAE(encoder, decoder, options)


def _encoder(config: RunConfig, shape: tuple[int, int, int], outputs: int) -> nn.Module:
    make = ResNetEncoder if config.network == "resnet" else DCGANEncoder
    return make(shape, outputs, config.width)


def _decoder(config: RunConfig, inputs: int, channels: int) -> nn.Module:
    _, height, width = config.image_shape
    if config.decoder == "pixelcnn":
        return GatedPixelCNN(inputs, config.image_shape, channels, config.width)
    if config.decoder == "pixelsnail":
        return PixelSNAIL(inputs, config.image_shape, channels, config.width)
    make = ResNetDecoder if config.network == "resnet" else DCGANDecoder
    return make(inputs, (channels, height, width), config.width)
