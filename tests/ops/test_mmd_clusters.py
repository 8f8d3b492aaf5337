"""Samples in tight clusters, many bandwidths apart: the contract at its boundary.

In |a|² + |b|² − 2ab a distance within a cluster loses what |a|² has over it. So native code takes
plain differences from where that would show, and the reference its products in float64.
"""

import pytest
import torch

from cgm_fast import mmd
from cgm_fast.testing import (
    LOSS_TOLERANCE,
    assert_gradient_close,
    assert_loss_close,
    derivatives,
    mmd_formula,
    mmd_total,
)

RADIUS = 1e-3

pytestmark = pytest.mark.filterwarnings("ignore::cgm_fast.BandwidthWarning")


def clusters(d, apart, device, *, shared, seed=0):
    """x in one cluster and y in another, or with `shared` half of y in that of x."""
    generator = torch.Generator().manual_seed(seed)

    def around(centre, rows):
        return centre + RADIUS * torch.randn(rows, d, generator=generator) / d**0.5

    direction = torch.randn(d, generator=generator)
    centre = torch.randn(d, generator=generator)
    other = centre + apart * direction / direction.norm()
    x, y = around(centre, 24), around(other, 20)
    if shared:
        y[::2] = around(centre, 10)
    return x.to(device), y.to(device)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize("apart", [2.5, 4.0, 5.5, 7.0, 11.0, 37.0, 1000.0])
@pytest.mark.parametrize("d", [10, 64, 300])
def test_clusters_keep_their_contract(d, apart, shared, backend, device):
    x, y = clusters(d, apart, device, shared=shared)
    found = derivatives(lambda x, y: mmd(x, y, bandwidth=1.0, backend=backend), (x, y), order=1)
    truth = derivatives(
        lambda x, y: mmd_formula(x, y, sigma=[1.0]), (x.double(), y.double()), order=1
    )
    # Triton and CUDA C++ take differences from one distance on, whatever d.
    factor = 1 if backend in ("native", "reference") else 5
    total = mmd_total(x, y, sigma=[1.0])
    assert_loss_close(found[0], truth[0], total, factor * LOSS_TOLERANCE)
    # Weighted sums of z are about the samples' mean, half the distance away.
    tolerance = factor * (1e-5 + 1e-7 * apart / RADIUS)
    for gradient, wanted in zip(found[1], truth[1], strict=True):
        assert_gradient_close(gradient, wanted, tolerance)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("apart", [2.5, 4.0, 5.5, 7.0, 10.0, 11.0])
@pytest.mark.parametrize("d", [10, 64, 300])
def test_clusters_whose_roundings_agree(d, apart, backend, device):
    """All products within a cluster round alike, so that nothing averages out."""
    generator = torch.Generator().manual_seed(0)
    x, y = (1e-5 * torch.randn(8, d, generator=generator).to(device) / d**0.5 for _ in range(2))
    y += apart / d**0.5
    loss = mmd(x, y, bandwidth=1.0, backend=backend)
    factor = 1 if backend in ("native", "reference") else 100
    total = mmd_total(x, y, sigma=[1.0])
    assert_loss_close(loss, mmd_formula(x, y, sigma=[1.0]), total, factor * LOSS_TOLERANCE)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_data_hundreds_of_bandwidths_wide(estimator, backend, device):
    generator = torch.Generator().manual_seed(0)
    x, y = (14.0 * torch.randn(100, 10, generator=generator) for _ in range(2))  # to 45 and more
    y[:50] = x[:50] + 0.05 * torch.randn(50, 10, generator=generator)
    x, y = x.to(device), y.to(device)
    assert float((x - y.mean(0)).norm(dim=1).max()) > 450 * 0.1
    loss = mmd(x, y, bandwidth=0.1, estimator=estimator, backend=backend)
    truth = mmd_formula(x, y, sigma=[0.1], estimator=estimator)
    assert_loss_close(loss, truth, mmd_total(x, y, sigma=[0.1], estimator=estimator))
    assert abs(float(truth)) > 1e-3
