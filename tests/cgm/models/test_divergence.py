"""The other readings of L_M, each against its definition."""

import pytest
import torch

from cgm_fast import mmd
from cgm_fast.cgm.models.config import DivergenceConfig
from cgm_fast.cgm.models.divergence import ROOT, Divergence
from cgm_fast.cgm.models.options import take

Z = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
PRIOR = 0.5 + torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
CATEGORIES = torch.tensor([0, 0, 2, 2, 2, 4, 4, 4, 4, 0, 2, 4])  # 1 and 3 do not occur


def made(own=None, **options):
    return Divergence(take(DivergenceConfig, options), own=own)


def test_conditional_is_the_mean_over_samples_of_their_categories_mmd():
    z, prior = Z.clone().requires_grad_(), PRIOR.clone().requires_grad_()
    found = made(conditional=True)(z, prior, CATEGORIES, 5)
    expected = sum(
        len(own) / 12 * mmd(Z[own], PRIOR[own])
        for own in (CATEGORIES.eq(k).nonzero().flatten() for k in (0, 2, 4))
    )
    torch.testing.assert_close(found, expected)
    assert found > mmd(Z, PRIOR)  # of all together; by Jensen
    found.backward()
    for part in (z, prior):
        assert part.grad.isfinite().all()
        assert part.grad.any(1).all()


def test_conditional_of_one_category_is_plain():
    one = torch.zeros(12, dtype=torch.int64)
    found = made(conditional=True, bandwidth=0.7)(Z, PRIOR, one, 1)
    torch.testing.assert_close(found, mmd(Z, PRIOR, bandwidth=0.7))


def test_the_unbiased_estimator_may_be_negative():
    measure = made(prior_sampling="iid", estimator="unbiased", bandwidth=0.7)
    found = measure(Z, PRIOR, CATEGORIES, 5)
    torch.testing.assert_close(found, mmd(Z, PRIOR, bandwidth=0.7, estimator="unbiased"))
    assert measure(Z, Z, CATEGORIES, 5) < 0


def test_the_root_has_a_slope_at_zero():
    found = made(divergence="mmd")(Z, PRIOR, CATEGORIES, 5)
    torch.testing.assert_close(found, (mmd(Z, PRIOR) + ROOT).sqrt())
    same = Z.clone().requires_grad_()
    made(divergence="mmd")(same, same.detach(), CATEGORIES, 5).backward()
    assert same.grad.isfinite().all()


def test_the_energy_distance():
    def mean(a, b):
        return (a[:, None].double() - b[None].double()).norm(dim=2).mean()

    expected = 2 * mean(Z, PRIOR) - mean(Z, Z) - mean(PRIOR, PRIOR)
    found = made(divergence="energy")(Z, PRIOR, CATEGORIES, 5)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
    far = Z.repeat(9, 1) + 1000  # by products of rows a point would be apart from itself
    same = far.clone().requires_grad_()
    found = made(divergence="energy")(same, far, CATEGORIES, 5)
    assert abs(float(found.detach())) < 1e-6
    found.backward()
    assert same.grad.isfinite().all()


def test_a_function():
    def of_means(a, b):
        return (a.mean(0) - b.mean(0)).square().sum()

    found = made(of_means)(Z, PRIOR, CATEGORIES, 5)
    torch.testing.assert_close(found, of_means(Z, PRIOR))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "kl"}, "divergence must be one of 'mmd2', .* got 'kl'"),
        ({"prior_sampling": "paired"}, "prior_sampling must be one of 'assigned', .* got 'paired'"),
        ({"estimator": "block"}, "estimator must be one of 'biased', .* got 'block'"),
        ({"estimator": "unbiased"}, "estimator must be biased unless prior_sampling is iid"),
        (
            {"divergence": "mmd", "estimator": "unbiased", "prior_sampling": "iid"},
            "estimator must be biased unless divergence is mmd2",
        ),
        ({"divergence": "energy", "conditional": True}, "conditional must be left out unless"),
        ({"prior_sampling": "iid", "conditional": True}, "conditional must be left out unless"),
        ({"own": torch.dist, "conditional": True}, "conditional must be left out unless"),
        (
            {"own": torch.dist, "estimator": "unbiased", "prior_sampling": "iid"},
            "estimator must be biased unless divergence is mmd2",
        ),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)
