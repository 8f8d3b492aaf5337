import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import linear_model, run, settings

from cgm_fast.data import DataError, load
from cgm_fast.experiments import run as experiments
from cgm_fast.training.config import resolve
from cgm_fast.training.runs import load_run


@pytest.fixture
def config(tmp_path):
    given = settings(tmp_path, supervised=True)
    return resolve(given, load(given.data))


def _recorded_grids(monkeypatch):
    """What would be drawn: (images, columns, row labels) of every grid."""
    grids = []
    monkeypatch.setattr(
        "cgm_fast.figures.save_grid",
        lambda path, images, columns, row_labels=(), title="": grids.append(
            (images, columns, list(row_labels))
        ),
    )
    return grids


def test_a_finished_run_is_evaluated_and_drawn(tmp_path):
    result = run(tmp_path, evaluate=True, likelihood="gaussian")
    assert result.path == tmp_path / "run"
    assert json.loads((result.path / "evaluation.json").read_text()) == result.evaluation
    assert "bits_per_dim" in result.evaluation["nats_per_image"]["prior_fitted"]
    again = experiments.evaluate_run(result.path)
    assert again == result.evaluation
    assert experiments.evaluate_run(result.path, nll_images=2) != again


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cgm", "vae", "cvae", "infovae", "bir-vae"])
@pytest.mark.parametrize("network", ["dcgan", "resnet", "pixelcnn", "pixelsnail"])
def test_every_model_with_every_network(model, network, tmp_path):
    nets = {"network": network} if network == "resnet" else {}
    nets |= {"decoder": network} if network.startswith("pixel") else {}
    cvae = model == "cvae"
    result = run(tmp_path, model=model, supervised=cvae, evaluate=True, max_steps=2, **nets)
    priors = {"prior_paper", "prior_full"} | ({"prior_fitted"} if model == "cgm" else set())
    assert set(result.evaluation["nats_per_image"]) == priors
    assert ("nominal" in result.evaluation["rate_bits"]) == (model in ("cgm", "bir-vae"))
    assert set(result.evaluation["probe_error"]) == {"linear_r", "linear_z", "mlp_r", "mlp_z"}
    trained, config = load_run(result.path)
    assert config.model == model
    assert trained.generate(2)[0].shape == (2, 1, 8, 8)
    for name in ("samples.png", "reconstructions.png", "latents.png"):
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
    experiments.train(settings(tmp_path, max_steps=1, **changes), warn=texts.append)
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


@pytest.mark.parametrize("count", [4, 10, 13])
def test_every_reconstruction_stands_under_its_image(tmp_path, monkeypatch, config, count):
    grids, model = _recorded_grids(monkeypatch), linear_model().eval()
    images = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8)
    experiments.draw_reconstructions(model, images, config, tmp_path / "a.png")
    ((drawn, columns, labels),) = grids
    assert columns == 10
    assert labels == ["input", "decoded"] * -(-count // 10)
    rows = drawn.split(10)
    assert len(rows) == len(labels)
    assert torch.equal(torch.cat(rows[::2])[:count], images.float() / 255)
    assert torch.equal(torch.cat(rows[1::2])[:count], model.reconstruct(images.float() / 255))
    assert (torch.cat(rows)[20 * (count // 10) + count % 10 : 20 * (count // 10) + 10] == 1).all()


def test_samples_are_a_row_per_category_of_the_ten_most_used(tmp_path, monkeypatch, config):
    grids, model = _recorded_grids(monkeypatch), linear_model(num_prototypes=12).eval()
    model.usage.copy_(torch.arange(12).roll(5) / 66)  # categories 5 and 6 are the rarest
    experiments.draw_samples(model, None, config, tmp_path / "a.png")
    ((drawn, columns, labels),) = grids
    assert drawn.shape == (100, 1, 8, 8)
    assert columns == 10
    assert labels == [str(k) for k in range(12) if k not in (5, 6)]


def test_categories_that_are_classes_go_by_name(config):
    data = load(config.data)
    assert experiments.category_names(linear_model(), data, config, [0, 2, 7]) == ["0", "2", "7"]
    named = experiments.dataclasses.replace(data, class_names=("cat", "dog", "emu"))
    assert experiments.category_names(linear_model(), named, config, [0, 2, 7]) == [
        "cat",
        "emu",
        "7",
    ]
    free = experiments.dataclasses.replace(config, supervised=False)
    assert experiments.category_names(linear_model(), named, free, [0, 2]) == ["0", "2"]


def test_data_of_another_shape_is_refused(tmp_path):
    run(tmp_path, max_steps=1)
    _, config = load_run(tmp_path / "run")
    assert experiments.load_run_data(config).image_shape == (1, 8, 8)
    np.savez(tmp_path / "tiny.npz", images=np.zeros((40, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"run's shape \[1, 8, 8\], got \[3, 8, 8\]"):
        experiments.load_run_data(config)
