"""Kernels so narrow that all k between rows are small: the loss is what is left of them.

Of the unbiased estimator nothing else remains. Sums of k − 1, which suit wide kernels, would leave
the rounding of 1 − 1 there: 1e-8 or more, and a permutation test that never rejects.
"""

import pytest
import torch

from cgm_fast import mmd
from cgm_fast.testing import (
    assert_gradient_close,
    assert_loss_close,
    derivatives,
    mmd_formula,
    mmd_magnitude,
    sample_weights,
)

# That a kernel is so narrow is said once; here it is meant.
pytestmark = pytest.mark.filterwarnings("ignore::cgm_fast.BandwidthWarning")


def unit_samples(n, m, d, device, *, batch=None, seed=0):
    """Standard normal ones of the same distribution."""
    generator = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)
    return [torch.randn(*lead, rows, d, generator=generator).to(device) for rows in (n, m)]


# d, bandwidths, and about what Σ|c|k comes to with 50 and 45 rows.
CASES = {
    "1e-15": (64, [1.0], 1e-15),
    "1e-9": (64, [1.4], 1e-9),
    "1e-4": (64, [2.0], 1e-4),
    "few_features": (10, [0.4], 1e-5),
    "many_features": (300, [4.0], 1e-6),
    "two_bandwidths": (64, [1.5, 2.0], 1e-4),
}


def contract(x, y, sigma, backend, **options):
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    truth = mmd_formula(x, y, sigma=sigma, estimator="unbiased", **wide)
    magnitude = mmd_magnitude(x, y, sigma=sigma, estimator="unbiased", **wide)
    loss = mmd(x, y, bandwidth=sigma, estimator="unbiased", backend=backend, **options)
    return loss, truth, magnitude


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [None, 3], ids=["single", "batch"])
def test_the_unbiased_loss_of_a_narrow_kernel(case, batch, backend, device):
    d, sigma, size = CASES[case]
    x, y = unit_samples(50, 45, d, device, batch=batch)
    loss, truth, magnitude = contract(x, y, sigma, backend)
    assert 0.01 * size < float(magnitude.max()) < 100 * size
    assert_loss_close(loss, truth, magnitude)


@pytest.mark.parametrize("sizes", [(33, 47), (2, 3), (2, 90)])
def test_the_coefficients_cancel_for_any_sizes(sizes, backend, device):
    # All k are zero, and so is the loss: exactly, for the constant part is.
    x, y = unit_samples(*sizes, 64, device)
    loss = mmd(x, y, bandwidth=0.01, estimator="unbiased", backend=backend)
    assert float(loss) == 0


def test_a_few_near_pairs_among_far_ones(backend, device):
    """Duplicates have k = 1 exactly, and weigh what the estimator gives them."""
    x, y = unit_samples(40, 30, 64, device)
    x[1], y[3], y[5] = x[0], x[2], y[4]
    loss, truth, magnitude = contract(x, y, [1.0], backend)
    assert 1e-4 < abs(float(truth)) < 1e-2
    assert_loss_close(loss, truth, magnitude)


@pytest.mark.parametrize("given", ["both", "x"])
def test_weights_of_equal_mass_cancel_to_their_rounding(given, backend, device):
    x, y = unit_samples(50, 45, 64, device)
    options = {"x_weights": sample_weights(50, device=device, seed=1)}
    if given == "both":
        options["y_weights"] = sample_weights(45, device=device, seed=2)
    loss, truth, magnitude = contract(x, y, [2.0], backend, **options)
    assert 1e-5 < float(magnitude) < 1e-3
    # (Σv − Σw)², of weights that are rounded to sum to 1, is not among the terms.
    assert abs(float(loss) - float(truth)) <= 1e-6 * float(magnitude) + 1e-13


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_gradients_of_a_narrow_kernel(estimator, backend, device):
    x, y = unit_samples(50, 45, 64, device)

    def call(x, y):
        return mmd(x, y, bandwidth=1.5, estimator=estimator, backend=backend)

    def formula(x, y):
        return mmd_formula(x, y, sigma=[1.5], estimator=estimator)

    found = derivatives(call, (x, y), order=1)
    wanted = derivatives(formula, (x.double(), y.double()), order=1)
    assert 0 < float(wanted[1][0].norm()) < 1e-8
    for gradient, truth in zip(found[1], wanted[1], strict=True):
        assert_gradient_close(gradient, truth)


@pytest.mark.slow_interpreted
def test_permutations_rank_as_in_float64(backend, device):
    """What a permutation test is made of: the observed split and others, in the same order."""
    x, y = unit_samples(30, 30, 64, device)
    y[::3] = 0.6 * y[1::3] + 0.8 * y[::3]  # y has neighbours, x has none
    pooled = torch.cat((x, y))
    generator = torch.Generator().manual_seed(0)
    orders = [torch.arange(60)] + [torch.randperm(60, generator=generator) for _ in range(39)]
    splits = torch.stack([pooled[order.to(device)] for order in orders])
    splits = splits[:, :30].contiguous(), splits[:, 30:].contiguous()
    loss = mmd(*splits, bandwidth=1.0, estimator="unbiased", backend=backend)
    truth = mmd_formula(*splits, sigma=[1.0], estimator="unbiased")
    assert int(truth.argmax()) == 0  # the test rejects
    assert int(loss.argmax()) == 0
    near = (truth[:, None] - truth).abs() <= 1e-5 * truth.abs().max()  # no order to be kept
    same = (loss[:, None] < loss) == (truth[:, None] < truth)
    assert bool((same | near).all())
