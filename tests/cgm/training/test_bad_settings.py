"""Settings and data that cannot be used: the message says why, and nothing is written."""

import sys

import numpy as np
import pytest
from tiny import pixels, run, settings, write_npz

from cgm_fast.cgm.data import DataError
from cgm_fast.cgm.extras import MissingExtraError
from cgm_fast.cgm.files import RunError
from cgm_fast.cgm.training.config import ConfigError
from cgm_fast.cgm.training.pipeline import train

BAD = [
    ({"sigma2": 0.1, "rate_bits": 3.0}, "give sigma2 or rate_bits, not both"),
    ({"sigma2": 0.0}, "sigma2 must be a finite number > 0"),
    ({"rate_bits": -1.0}, "rate_bits must be a finite number >= 0"),
    ({"rate_bits": 1e6}, "rate_bits must leave a noise variance"),
    ({"prior_sigma2": 0.0}, "prior_sigma2 must be a finite number > 0"),
    ({"num_prototypes": 1}, "num_prototypes must be a finite number >= 2, got 1"),
    ({"num_prototypes": 37}, "num_prototypes must be at most the 36 training images"),
    ({"supervised": True, "num_prototypes": 2}, "at least the number of classes 3"),
    ({"latent_dim": 0}, "latent_dim must be"),
    ({"batch_size": 1}, "batch_size must be a finite number >= 2"),
    ({"batch_size": 37}, "batch_size must be at most the 36 training images, got 37"),
    ({"batch_size": 2.5}, "batch_size must be an integer or none, got 2.5"),
    ({"bandwidth": 0.0}, "bandwidth must be a finite number > 0, got 0"),
    ({"bandwidth": float("inf")}, "bandwidth must be a finite number > 0, got inf"),
    ({"bandwidth": "wide"}, "bandwidth must be paper, infovae or a number, got 'wide'"),
    ({"power": "unit", "sigma2": 1.5}, "power=unit needs sigma2 <= 1, got 1.5"),
    ({"power": "double"}, "power must be free or unit, got 'double'"),
    ({"descriptor": "median"}, "descriptor must be learned, ema, .* got 'median'"),
    ({"prototype_init": "zeros"}, "prototype_init must be xavier, .* got 'zeros'"),
    ({"preset": "paper"}, "preset must be tuned, paper-text or paper-rate, got 'paper'"),
    ({"precision": "fp16"}, "precision must be float32 or bf16, got 'fp16'"),
    ({"likelihood": "poisson"}, "likelihood must be bernoulli, .* got 'poisson'"),
    ({"binarization": "fixed"}, "binarization must be none, .* got 'fixed'"),
    ({"likelihood": "gaussian", "binarization": "threshold"}, "binarization must be none with"),
    ({"lr": 0.0}, "lr must be a finite number > 0"),
    ({"lr": float("nan")}, "lr must be a finite number > 0, got nan"),
    ({"clip_grad_norm": 0.0}, "clip_grad_norm must be"),
    ({"denoise_variance": -0.5}, "denoise_variance must be"),
    ({"epochs": 0}, "epochs must be"),
    ({"max_steps": 0}, "max_steps must be"),
    ({"log_every": 0}, "log_every must be"),
    ({"checkpoint_every": 0}, "checkpoint_every must be"),
    ({"nll_samples": 1}, "nll_samples must be a finite number >= 2, got 1"),
    ({"model": "gan"}, "model must be cgm, vae, .* got 'gan'"),
    ({"model": "vae", "sigma2": 0.1}, "sigma2 must be left out with model vae, .* got 0.1"),
    ({"model": "cvae"}, "supervised must be true with model cvae, got false"),
    ({"model": "vae", "supervised": True}, "supervised must be false with model vae, got true"),
    ({"model": "vae", "prototype_init": "kmeans++"}, "prototype_init must be left out with"),
    ({"model": "vae", "normalize": True}, "normalize must be left out with model vae"),
    ({"model": "infovae", "divergence": "energy"}, "divergence must be left out with model infova"),
    ({"divergence": "kl"}, "divergence must be mmd2, mmd or energy, got 'kl'"),
    ({"estimator": "unbiased"}, "estimator must be biased unless prior_sampling is iid"),
    ({"conditional": True, "prior_sampling": "iid"}, "conditional must be left out unless"),
    ({"denoise_range": "byte"}, "denoise_range must be unit or signed, got 'byte'"),
    ({"seed": -1}, "seed must be a finite number >= 0"),
    ({"seed": 2**32}, "seed must be at most 4294967295"),
    ({"resume": True, "overwrite": True}, "give resume or overwrite, not both"),
    ({"backend": "fpga"}, "backend must be one of 'auto', .* got 'fpga'"),
    ({"device": "tpu"}, "device must be auto, cpu, cuda, cuda:N or mps, got 'tpu'"),
    ({"device": "cuda:77"}, "device 'cuda:77' is not available here"),
    ({"device": "cpu:1"}, "device 'cpu:1' is not available here"),
    ({"sigma2": 1e-320}, r"sigma2 must lie in what float32 holds, 1.18e-38 to 1.7e\+38, "),
    ({"margin": 1e308}, r"margin must lie in what float32 holds"),
    ({"lr": 1e-320}, "lr must lie in what float32 holds"),
    ({"bandwidth": 1e300}, "bandwidth must lie in what float32 holds"),
    ({"max_steps": 10**30}, "max_steps must be at most 2147483647, got 10"),
    ({"latent_dim": 2**63}, "latent_dim must be at most 2147483647"),
    ({"data": "a\0b"}, r"data must be a path without null characters, got 'a\\x00b'"),
    ({"out": "a\0b"}, "out must be a path without null characters"),
    ({"data_root": "a\ud800"}, r"data_root must be a path that the file system can encode, got"),
    ({"evaluate": "yes"}, "evaluate must be true or false, got 'yes'"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[str(changes) for changes, _ in BAD])
def test_bad_settings_leave_no_folder(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.npz"]


def test_a_missing_backend_leaves_no_folder(tmp_path, monkeypatch):
    for variable in ("fpga", "native"):
        monkeypatch.setenv("CGM_FAST_BACKEND", variable)
        monkeypatch.setattr(
            "cgm_fast.ops.backends._availability", {"native": "gone", "reference": None}
        )
        with pytest.raises(ConfigError, match=r"(?i)backend"):
            run(tmp_path)
    assert not (tmp_path / "run").exists()


BAD_DATA = [
    ({"data": "imagenet"}, "data must be one of"),
    ({"data": "gone.npz"}, "does not exist"),
    ({"data": "mnist"}, "mnist is not in"),
    ({"data": "pictures.npz"}, "no array named 'images'"),
    ({"test_data": "gone.npz"}, "does not exist"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_DATA)
def test_bad_data_leaves_no_folder(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    np.savez("pictures.npz", pictures=np.zeros((3, 8, 8, 1), np.uint8))
    with pytest.raises(DataError, match=message):
        run(tmp_path, data_root="nowhere", **changes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures.npz", "tiny.npz"]


def test_supervised_needs_labels_and_images_need_eight_pixels(tmp_path):
    data = write_npz(tmp_path / "bare.npz", labels=False)
    with pytest.raises(ConfigError, match=r"supervised needs labels, and .*bare\.npz has none"):
        run(tmp_path, data=str(data), supervised=True)
    data = write_npz(tmp_path / "small.npz", side=7)
    with pytest.raises(ConfigError, match="at least 8 x 8 pixels, got 7 x 7"):
        run(tmp_path, data=str(data))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("module", ["safetensors.torch", "tensorboard", "sklearn.cluster"])
def test_missing_packages_are_met_before_anything_is_written(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cgm-fast\[train\]'"):
        run(tmp_path)
    assert not (tmp_path / "run").exists()


def test_an_unwritable_folder(tmp_path):
    config = settings(tmp_path, out=str(tmp_path / "file" / "run"))
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match="could not be made"):
        train(config)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_model_that_sees_labels_needs_those_of_test_images_before_it_is_trained(tmp_path):
    test = write_npz(tmp_path / "test.npz", labels=False)
    options = {"model": "cvae", "supervised": True, "evaluate": True, "test_data": str(test)}
    with pytest.raises(ConfigError, match=r"needs labels of the test images too, and 40 of .*test"):
        run(tmp_path, **options)
    assert not (tmp_path / "run").exists()


def test_a_model_that_sees_labels_needs_every_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = str(tmp_path / "some.npz")
    np.savez(data, images=pixels(), labels=np.arange(40) % 4 - 1)
    with pytest.raises(ConfigError, match=r"a label for each image, and \d+ of those of .*some"):
        run(
            tmp_path, data=data, model="cvae", supervised=True, test_data=str(tmp_path / "tiny.npz")
        )
    assert run(tmp_path, data=data, evaluate=True, max_steps=1).evaluation
