"""Batches: binarisation, dequantisation."""

import pytest
import torch

from cgm_fast.cgm.data import ImageData, draw_once, prepare


def _every_value(copies):
    return torch.arange(256, dtype=torch.uint8).repeat(copies, 1, 1).reshape(copies, 1, 16, 16)


def test_dynamic_binarisation_has_the_grey_values_as_means():
    n = 4000
    found = prepare(_every_value(n), "dynamic", False, torch.Generator().manual_seed(0))
    assert set(found.unique().tolist()) == {0.0, 1.0}
    p = torch.arange(256).double() / 255
    mean = found.double().mean(0).flatten()
    # Of 256 means none should lie 4.5 standard errors off (once in 600 such tests).
    assert ((mean - p).abs() <= 4.5 * (p * (1 - p) / n).sqrt()).all()


def test_other_ways_to_prepare():
    images = _every_value(1)
    assert prepare(images, "threshold", False).flatten().tolist() == [0.0] * 128 + [1.0] * 128
    assert torch.equal(prepare(images, "none", False), images.float() / 255)
    spread = prepare(_every_value(500), "none", True)
    low = _every_value(500).float() / 256
    assert (spread >= low).all()
    assert (spread <= low + 1 / 256).all()
    share = (256 * (spread - low)).double()  # uniform: mean ½, variance 1/12
    assert abs(float(share.mean()) - 0.5) < 3 / (12 * share.numel()) ** 0.5
    with pytest.raises(ValueError, match="binarization must be one of none, dynamic, static"):
        prepare(images, "fixed", False)


@pytest.mark.parametrize(("binarization", "continuous"), [("dynamic", False), ("none", True)])
def test_draws_depend_on_the_generator_alone(binarization, continuous):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return prepare(_every_value(2), binarization, continuous, generator)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_pixels_drawn_once_are_the_same_at_every_visit():
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(500, -1, -1, -1)
    data = ImageData("x", grey, None, grey[:3], None, ())
    drawn = draw_once(data)
    assert drawn.train.unique().tolist() == [0, 255]
    assert torch.equal(drawn.train, draw_once(data).train)
    x = prepare(drawn.train, "static", False)
    assert torch.equal(x, prepare(drawn.train, "static", False))
    share = x.mean(0).flatten()
    expected = torch.arange(256) / 255
    assert bool(((share - expected).abs() <= 5 * (expected * (1 - expected) / 500).sqrt()).all())
