import dataclasses
import json
from dataclasses import replace

import pytest
import torch

from cgm_fast.cgm.data import ImageData, load
from cgm_fast.cgm.training.build import build_model
from cgm_fast.cgm.training.config import (
    ConfigError,
    RunConfig,
    TrainConfig,
    check,
    from_dict,
    to_dict,
)
from cgm_fast.cgm.training.presets import PRESETS, resolve
from cgm_fast.cgm.training.resuming import differences


def _data(name="digits", shape=(1, 8, 8), n=200, labels=True):
    images = torch.zeros(n, *shape, dtype=torch.uint8)
    given = torch.arange(n) % 10 if labels else None
    return ImageData(name, images, given, images, given, ())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fill_in_what_is_not_given(name):
    preset = PRESETS[name]
    config = resolve(TrainConfig(), _data(name))
    for field in ("latent_dim", "batch_size", "epochs", "lr", "likelihood"):
        assert getattr(config, field) == getattr(preset, field)
    for choice in ("paper-text", "paper-rate"):
        other = resolve(TrainConfig(model="infovae", preset=choice), _data(name))
        assert (other.mmd_weight, other.prior_sigma2) == (preset.mmd_weight, None)
    assert (config.sigma2, config.rate_bits) == (0.02, None)
    rate = resolve(TrainConfig(preset="paper-rate"), _data(name))
    assert (rate.sigma2, rate.rate_bits) == (None, preset.rate_bits)
    given = resolve(TrainConfig(latent_dim=7, lr=0.5, rate_bits=3.0), _data(name))
    assert (given.latent_dim, given.lr, given.sigma2, given.rate_bits) == (7, 0.5, None, 3.0)


def test_the_papers_numbers():
    """Section 1.3 of the requirements: batches of 64 and 100, λ = 1000 and 1100, N = 10 and 300."""
    mnist, cifar10 = (
        resolve(TrainConfig(preset="paper-text"), _data(name)) for name in ("mnist", "cifar10")
    )
    assert (mnist.latent_dim, mnist.num_prototypes, mnist.mmd_weight) == (10, 10, 1000)
    assert (mnist.batch_size, mnist.lr, mnist.sigma2, mnist.margin) == (64, 1e-4, 0.02, 1)
    assert (mnist.margin_weight, mnist.prior_sigma2) == (1, None)
    assert (cifar10.latent_dim, cifar10.mmd_weight, cifar10.batch_size) == (300, 1100, 100)
    assert resolve(TrainConfig(), _data("cifar10")) == replace(cifar10, preset="tuned")


def test_tuned_numbers():
    """What docs/cgm/paper.md found; what is given goes before."""
    for supervised, margin, prior_sigma2 in ((True, 35, 1.0), (False, 2.1, 0.3)):
        mnist = resolve(TrainConfig(latent_dim=7, supervised=supervised), _data("mnist"))
        assert (mnist.mmd_weight, mnist.margin_weight) == (100, 1)
        assert mnist.margin == pytest.approx(margin)
        assert (mnist.sigma2, mnist.prior_sigma2) == (0.02, prior_sigma2)
    assert resolve(TrainConfig(sigma2=0.5), _data("mnist")).prior_sigma2 == 0.5
    weights = {"mmd_weight": 3.0, "margin_weight": 0.0, "margin": 2.0, "prior_sigma2": 0.1}
    given = resolve(TrainConfig(**weights), _data("mnist"))
    assert {name: getattr(given, name) for name in weights} == weights


def test_whose_variance_is_learned():
    """A VAE's and an InfoVAE's, unless that is given one; BIR-VAE has the data set's rate."""
    vae, info, bir = (
        resolve(TrainConfig(model=model), _data("mnist")) for model in ("vae", "infovae", "bir-vae")
    )
    assert (vae.sigma2, vae.rate_bits) == (info.sigma2, info.rate_bits) == (None, None)
    assert (bir.sigma2, bir.rate_bits) == (None, 15.0)
    fixed = build_model(resolve(TrainConfig(model="infovae", sigma2=0.3), _data("mnist")))
    learned = build_model(info)
    assert (fixed.sigma2, learned.sigma2) == (0.3, None)
    assert build_model(bir).sigma2 == pytest.approx(4**-1.5)
    weights = [build_model(vae).kl_weight, learned.kl_weight, learned.mmd_weight]
    assert weights == [1, 0, 100]
    assert info.prior_sigma2 is None


def test_other_data_goes_by_its_channels():
    assert resolve(TrainConfig(), _data("x.npz")).likelihood == "bernoulli"
    colour = resolve(TrainConfig(), _data("photographs", (3, 64, 64)))
    assert (colour.likelihood, colour.image_shape) == ("gaussian", (3, 64, 64))


def test_binarization_goes_with_the_likelihood():
    assert resolve(TrainConfig(), _data("mnist")).binarization == "dynamic"
    assert resolve(TrainConfig(likelihood="gaussian"), _data("mnist")).binarization == "none"
    given = TrainConfig(likelihood="bernoulli", binarization="dynamic")
    assert resolve(given, _data("cifar10", (3, 32, 32))).binarization == "dynamic"
    with pytest.raises(ConfigError, match="binarization must be none with the gaussian"):
        resolve(TrainConfig(likelihood="gaussian", binarization="dynamic"), _data())


def test_prototypes_start_at_codes_where_there_are_no_labels():
    assert resolve(TrainConfig(), _data()).prototype_init == "kmeans++"
    assert resolve(TrainConfig(supervised=True), _data()).prototype_init == "xavier"


def test_to_dict_and_back():
    config = resolve(TrainConfig(bandwidth=2.5, resume=True, clip_grad_norm=1.0), _data())
    values = json.loads(json.dumps(to_dict(config), allow_nan=False))
    assert from_dict(values) == dataclasses.replace(config, resume=False)
    assert not {"resume", "overwrite", "download", "cuda_graph"} & set(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": None}, "lacks values of width"),
        ({"prototype_init": None}, "lacks values of prototype_init"),
        ({"image_shape": [1, 8]}, r"image_shape must be \[c, h, w\] .* got \[1, 8\]"),
        ({"image_shape": [1, 8, 4]}, "sides of at least 8"),
        ({"image_shape": ["1", 8, 8]}, "image_shape must be"),
        ({"colour": 1}, "unknown settings: colour"),
        ({"batch_size": "64"}, "batch_size must be an integer or none, got '64'"),
        ({"latent_dim": 0}, "latent_dim must be a finite number >= 1"),
    ],
)
def test_from_dict_refuses(change, message):
    values = to_dict(resolve(TrainConfig(), _data()))
    with pytest.raises(ConfigError, match=message):
        from_dict({**values, **change})


def test_what_is_left_to_the_data_is_as_a_resumed_run_has_it():
    saved = resolve(TrainConfig(lr=0.5, max_steps=7), _data())
    left_out = TrainConfig(resume=True)
    assert differences(saved, left_out, {"lr", "epochs", "max_steps"}) == {"max_steps": None}


def test_a_run_config_is_filled_in_or_none():
    with pytest.raises(ConfigError, match=r"lacks values of .*, lr, sigma2 or rate_bits"):
        RunConfig()
    saved = resolve(TrainConfig(), _data())
    with pytest.raises(ConfigError, match=r"config lacks values of margin$"):
        replace(saved, margin=None)


def test_defaults_are_valid():
    check(TrainConfig())
    assert isinstance(resolve(TrainConfig(), load("digits")), RunConfig)
