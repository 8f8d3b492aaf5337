"""Runs whose config.json was written before the model had a config of its own."""

import json
from dataclasses import asdict

import pytest
from tiny import checkpoint, metrics, run, same, write_npz

from cgm_fast.cgm.training import runs
from cgm_fast.cgm.training.build import model_config
from cgm_fast.cgm.training.config import ConfigError

# As version 0.1.0 wrote it, before and after what a test changes.
OLD = """{
  "data": "digits",
  "data_root": "/somewhere/data",
  "test_data": null,
  "image_size": null,
  "channels": null,
  "skip_broken": false,
  "model": "cgm",
  "supervised": false,
  "latent_dim": 3,
  "num_prototypes": 3,
  "preset": "paper-rate",
  "sigma2": null,
  "rate_bits": 15.0,
  "prior_sigma2": null,
  "mmd_weight": 1000.0,
  "margin_weight": 1.0,
  "margin": 1.0,
  "bandwidth": "paper",
  "descriptor": "learned",
  "assignment": "euclidean",
  "prior_sampling": "assigned",
  "divergence": "mmd2",
  "estimator": "biased",
  "conditional": false,
  "detach_prior": false,
  "negatives": "sum",
  "normalize": false,
  "prototype_init": "kmeans++",
  "reseed_dead": 0,
  "power": "free",
  "network": "dcgan",
  "decoder": "same",
  "width": 4,
  "likelihood": "bernoulli",
  "binarization": "none",
  "denoise_variance": 0.0,
  "denoise_range": "unit",
  "denoise_clip": false,
  "init": null,
  "epochs": 200,
  "max_steps": 4,
  "batch_size": 8,
  "lr": 0.001,
  "lr_schedule": "constant",
  "clip_grad_norm": null,
  "precision": "float32",
  "device": "cpu",
  "backend": "auto",
  "seed": 0,
  "out": null,
  "log_every": 2,
  "checkpoint_every": 3,
  "probes": true,
  "pictures": true,
  "evaluate": false,
  "nll_images": 3,
  "nll_samples": 4,
  "image_shape": [
    1,
    8,
    8
  ],
  "made_with": {
    "cgm_fast": "0.1.0",
    "torch": "2.14.1+cu130",
    "python": "3.11.7",
    "threads": 1,
    "processes": 1
  }
}
"""


def write_old(folder, **changes):
    """A run folder with that config."""
    folder.mkdir(exist_ok=True)
    (folder / runs.CONFIG).write_text(json.dumps(json.loads(OLD) | changes, indent=2) + "\n")


def test_every_setting_is_read(tmp_path):
    write_old(tmp_path)
    config = runs.read_config(tmp_path)
    values = json.loads(OLD)
    del values["made_with"]
    read = asdict(config)
    assert {name: read[name] for name in values} == values | {"image_shape": (1, 8, 8)}
    assert set(read) - set(values) == {"resume", "overwrite", "download", "cuda_graph"}
    noise = model_config(config).noise
    assert noise.sigma2 == noise.prior_sigma2 == pytest.approx(4**-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "paper-rate"},
        {"sigma2": 0.1, "margin": 2.0, "bandwidth": 1.5, "descriptor": "ema", "conditional": True},
        {"model": "infovae", "sigma2": 0.3},
        {"model": "bir-vae"},
        {"model": "vae"},
        {"model": "cvae", "supervised": True},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_run_goes_on_and_is_what_it_would_have_been(tmp_path, settings):
    whole = run(tmp_path, out=str(tmp_path / "whole"), max_steps=6, **settings)
    stopped = run(tmp_path, max_steps=4, **settings)
    written = json.loads((stopped.path / runs.CONFIG).read_text())
    assert written.keys() == json.loads(OLD).keys()  # other versions read it, too
    write_old(stopped.path, **written)
    run(tmp_path, max_steps=6, resume=True, **settings)
    assert same(checkpoint(tmp_path), checkpoint(tmp_path, "whole"))
    assert metrics(tmp_path) == metrics(tmp_path, "whole")
    loaded, of_whole = (runs.load_run(path)[0] for path in (stopped.path, whole.path))
    assert same(dict(loaded.state_dict()), dict(of_whole.state_dict()))
    assert loaded.config == of_whole.config


def test_its_noise_must_stay_as_it_was_given(tmp_path):
    """4^(-15/3) is that noise too, but the run was asked for a rate."""
    write_old(tmp_path / "run", data=str(write_npz(tmp_path / "tiny.npz")))
    with pytest.raises(ConfigError, match=r"rate_bits must stay 15\.0 with resume, got 12"):
        run(tmp_path, resume=True, rate_bits=12.0)
    run(tmp_path, resume=True, rate_bits=15.0, max_steps=1, epochs=None)
    assert runs.read_config(tmp_path / "run").rate_bits == 15.0
