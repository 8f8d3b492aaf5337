"""What is drawn of a trained model, and how it is laid out."""

import dataclasses

import pytest
import torch
from tiny import linear_model, settings

from cgm_fast.cgm.data import load
from cgm_fast.cgm.training import drawing
from cgm_fast.cgm.training.presets import resolve


@pytest.fixture
def config(tmp_path):
    given = settings(tmp_path, supervised=True)
    return resolve(given, load(given.data))


def _recorded_grids(monkeypatch):
    """What would be drawn: (images, columns, row labels) of every grid."""
    grids = []
    monkeypatch.setattr(
        "cgm_fast.cgm.figures.save_grid",
        lambda path, images, columns, row_labels=(), title="": grids.append(
            (images, columns, list(row_labels))
        ),
    )
    return grids


@pytest.mark.parametrize("count", [4, 10, 13])
def test_every_reconstruction_stands_under_its_image(tmp_path, monkeypatch, config, count):
    grids, model = _recorded_grids(monkeypatch), linear_model().eval()
    images = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8)
    drawing.draw_reconstructions(model, images, config, tmp_path / "a.png")
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
    drawing.draw_samples(model, None, config, tmp_path / "a.png")
    ((drawn, columns, labels),) = grids
    assert drawn.shape == (100, 1, 8, 8)
    assert columns == 10
    assert labels == [str(k) for k in range(12) if k not in (5, 6)]


def test_categories_that_are_classes_go_by_name(config):
    data = load(config.data)
    assert drawing.category_names(linear_model(), data, config, [0, 2, 7]) == ["0", "2", "7"]
    named = dataclasses.replace(data, class_names=("cat", "dog", "emu"))
    assert drawing.category_names(linear_model(), named, config, [0, 2, 7]) == [
        "cat",
        "emu",
        "7",
    ]
    free = dataclasses.replace(config, supervised=False)
    assert drawing.category_names(linear_model(), named, free, [0, 2]) == ["0", "2"]
