"""Runs on images of one's own: grey folders, images without labels, broken ones."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SIDE, linear_model, pixels, run, settings, write_pictures

from cgm_fast.cgm import figures
from cgm_fast.cgm.cli import main
from cgm_fast.cgm.data import UNLABELLED, load
from cgm_fast.cgm.evaluation.codes import encode_images, labelled
from cgm_fast.cgm.training import pipeline
from cgm_fast.cgm.training.config import ConfigError
from cgm_fast.cgm.training.runs import load_run, read_config


def grey_folder(path):
    for i, image in enumerate(pixels(40, side=12)):
        (path / f"c{i % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path / f"c{i % 3}" / f"{i}.png")
    return str(path)


def test_a_grey_model_of_a_grey_folder(tmp_path, capsys):
    data = grey_folder(tmp_path / "images")
    (tmp_path / "images" / "c0" / "0.png").write_bytes(b"broken")
    options = {"data": data, "image_size": SIDE, "skip_broken": True, "evaluate": True}
    run(tmp_path, probes=False, **options)
    config = read_config(tmp_path / "run")
    assert config.image_shape == (1, SIDE, SIDE)
    # What its reconstruct takes: a colour image of another size, a flat folder, in its order.
    write_pictures(tmp_path / "flat", {"only": 3}, size=(30, 20))
    shown = []
    flat = tmp_path / "flat" / "only"
    for source in (flat / "1.png", flat, tmp_path / "images"):
        out = tmp_path / "out.png"
        arguments = ["reconstruct", str(tmp_path / "run"), "--data", str(source), "--count", "3"]
        assert main([*arguments, "--out", str(out), "--skip-broken", "--device", "cpu"]) == 0
        shown.append(out.read_bytes())
    assert len(set(shown)) == 3
    capsys.readouterr()
    assert main([*arguments, "--out", str(out), "--device", "cpu"]) == 1
    assert "0.png cannot be read as an image" in capsys.readouterr().err


def test_channels_can_be_chosen_and_stay(tmp_path):
    data = grey_folder(tmp_path / "images")
    run(tmp_path, data=data, image_size=SIDE, channels=3)
    config = read_config(tmp_path / "run")
    assert config.image_shape == (3, SIDE, SIDE)
    assert pipeline.load_run_data(config).image_shape == (3, SIDE, SIDE)
    # Before there was the choice, all folders were coloured.
    file = tmp_path / "run" / "config.json"
    values = json.loads(file.read_text())
    del values["channels"]
    file.write_text(json.dumps(values))
    config = read_config(tmp_path / "run")
    assert pipeline.load_run_data(config).image_shape == (3, SIDE, SIDE)
    run(tmp_path, data=data, resume=True, max_steps=12)


def test_what_was_read_is_said_once(tmp_path):
    said = []
    data = grey_folder(tmp_path / "images")
    pipeline.train(settings(tmp_path, data=data, image_size=SIDE), note=said.append)
    assert said == [f"{data}: 40 images of 3 classes (c0, c1, c2), grey, 8 x 8 pixels"]


def some_labels(path, labels=None):
    images = pixels()
    labels = np.where(np.arange(40) % 4 == 0, UNLABELLED, np.arange(40) % 3)
    np.savez(path, images=images, labels=labels)
    return str(path)


def test_cgm2_with_some_labels(tmp_path):
    """Trained, evaluated by the labels that there are, and drawn."""
    data = some_labels(tmp_path / "some.npz")
    evaluation = run(tmp_path, data=data, supervised=True, evaluate=True).evaluation
    model, config = load_run(tmp_path / "run", torch.device("cpu"))
    images = load(data)
    assert (images.test_labels == UNLABELLED).any()
    r = encode_images(model, images.test, config.binarization, config.seed + 1)
    known = images.test_labels != UNLABELLED
    wrong = (model.assign(r) != images.test_labels)[known].double().mean()
    assert evaluation["nearest_prototype_error"] == pytest.approx(float(wrong))
    assert set(evaluation["probe_error"]) == {"linear_r", "mlp_r", "linear_z", "mlp_z"}
    assert "nll_given_category" not in evaluation["nats_per_image"]["prior_paper"]
    assert sum(evaluation["test_usage"]) == len(images.test)


def test_labels_with_gaps(tmp_path):
    """As many categories as there are classes, of the labels' names."""
    labels = np.array([7, 9, 100])[np.arange(40) % 3]
    np.savez(tmp_path / "gaps.npz", images=pixels(), labels=labels)
    data = str(tmp_path / "gaps.npz")
    with pytest.raises(ConfigError, match="at least the number of classes 3 with supervised, got"):
        run(tmp_path, data=data, supervised=True, num_prototypes=2)
    evaluation = run(tmp_path, data=data, supervised=True, evaluate=True, probes=False).evaluation
    assert len(evaluation["test_usage"]) == 3


def test_a_cvae_needs_every_label(tmp_path):
    data = some_labels(tmp_path / "some.npz")
    with pytest.raises(ConfigError, match=r"cvae needs (a label for each|labels of the test)"):
        run(tmp_path, data=data, supervised=True, model="cvae")


def test_labelled():
    labels = torch.tensor([2, -1, 0])
    known, rows = labelled(labels, torch.tensor([[1.0], [2.0], [3.0]]))
    assert known.tolist() == [2, 0]
    assert rows.tolist() == [[1.0], [3.0]]


def test_codes_without_a_label_are_drawn_so(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    r = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    labels = torch.tensor([1, -1, 0])
    figures.save_latents(tmp_path / "a.png", r, torch.zeros(2, 2), labels, ("cat", "dog"))
    legend = drawn[0].axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["no label", "cat", "dog"]


def test_the_default_device_is_not_asked(tmp_path, monkeypatch):
    """One of "meta", whose tensors hold nothing, stands for a GPU's."""
    build = pipeline.build_model

    def on_the_cpu(config):
        with torch.device("cpu"):
            return build(config)

    monkeypatch.setattr(pipeline, "build_model", on_the_cpu)
    expected = run(tmp_path, evaluate=True, out=str(tmp_path / "a")).evaluation
    with torch.device("meta"):
        found = run(tmp_path, evaluate=True, out=str(tmp_path / "b")).evaluation
    assert found == expected
    assert linear_model().usage.device.type == "cpu"


@pytest.mark.parametrize("options", [{}, {"supervised": True}, {"probes": False}])
def test_labels_that_no_test_image_has(tmp_path, options):
    images, labels = pixels(40), np.arange(40) % 3
    np.savez(tmp_path / "whole.npz", images=images, labels=np.arange(40))
    aside = load(str(tmp_path / "whole.npz")).test_labels
    labels[aside.numpy()] = UNLABELLED
    np.savez(tmp_path / "some.npz", images=images, labels=labels)
    run(tmp_path, data=str(tmp_path / "some.npz"), evaluate=True, **options)
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert "clustering" not in found
    assert "probe_error" not in found
