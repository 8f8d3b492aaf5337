import math

import pytest
import torch

from cgm_fast.cgm.evaluation.probe import PROBES, probe_error


def _two_gaussians(n, distance, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    codes = torch.randn(n, 3, generator=generator)
    codes[:, 1] += distance * labels
    return codes, labels


@pytest.mark.parametrize("kind", PROBES)
def test_separable_codes(kind):
    train, test = _two_gaussians(300, 50.0, 0), _two_gaussians(40, 50.0, 1)
    assert probe_error(kind, *train, *test) == 0
    assert probe_error(kind, *train, test[0], 1 - test[1]) == 1  # judged on the test labels


def test_codes_that_no_line_separates():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(3000, 2, generator=generator)
    labels = (codes[:, 0] * codes[:, 1] > 0).long()
    halves = codes[:2000], labels[:2000], codes[2000:], labels[2000:]
    assert probe_error("linear", *halves) > 0.4
    assert probe_error("mlp", *halves) < 0.05


def test_the_bayes_error_of_two_gaussians():
    bayes = 0.5 * math.erfc(1 / math.sqrt(2))  # Φ(−½ distance)
    n = 6000
    error = probe_error("linear", *_two_gaussians(n, 2.0, 0), *_two_gaussians(n, 2.0, 1))
    assert abs(error - bayes) < 3 * (bayes * (1 - bayes) / n) ** 0.5


def test_codes_are_standardised():
    train, test = _two_gaussians(300, 3.0, 0), _two_gaussians(300, 3.0, 1)
    scale = torch.tensor([1e4, 1e-4, 1.0])
    scaled = [(scale * codes + 7 * scale, labels) for codes, labels in (train, test)]
    # A test code within rounding of the boundary may change sides.
    difference = probe_error("linear", *train, *test) - probe_error(
        "linear", *scaled[0], *scaled[1]
    )
    assert abs(difference) <= 1 / 300
