"""Sums of coefficients, on which the constant part of the loss of a narrow kernel rests."""

import math
from fractions import Fraction

import pytest
import torch

from cgm_fast.ops.mmd.common import Coefficients

wide = torch.float64


def uniform(n, m, estimator):
    if estimator == "biased":
        return Coefficients.of(n, m, None, None, None, 1 / n, 1 / m, 1.0)
    cross = math.sqrt((n - 1) / n) * math.sqrt((m - 1) / m)
    x_scale, y_scale = 1 / math.sqrt(n * (n - 1)), 1 / math.sqrt(m * (m - 1))
    return Coefficients.of(n, m, None, None, None, x_scale, y_scale, cross)


def some(*values):
    return [torch.tensor([value], dtype=wide) for value in values]


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 7), (50, 45), (16384, 10000), (10**6, 3)])
def test_with_no_near_pair_the_unbiased_constant_is_zero(n, m):
    assert uniform(n, m, "unbiased").constant(*some(0, 0, 0)).item() == 0


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 7), (50, 45), (10**6, 3)])
def test_with_no_near_pair_the_biased_constant_is_the_diagonal(n, m):
    expected = float(Fraction(1, n) + Fraction(1, m))
    assert uniform(n, m, "biased").constant(*some(0, 0, 0)).item() == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_where_all_pairs_are_near_nothing_is_added(estimator):
    n, m = 50, 45
    near = some(n * (n - 1), m * (m - 1), 2 * n * m)
    assert uniform(n, m, estimator).constant(*near).item() == 0


@pytest.mark.parametrize("near", [(2, 0, 0), (0, 0, 4), (2000, 10, 6), (2450, 1980, 4400)])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_of_some_near_pairs_it_is_the_sum_over_the_far_ones(near, estimator):
    n, m = 50, 45
    x, y = (
        Fraction(1, k * k) if estimator == "biased" else Fraction(1, k * (k - 1)) for k in (n, m)
    )
    far = n * (n - 1) - near[0], m * (m - 1) - near[1], 2 * n * m - near[2]
    expected = -float(far[0] * x + far[1] * y - far[2] * Fraction(1, n * m))
    found = uniform(n, m, estimator).constant(*some(*near)).item()
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("masses", [(1.0, 1.0), (3.0, 0.5)])
def test_given_weights_leave_what_their_masses_differ_by(masses):
    n, m = 50, 45
    v, w = (torch.rand(1, k, dtype=torch.float32) + 0.5 for k in (n, m))
    v, w = masses[0] * v / v.sum(), masses[1] * w / w.sum()
    ratio = [((k.sum() ** 2 - (k * k).sum()).sqrt() / k.sum()).reshape(1) for k in (v, w)]
    scaled = v / ratio[0], w / ratio[1]
    c = Coefficients.of(n, m, *scaled, ratio[0] * ratio[1], 1.0, 1.0, 1.0)
    found = -c.constant(*some(0, 0, 0)).item()
    if masses[0] == masses[1]:
        assert found == 0
    else:
        assert found == pytest.approx((masses[0] - masses[1]) ** 2, rel=1e-6)
