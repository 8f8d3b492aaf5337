import math

import torch

from cgm_fast.evaluation.probe import linear_probe_error


def _two_gaussians(n, distance, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    codes = torch.randn(n, 3, generator=generator)
    codes[:, 1] += distance * labels
    return codes, labels


def test_separable_codes():
    train, test = _two_gaussians(60, 50.0, 0), _two_gaussians(40, 50.0, 1)
    assert linear_probe_error(*train, *test) == 0
    assert linear_probe_error(*train, test[0], 1 - test[1]) == 1  # judged on the test labels


def test_the_bayes_error_of_two_gaussians():
    bayes = 0.5 * math.erfc(1 / math.sqrt(2))  # Φ(−½ distance)
    n = 6000
    error = linear_probe_error(*_two_gaussians(n, 2.0, 0), *_two_gaussians(n, 2.0, 1))
    assert abs(error - bayes) < 3 * (bayes * (1 - bayes) / n) ** 0.5


def test_codes_are_standardised():
    train, test = _two_gaussians(300, 3.0, 0), _two_gaussians(300, 3.0, 1)
    scale = torch.tensor([1e4, 1e-4, 1.0])
    scaled = [(scale * codes + 7 * scale, labels) for codes, labels in (train, test)]
    # A test code within rounding of the boundary may change sides.
    difference = linear_probe_error(*train, *test) - linear_probe_error(*scaled[0], *scaled[1])
    assert abs(difference) <= 1 / 300
