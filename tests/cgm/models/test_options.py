"""The options of the models: one list, of which everything else is made."""

import dataclasses
import pickle
from typing import NoReturn

import pytest
import torch
from tiny import linear_model
from torch import nn

from cgm_fast.cgm.models import CGM, VAE, CGMConfig, VAEConfig
from cgm_fast.cgm.models.cgm import SIMILARITIES
from cgm_fast.cgm.models.config import (
    DivergenceConfig,
    MarginConfig,
    MMDConfig,
    ModelConfig,
    NoiseConfig,
    PrototypeConfig,
)
from cgm_fast.cgm.models.descriptor import DESCRIPTORS
from cgm_fast.cgm.models.likelihoods import LIKELIHOODS, Gaussian
from cgm_fast.cgm.models.options import Options, options_of
from cgm_fast.cgm.training.config import SETTINGS

PARTS = (ModelConfig, NoiseConfig, PrototypeConfig, DivergenceConfig, MarginConfig)
X = torch.linspace(0, 1, 6 * 64).reshape(6, 1, 8, 8)

# What a CGM is made with where nothing is said.
DEFAULTS = {
    "latent_dim": 10, "likelihood": "bernoulli", "backend": "auto", "sigma2": 0.02,
    "rate_bits": None, "prior_sigma2": 0.02, "power": "free", "num_prototypes": 10,
    "descriptor": "learned", "assignment": "euclidean", "reseed_dead": 0, "mmd_weight": 1000.0,
    "bandwidth": "paper", "prior_sampling": "assigned", "divergence": "mmd2",
    "estimator": "biased", "conditional": False, "detach_prior": False, "margin_weight": 1.0,
    "margin": 1.0, "negatives": "sum", "normalize": False,
}  # fmt: skip


def flat(config):
    """Options by name, wherever in the tree."""
    found = {name: getattr(config, name) for name in options_of(type(config))}
    for part in vars(config).values():
        if isinstance(part, Options):
            found |= flat(part)
    return found


def ends():
    """An encoder and a decoder, the same at every call."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    return encoder, nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (1, 8, 8)))


def test_the_defaults_of_a_cgm():
    assert flat(CGMConfig.of()) == DEFAULTS


def test_every_option_has_one_place_and_is_a_setting_of_runs():
    names = [name for part in PARTS for name in options_of(part)]
    assert sorted(names) == sorted({*names}) == sorted(DEFAULTS)
    for part in PARTS:
        for name, known in options_of(part).items():
            if name != "bandwidth":  # on the command line there is one
                assert SETTINGS[name] == known


def test_what_is_given_is_where_it_belongs():
    given = {
        "latent_dim": 4, "likelihood": "gaussian", "backend": "reference", "rate_bits": 8.0,
        "prior_sigma2": 0.5, "power": "unit", "num_prototypes": 3, "descriptor": "ema",
        "assignment": "dot", "reseed_dead": 7, "mmd_weight": 2.0, "bandwidth": [0.5, 2.0],
        "prior_sampling": "iid", "divergence": "energy", "detach_prior": True,
        "margin_weight": 0.0, "margin": 3.0, "negatives": "mean", "normalize": True,
    }  # fmt: skip
    config = CGMConfig.of(**given)
    expected = DEFAULTS | given | {"rate_bits": None, "sigma2": 0.0625}
    assert flat(config) == expected
    assert config.noise == NoiseConfig(0.0625, None, 0.5, "unit")
    assert (config.prototypes.reseed_dead, config.mmd.divergence) == (7, "energy")
    assert (config.margin_loss.margin, config.latent_dim) == (3.0, 4)


def test_what_is_left_out_is_decided():
    wide = CGMConfig.of(sigma2=0.3, prior_sigma2=None, mmd_weight=None, latent_dim=None)
    assert (wide.noise.sigma2, wide.noise.prior_sigma2) == (0.3, 0.3)
    assert (wide.mmd.mmd_weight, wide.latent_dim) == (1000.0, 10)
    with pytest.raises(ValueError, match="CGMConfig lacks values of mmd_weight, margin"):
        dataclasses.replace(wide, mmd=DivergenceConfig(), margin_loss=MarginConfig(1.0))
    with pytest.raises(ValueError, match="CGMConfig lacks values of sigma2, prior_sigma2"):
        dataclasses.replace(wide, noise=NoiseConfig())
    with pytest.raises(ValueError, match="VAEConfig lacks values of latent_dim, likelihood, mmd_w"):
        VAEConfig(mmd=MMDConfig())


def test_a_config_is_a_value():
    config = CGMConfig.of(num_prototypes=3)
    assert config == CGMConfig.of(num_prototypes=3) != CGMConfig.of()
    assert hash(config) == hash(pickle.loads(pickle.dumps(config)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.noise.sigma2 = 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"num_prototypes": 1}, "num_prototypes must be at least 2, got 1"),
        ({"reseed_dead": -1}, "reseed_dead must be at least 0, got -1"),
        ({"sigma2": 0.0}, "sigma2 must be a finite number > 0, got 0"),
        ({"sigma2": 0.1, "rate_bits": 3.0}, "give sigma2 or rate_bits, not both"),
        ({"rate_bits": -1.0}, "rate_bits must be a finite number >= 0"),
        ({"rate_bits": 1e6}, "rate_bits must leave a noise variance"),
        ({"prior_sigma2": -1.0}, "prior_sigma2 must be a finite number >= 0"),
        ({"mmd_weight": -1.0}, "mmd_weight must be a finite number >= 0"),
        ({"margin": float("nan")}, "margin must be a finite number >= 0, got nan"),
        ({"likelihood": "poisson"}, "likelihood must be one of 'bernoulli', .* got 'poisson'"),
        ({"descriptor": "median"}, "descriptor must be one of 'learned', .* got 'median'"),
        ({"assignment": None}, "assignment must be one of 'euclidean', .* got None"),
        ({"bandwidth": "wide"}, "bandwidth must be one of 'paper', 'infovae', got 'wide'"),
        ({"bandwidth": 0.0}, "bandwidth must be a finite number > 0, got 0"),
        ({"bandwidth": (1.0, -2.0)}, "bandwidth must be a finite number > 0, got -2"),
        ({"power": "half"}, "power must be one of 'free', 'unit', got 'half'"),
        ({"power": "unit", "sigma2": 2.0}, "power=unit needs sigma2 <= 1, got 2"),
        ({"estimator": "unbiased"}, "estimator must be biased unless prior_sampling is iid"),
        ({"conditional": True, "divergence": "mmd"}, "conditional must be left out unless"),
    ],
)
def test_a_config_is_checked_when_it_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        CGMConfig.of(**options)


def test_options_that_there_are_not():
    for kind in (CGMConfig, VAEConfig):
        with pytest.raises(TypeError, match=f"{kind.__name__} has no option colour, shape"):
            kind.of(colour=1, latent_dim=3, shape=2)
    with pytest.raises(TypeError, match="VAEConfig has no option num_prototypes"):
        VAE(*ends(), sigma2=0.1, num_prototypes=3)
    with pytest.raises(TypeError, match="CGMConfig has no option kl_weight"):
        CGM(*ends(), kl_weight=3)


def test_words_are_those_that_parts_are_made_of():
    assert options_of(PrototypeConfig)["descriptor"].choices == DESCRIPTORS
    assert options_of(PrototypeConfig)["assignment"].choices == ("euclidean", *SIMILARITIES)
    assert options_of(ModelConfig)["likelihood"].choices == LIKELIHOODS


def test_a_model_of_a_config_is_that_of_its_options():
    options = {
        "num_prototypes": 4, "sigma2": 0.1, "margin": 5.0, "mmd_weight": 3.0,
        "descriptor": "attention", "normalize": True,
    }  # fmt: skip
    by_name = CGM(*ends(), **options)  # N is the encoder's
    by_config = CGM(*ends(), CGMConfig.of(latent_dim=3, **options))
    assert by_name.config == by_config.config
    for name, value in by_name.state_dict().items():
        assert torch.equal(value, by_config.state_dict()[name])
    losses = [m(X, generator=torch.Generator().manual_seed(1)).loss for m in (by_name, by_config)]
    assert torch.equal(*losses)
    vae = VAE(*ends(), VAEConfig.of(latent_dim=3, sigma2=0.1, mmd_weight=2.0))
    assert vae.config == VAE(*ends(), sigma2=0.1, mmd_weight=2.0).config
    assert VAE(nn.Flatten(), nn.Identity()).config.mmd.mmd_weight == 0.0


def test_parts_of_ones_own_beside_a_config():
    config = CGMConfig.of(latent_dim=3, num_prototypes=3)
    own = Gaussian(0.3)
    model = CGM(*ends(), config, likelihood=own, divergence=torch.dist, mapper=nn.Linear(3, 3))
    assert model.likelihood is own
    assert model.divergence.own is torch.dist
    assert VAE(*ends(), VAEConfig.of(latent_dim=3, sigma2=0.1), likelihood=own).likelihood is own
    with pytest.raises(TypeError, match="a config or options, not both; got both, with margin"):
        CGM(*ends(), config, margin=2.0)
    with pytest.raises(TypeError, match="got both, with likelihood"):
        VAE(*ends(), VAEConfig.of(latent_dim=3, sigma2=0.1), likelihood="gaussian")
    with pytest.raises(ValueError, match="latent_dim must be the encoder's 3, got 4"):
        CGM(*ends(), CGMConfig.of(latent_dim=4))
    with pytest.raises(ValueError, match="conditional must be left out unless divergence is mmd2"):
        linear_model(conditional=True, divergence=torch.dist)


def test_the_argument_of_a_class_is_for_type_checkers_alone():
    assert NoiseConfig[NoReturn](sigma2=1.0) == NoiseConfig[None](sigma2=1.0)
