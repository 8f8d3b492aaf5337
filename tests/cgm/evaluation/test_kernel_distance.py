import dataclasses

import numpy as np
import pytest
import torch

from cgm_fast.cgm.data import ImageData
from cgm_fast.cgm.evaluation import kernel_distance as module
from cgm_fast.cgm.evaluation.kernel_distance import features_of, kernel_distance, train_features


def gaussians(n, mean, seed):
    draw = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
    return draw + torch.tensor([mean, 0, 0, 0, 0])


def test_alike_is_zero_in_the_mean():
    found = [kernel_distance(gaussians(900, 0, s), gaussians(700, 0, s + 50)) for s in range(12)]
    values = torch.tensor([each.value for each in found], dtype=torch.float64)
    assert abs(float(values.mean())) < 3 * float(values.std()) / len(values) ** 0.5
    assert (values < 0).any()  # unbiased


def test_the_value_is_that_of_a_double_loop(monkeypatch):
    monkeypatch.setattr(module, "SUBSETS", 2)
    x, y = gaussians(30, 0, 1), gaussians(30, 1, 2)  # subsets are then the whole, in some order
    found = kernel_distance(x, y)
    median = np.median(torch.pdist(x).sort().values[: 30 * 29 // 2].numpy())

    def k(a, b):
        square = float((a - b).square().sum())
        scales = (0.5, 1.0, 2.0)
        return sum(np.exp(-square / (2 * (s * median) ** 2)) for s in scales) / len(scales)

    def mean(a, b, same):
        terms = [k(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if not (same and i == j)]
        return sum(terms) / len(terms)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert found.value == pytest.approx(expected, rel=0.01)  # medians of an even number differ
    assert found.standard_error < 1e-6


def test_it_grows_with_the_distance_and_says_how_sure_it_is():
    x = gaussians(1500, 0, 3)
    near, far = (kernel_distance(x, gaussians(1500, shift, 4)) for shift in (0.3, 1.0))
    assert 5 * near.standard_error < near.value
    assert near.value + 5 * near.standard_error < far.value


def a_set(labels=True):
    images = torch.randint(60, (200, 1, 8, 8), dtype=torch.uint8)
    own = torch.arange(200) % 3
    images[torch.arange(200), 0, own] += 150  # a bright row tells the class
    return ImageData(
        "tiny", images, own if labels else None, images[:50], own[:50] if labels else None, "abc"
    )


@pytest.mark.slow
def test_features_tell_classes():
    data = a_set()
    state = torch.get_rng_state()
    features = train_features(data, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    found = features_of(features, data.test)
    assert torch.equal(found, features_of(features, data.test.float() / 255))
    centres = torch.stack([found[data.test_labels == k].mean(0) for k in range(3)])
    assert torch.equal(torch.cdist(found, centres).argmin(1), data.test_labels)
    again = features_of(train_features(data, torch.device("cpu")), data.test)
    torch.testing.assert_close(found, again)


def test_features_need_labels():
    with pytest.raises(ValueError, match="features need labels, and tiny has none"):
        train_features(a_set(labels=False), torch.device("cpu"))


def test_images_without_a_label_are_not_learned_from(monkeypatch):
    monkeypatch.setattr(module, "STEPS", 20)
    data = a_set()
    some = data.train_labels.clone()
    some[:100] = -1
    found = train_features(dataclasses.replace(data, train_labels=some), torch.device("cpu"))
    half = dataclasses.replace(data, train=data.train[100:], train_labels=some[100:])
    expected = train_features(half, torch.device("cpu"))
    assert torch.equal(features_of(found, data.test), features_of(expected, data.test))


def test_features_that_most_images_share():
    """The median distance is 0; the scale is that of those that differ."""
    x = gaussians(40, 0, 1)
    x[:30] = 0
    apart = torch.pdist(x)
    assert float(apart.median()) == 0
    found = kernel_distance(x, gaussians(40, 1, 2))
    assert 0 < found.value < 2
    assert kernel_distance(x, x).value == pytest.approx(0, abs=0.05)
    # In units of the features: a scale without one would give another value.
    assert kernel_distance(100 * x, 100 * gaussians(40, 1, 2)).value == pytest.approx(
        found.value, rel=1e-3
    )


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.ones(5, 2), torch.zeros(5, 2), "x must hold different features, got 5 equal ones"),
        (
            torch.ones(1, 2),
            torch.zeros(5, 2),
            r"x must be \[n, d\] with n .*2, got \[1, 2\]",
        ),
        (
            torch.rand(5, 2),
            torch.zeros(0, 2),
            r"y must be \[n, d\] with n .*2, got \[0, 2\]",
        ),
        (torch.rand(5, 2), torch.zeros(5), r"y must be \[n, d\] with n .*2, got \[5\]"),
    ],
)
def test_features_without_a_distance(x, y, message):
    with pytest.raises(ValueError, match=message):
        kernel_distance(x, y)


def test_the_default_device_is_not_asked():
    """One of "meta" stands for a GPU, where the generators of a CPU are refused."""
    x, y = gaussians(30, 0, 1), gaussians(30, 1, 2)
    with torch.device("meta"):
        found = kernel_distance(x, y)
    assert found == kernel_distance(x, y)
