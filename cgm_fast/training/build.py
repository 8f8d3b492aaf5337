"""The model and its networks that a run's settings describe."""

from __future__ import annotations

from torch import nn

from cgm_fast.models import (
    CGM,
    VAE,
    DCGANDecoder,
    DCGANEncoder,
    GatedPixelCNN,
    LatentModel,
    PixelSNAIL,
    ResNetDecoder,
    ResNetEncoder,
    make_likelihood,
)
from cgm_fast.models.latent import resolve_sigma2
from cgm_fast.training.config import RunConfig


def build_model(config: RunConfig) -> LatentModel:
    """The model that resolved settings describe, with fresh weights."""
    channels, *sides = config.image_shape
    latent_dim = config.latent_dim
    assert latent_dim is not None
    assert config.num_prototypes is not None
    assert config.likelihood is not None
    assert config.mmd_weight is not None
    assert config.margin_weight is not None
    assert config.margin is not None
    likelihood = make_likelihood(config.likelihood)
    classes = config.num_prototypes if config.model == "cvae" else 0
    fixed = config.model in ("infovae", "bir-vae") and (
        config.sigma2 is not None or config.rate_bits is not None
    )
    outputs = latent_dim if config.model == "cgm" or fixed else 2 * latent_dim
    encoder = _encoder(config, (channels + classes, sides[0], sides[1]), outputs)
    decoder = _decoder(config, latent_dim + classes, likelihood.channels(channels))
    if config.model == "cgm":
        return CGM(
            encoder,
            decoder,
            latent_dim=latent_dim,
            num_prototypes=config.num_prototypes,
            likelihood=likelihood,
            descriptor=config.descriptor,
            assignment=config.assignment,
            divergence=config.divergence,
            prior_sampling=config.prior_sampling,
            estimator=config.estimator,
            conditional=config.conditional,
            detach_prior=config.detach_prior,
            negatives=config.negatives,
            normalize=config.normalize,
            sigma2=config.sigma2,
            rate_bits=config.rate_bits,
            prior_sigma2=config.prior_sigma2,
            mmd_weight=config.mmd_weight,
            margin_weight=config.margin_weight,
            margin=config.margin,
            bandwidth=config.bandwidth,
            power=config.power,
            reseed_dead=config.reseed_dead,
            backend=config.backend,
        )
    by_mmd = config.model in ("infovae", "bir-vae")
    return VAE(
        encoder,
        decoder,
        latent_dim=latent_dim,
        likelihood=likelihood,
        sigma2=resolve_sigma2(config.sigma2, config.rate_bits, latent_dim) if fixed else None,
        kl_weight=0.0 if by_mmd else 1.0,
        mmd_weight=config.mmd_weight if by_mmd else 0.0,
        bandwidth=config.bandwidth,
        classes=classes,
        backend=config.backend,
    )


def _encoder(config: RunConfig, shape: tuple[int, int, int], outputs: int) -> nn.Module:
    assert config.width is not None
    make = ResNetEncoder if config.network == "resnet" else DCGANEncoder
    return make(shape, outputs, config.width)


def _decoder(config: RunConfig, inputs: int, channels: int) -> nn.Module:
    assert config.width is not None
    _, height, width = config.image_shape
    if config.decoder == "pixelcnn":
        return GatedPixelCNN(inputs, config.image_shape, channels, config.width)
    if config.decoder == "pixelsnail":
        return PixelSNAIL(inputs, config.image_shape, channels, config.width)
    make = ResNetDecoder if config.network == "resnet" else DCGANDecoder
    return make(inputs, (channels, height, width), config.width)
