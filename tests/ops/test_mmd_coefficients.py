"""Sums of coefficients, on which the constant part of the loss of a narrow kernel rests."""

import importlib
import math
from fractions import Fraction

import pytest
import torch

from cgm_fast.ops.mmd.common import Coefficients
from cgm_fast.testing import LOSS_TOLERANCE, assert_gradient_close, assert_loss_close

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
    assert uniform(n, m, "unbiased").constant(some(0, 0, 0)).item() == 0


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 7), (50, 45), (10**6, 3)])
def test_with_no_near_pair_the_biased_constant_is_the_diagonal(n, m):
    expected = float(Fraction(1, n) + Fraction(1, m))
    assert uniform(n, m, "biased").constant(some(0, 0, 0)).item() == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_where_all_pairs_are_near_nothing_is_added(estimator):
    n, m = 50, 45
    near = some(n * (n - 1), m * (m - 1), 2 * n * m)
    assert uniform(n, m, estimator).constant(near).item() == 0


@pytest.mark.parametrize("near", [(2, 0, 0), (0, 0, 4), (2000, 10, 6), (2450, 1980, 4400)])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_of_some_near_pairs_it_is_the_sum_over_the_far_ones(near, estimator):
    n, m = 50, 45
    x, y = (
        Fraction(1, k * k) if estimator == "biased" else Fraction(1, k * (k - 1)) for k in (n, m)
    )
    far = n * (n - 1) - near[0], m * (m - 1) - near[1], 2 * n * m - near[2]
    expected = -float(far[0] * x + far[1] * y - far[2] * Fraction(1, n * m))
    found = uniform(n, m, estimator).constant(some(*near)).item()
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("masses", [(1.0, 1.0), (3.0, 0.5)])
def test_given_weights_leave_what_their_masses_differ_by(masses):
    n, m = 50, 45
    v, w = (torch.rand(1, k, dtype=torch.float32) + 0.5 for k in (n, m))
    v, w = masses[0] * v / v.sum(), masses[1] * w / w.sum()
    ratio = [((k.sum() ** 2 - (k * k).sum()).sqrt() / k.sum()).reshape(1) for k in (v, w)]
    scaled = v / ratio[0], w / ratio[1]
    c = Coefficients.of(n, m, *scaled, ratio[0] * ratio[1], 1.0, 1.0, 1.0)
    found = -c.constant(some(0, 0, 0), (c.x, c.y, c.across)).item()
    if masses[0] == masses[1]:
        assert found == 0
    else:
        assert found == pytest.approx((masses[0] - masses[1]) ** 2, rel=1e-6)


def test_of_given_weights_far_pairs_are_added_up():
    """Near ones leave of all what their sums are rounded by, and nothing where all are near."""
    n, m = 50, 45
    weights = [torch.rand(1, k, dtype=torch.float32) + 0.5 for k in (n, m)]
    c = Coefficients.of(n, m, *weights, None, 1 / n, 1 / m, 1.0)
    near = [torch.as_tensor(of).float().double() * (1 + 1e-7) for of in (c.x, c.y, c.across)]
    assert c.constant(near, some(0, 0, 0)).item() == 0
    far = some(1.0, 2.0, 3.0)
    assert c.constant(near, far).item() == -c.add(1.0, 2.0, 3.0)


def given_weights(case, one_sided):
    """Samples, their weights and the squared bandwidth, where few pairs are far, or none."""
    generator = torch.Generator().manual_seed(1)
    n, m = (60, 50) if case == "all_near" else (400, 400)
    x, y = (torch.randn(k, 8, generator=generator) for k in (n, m))
    y += 0.1
    if case == "outlier":
        x, y = 0.002 * x, 0.002 * y
        x[0] += 30
    weights = [torch.rand(k, generator=generator) + 0.2 for k in (n, m)]
    weights = [w / w.sum() for w in weights]
    return x, y, weights[0], None if one_sided else weights[1], 4000.0 if n < 100 else 1.0


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("scales", [1, 2])
@pytest.mark.parametrize("one_sided", [False, True], ids=["both", "x"])
@pytest.mark.parametrize("case", ["all_near", "outlier"])
def test_given_weights_do_not_leave_the_rounding_of_all_pairs(
    case, one_sided, scales, backend, device
):
    x, y, v, w, h = given_weights(case, one_sided)
    y_scale = 1 / len(y) if one_sided else 1.0
    a = torch.cat((v.double(), -y_scale * (torch.ones(len(y)) if w is None else w).double()))
    z = torch.cat((x, y)).double()
    less_one = torch.expm1(-(z[:, None] - z).square().sum(-1) / (2 * h))
    on_device = [None if t is None else t.to(device) for t in (x, y, v, w)]
    # The op itself: beside it `mmd` adds what the weights' masses differ by.
    function = importlib.import_module(f"cgm_fast.ops.mmd.{backend}").mmd_fwd
    loss, _, grad_a, _ = function(
        *on_device, None, None, [h] * scales, [1 / scales] * scales, 1.0, y_scale, 1.0,
        0, 0, True, False,
    )  # fmt: skip
    total = a.abs() @ less_one.abs() @ a.abs()
    assert_loss_close(loss.cpu(), a @ less_one @ a, total, 0.1 * LOSS_TOLERANCE)
    if case == "all_near":
        assert_gradient_close(grad_a.cpu(), 2 * less_one @ a, 1e-5)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weights"])
def test_kernels_that_weigh_unlike(weighted, backend, device):
    """The op takes them, though api.py makes all alike: near pairs cannot be counted together."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, 5, generator=generator).to(device) for rows in (40, 37))
    v, w = (torch.rand(rows, generator=generator).to(device) for rows in (40, 37))

    def call(dtype, name):
        tensors = [tensor.to(dtype) for tensor in (x, y, v, w)]
        given = tensors[2:] if weighted else [None, None]
        return torch.ops.cgm_fast.mmd_fwd(
            *tensors[:2], *given, None, None, [1.0, 9.0], [0.25, 1.5],
            1 / 40, 1 / 37, 1.25, 0, 77, weighted, True, name,
        )  # fmt: skip

    found, wanted = call(torch.float32, backend), call(torch.float64, "reference")
    for value, truth in zip(found, wanted, strict=True):
        error = torch.linalg.vector_norm(value.double() - truth)
        assert error <= 1e-5 * torch.linalg.vector_norm(truth)
