import numpy as np
import pytest
import torch

from cgm_fast.data import ImageData
from cgm_fast.evaluation import kernel_distance as module
from cgm_fast.evaluation.kernel_distance import features_of, kernel_distance, train_features


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
