import json
import re

import numpy as np
import pytest
from PIL import Image
from tiny import run, settings

from cgm_fast.cgm.data import DataError
from cgm_fast.cgm.training import pipeline
from cgm_fast.cgm.training.runs import load_run


def test_a_finished_run_is_evaluated_and_drawn(tmp_path):
    result = run(tmp_path, evaluate=True, likelihood="gaussian")
    assert result.path == tmp_path / "run"
    assert json.loads((result.path / "evaluation.json").read_text()) == result.evaluation
    assert "bits_per_dim" in result.evaluation["nats_per_image"]["prior_fitted"]
    again = pipeline.evaluate_run(result.path)
    assert again == result.evaluation
    assert pipeline.evaluate_run(result.path, nll_images=2) != again


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cgm", "vae", "cvae", "infovae", "bir-vae"])
@pytest.mark.parametrize("network", ["dcgan", "resnet", "pixelcnn", "pixelsnail"])
def test_every_model_with_every_network(model, network, tmp_path):
    nets = {"network": network} if network == "resnet" else {}
    nets |= {"decoder": network} if network.startswith("pixel") else {}
    cvae, drawn = model == "cvae", model == "cgm" or network == "dcgan"  # each of both is
    result = run(
        tmp_path, model=model, supervised=cvae, evaluate=True, pictures=drawn, max_steps=2, **nets
    )
    priors = {"prior_paper", "prior_full"} | ({"prior_fitted"} if model == "cgm" else set())
    assert set(result.evaluation["nats_per_image"]) == priors
    assert ("nominal" in result.evaluation["rate_bits"]) == (model in ("cgm", "bir-vae"))
    assert set(result.evaluation["probe_error"]) == {"linear_r", "linear_z", "mlp_r", "mlp_z"}
    trained, config = load_run(result.path)
    assert config.model == model
    assert trained.generate(2)[0].shape == (2, 1, 8, 8)
    for name in ("samples.png", "reconstructions.png", "latents.png") if drawn else ():
        with Image.open(result.path / name) as picture:
            picture.verify()


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"supervised": True, "latent_dim": 2, "num_prototypes": 12}, True),
        ({"supervised": True, "latent_dim": 12, "num_prototypes": 3}, False),
        ({"latent_dim": 2, "num_prototypes": 12}, False),  # which begin at codes
        ({"supervised": True, "latent_dim": 2, "num_prototypes": 12, "margin": 0.0}, False),
        ({"supervised": True, "latent_dim": 2, "descriptor": "batch_mean"}, False),
        ({"model": "vae", "latent_dim": 2}, False),
    ],
)
def test_a_warning_where_prototypes_begin_within_margins(tmp_path, changes, warned):
    texts = []
    pipeline.train(settings(tmp_path, max_steps=1, **changes), warn=texts.append)
    assert bool(texts) == warned
    if warned:
        assert "12 categories are many for 2 dimensions" in texts[0]
        assert re.search(r"begin at squared distances of [0-9.]+ on average, within the", texts[0])


@pytest.mark.parametrize("decoder", ["same", "pixelcnn"])
def test_a_run_without_pictures_draws_none(decoder, tmp_path):
    """And an autoregressive decoder, a pass for each pixel, has no reconstructions to measure."""
    result = run(tmp_path, evaluate=True, pictures=False, decoder=decoder, max_steps=1)
    assert not list(result.path.glob("*.png"))
    assert ("mean_squared_error" in result.evaluation) == (decoder == "same")


def test_a_single_test_image_and_a_single_class_will_do(tmp_path):
    np.savez(tmp_path / "few.npz", images=np.full((12, 8, 8, 1), 9, np.uint8), labels=[0] * 12)
    result = run(tmp_path, data=str(tmp_path / "few.npz"), evaluate=True, prototype_init="xavier")
    written = json.loads((result.path / "evaluation.json").read_text())
    assert written["test_images"] == 1
    assert written["nats_per_image"]["prior_paper"]["nll_standard_error"] is None
    with Image.open(result.path / "latents.png") as picture:
        picture.verify()


def test_data_of_another_shape_is_refused(tmp_path):
    run(tmp_path, max_steps=1)
    _, config = load_run(tmp_path / "run")
    assert pipeline.load_run_data(config).image_shape == (1, 8, 8)
    np.savez(tmp_path / "tiny.npz", images=np.zeros((40, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"run's shape \[1, 8, 8\], got \[3, 8, 8\]"):
        pipeline.load_run_data(config)
