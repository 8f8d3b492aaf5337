"""The end of a pass: what turns sums over near and far pairs into L and the block sums."""

import importlib
from fractions import Fraction

import pytest
import torch

from cgm_fast.ops.mmd.common import PairSums, pair_masses, relation_of
from cgm_fast.ops.mmd.problem import Problem, Wanted
from cgm_fast.ops.mmd.reference import fwd as reference
from cgm_fast.testing import LOSS_TOLERANCE, assert_gradient_close, assert_loss_close

wide = torch.float64


def relations(n, m, estimator):
    less = 0 if estimator == "biased" else 1
    return 1 / (n * (n - less)), -1 / (n * m), -1 / (n * m), 1 / (m * (m - less))


def two_samples(n, m, estimator, weights=None, relation=None):
    nothing = torch.empty(1, 1, 0)  # nothing is read but sizes
    static = ((n, m), relations(n, m, estimator), (1.0,), (1.0,), "gaussian", False)
    return Problem(nothing, None, weights, relation, None, *static)


def table(x, across, y):
    """[1, 1, 2, 2] of what pairs within x, ordered pairs across one way, and within y weigh."""
    return torch.tensor([[[[x, across], [across, y]]]], dtype=wide)


def constant(problem, near, far=None):
    """What PairSums adds to a sum of zero."""
    masses = pair_masses(problem, wide)
    far = masses[:, None] - near if far is None else far
    sums = PairSums(torch.zeros(1, 2, 2, dtype=wide), near, far)
    return sums.close(problem, relation_of(problem, wide), masses)[0].item()


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 7), (50, 45), (16384, 10000), (10**6, 3)])
def test_with_no_near_pair_the_unbiased_constant_is_zero(n, m):
    assert constant(two_samples(n, m, "unbiased"), table(0, 0, 0)) == 0


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 7), (50, 45), (10**6, 3)])
def test_with_no_near_pair_the_biased_constant_is_the_diagonal(n, m):
    expected = float(Fraction(1, n) + Fraction(1, m))
    assert constant(two_samples(n, m, "biased"), table(0, 0, 0)) == pytest.approx(
        expected, rel=1e-9
    )


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_where_all_pairs_are_near_nothing_is_added(estimator):
    n, m = 50, 45
    near = table(n * (n - 1), n * m, m * (m - 1))
    assert constant(two_samples(n, m, estimator), near) == 0


@pytest.mark.parametrize("near", [(2, 0, 0), (0, 2, 0), (2000, 3, 10), (2450, 2200, 1980)])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_of_some_near_pairs_it_is_the_sum_over_the_far_ones(near, estimator):
    n, m = 50, 45
    x, y = (
        Fraction(1, k * k) if estimator == "biased" else Fraction(1, k * (k - 1)) for k in (n, m)
    )
    far = n * (n - 1) - near[0], n * m - near[1], m * (m - 1) - near[2]
    expected = -float(far[0] * x + far[2] * y - 2 * far[1] * Fraction(1, n * m))
    found = constant(two_samples(n, m, estimator), table(*near))
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("masses", [(1.0, 1.0), (3.0, 0.5)])
def test_given_weights_leave_what_their_masses_differ_by(masses):
    n, m = 50, 45
    v, w = (torch.rand(1, k, dtype=torch.float32) + 0.5 for k in (n, m))
    v, w = masses[0] * v / v.sum(), masses[1] * w / w.sum()
    mass, rest = zip(
        *((k.double().sum(), k.double().sum() ** 2 - (k.double() ** 2).sum()) for k in (v, w)),
        strict=True,
    )
    within = [of * of / less for of, less in zip(mass, rest, strict=True)]
    relation = torch.tensor([[[within[0], -1.0], [-1.0, within[1]]]], dtype=wide)
    problem = two_samples(n, m, "unbiased", torch.cat((v, w), 1), relation)
    every = pair_masses(problem, wide)[:, None]
    found = -constant(problem, torch.zeros(1, 1, 2, 2, dtype=wide), every)
    assert found == pytest.approx((masses[0] - masses[1]) ** 2, rel=1e-6, abs=1e-13)


def test_of_given_weights_far_pairs_are_added_up():
    """Near ones leave of all what their sums are rounded by, and nothing where all are near."""
    n, m = 50, 45
    weights = torch.cat([torch.rand(1, k, dtype=torch.float32) + 0.5 for k in (n, m)], 1)
    problem = two_samples(n, m, "biased", weights)
    near = pair_masses(problem, wide)[:, None].float().double() * (1 + 1e-7)
    assert constant(problem, near, table(0, 0, 0)) == 0
    far = table(1.0, 1.5, 2.0)
    of_far = (relation_of(problem, wide) * far[:, 0]).sum().item()
    assert constant(problem, near, far) == pytest.approx(-of_far, rel=1e-12)


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
    w = torch.ones(len(y)) if w is None else w
    a = torch.cat((v.double(), -y_scale * w.double()))
    z = torch.cat((x, y)).double()
    less_one = torch.expm1(-(z[:, None] - z).square().sum(-1) / (2 * h))
    # The op itself: beside it `mmd` adds what the weights' masses differ by.
    tensors = [t.to(device) for t in (x, y, torch.cat((v, w)))]
    relations = (1.0, -y_scale, -y_scale, y_scale**2)
    static = ((len(x), len(y)), relations, (h,) * scales, (1 / scales,) * scales, "gaussian", False)
    implementation = importlib.import_module(f"cgm_fast.ops.mmd.{backend}")
    problem = Problem(*tensors, None, None, *static)
    loss, _, of_weights, *_ = implementation.fwd(problem, Wanted(0, 0, True, False, False))
    total = a.abs() @ less_one.abs() @ a.abs()
    assert_loss_close(loss.cpu(), a @ less_one @ a, total, 0.1 * LOSS_TOLERANCE)
    if case == "all_near":
        signs = torch.cat((torch.ones(len(x)), torch.full((len(y),), -y_scale))).double()
        assert_gradient_close(of_weights.cpu(), 2 * signs * (less_one @ a), 1e-5)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weights"])
def test_kernels_that_weigh_unlike(weighted, backend, device):
    """The op takes them, though api.py makes all alike: near pairs cannot be counted together."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, 5, generator=generator).to(device) for rows in (40, 37))
    v, w = (torch.rand(rows, generator=generator).to(device) for rows in (40, 37))

    def call(dtype, implementation):
        weights = torch.cat((v, w)).to(dtype) if weighted else None
        x_scale, y_scale = 1 / 40, 1 / 37
        relations = (x_scale**2, -1.25 * x_scale * y_scale, -1.25 * x_scale * y_scale, y_scale**2)
        static = ((40, 37), relations, (1.0, 9.0), (0.25, 1.5), "gaussian", False)
        problem = Problem(x.to(dtype), y.to(dtype), weights, None, None, *static)
        return implementation(problem, Wanted(0, 77, weighted, True, True))

    implementation = importlib.import_module(f"cgm_fast.ops.mmd.{backend}")
    found, wanted = call(torch.float32, implementation.fwd), call(torch.float64, reference)
    for value, truth in zip(found, wanted, strict=True):
        if truth is None:
            assert value is None
            continue
        error = torch.linalg.vector_norm(value.double() - truth)
        assert error <= 1e-5 * torch.linalg.vector_norm(truth)
