import math

import pytest
import torch
from torch import distributions

from cgm_fast.models.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Gaussian,
    bits_per_dim,
    make_likelihood,
)

CLOSE = {"rtol": 1e-12, "atol": 1e-12}  # sums of some hundred float64 terms of size one


def _params_and_images(binary):
    params = 3 * torch.randn(5, 2, 9, 7, dtype=torch.float64)
    x = torch.rand(5, 2, 9, 7, dtype=torch.float64)
    return params, (x < 0.5).double() if binary else x


def test_bernoulli():
    logits, x = _params_and_images(binary=True)
    expected = distributions.Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(Bernoulli().log_prob(logits, x), expected, **CLOSE)
    torch.testing.assert_close(Bernoulli().mean(logits), torch.sigmoid(logits), **CLOSE)


def test_bernoulli_of_grey_pixels_is_the_expectation_over_binarisations():
    logits, grey = _params_and_images(binary=False)
    pixel = distributions.Bernoulli(logits=logits)
    ones = torch.ones_like(grey)
    expected = grey * pixel.log_prob(ones) + (1 - grey) * pixel.log_prob(0 * ones)
    torch.testing.assert_close(Bernoulli().log_prob(logits, grey), expected.sum((1, 2, 3)), **CLOSE)


def test_bernoulli_of_extreme_logits_is_finite():
    logits = torch.tensor([[1e4, -1e4]]).requires_grad_()
    value = Bernoulli().log_prob(logits, torch.tensor([[0.0, 1.0]]))
    value.sum().backward()
    assert value.item() == -2e4
    assert logits.grad.tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("learned", [True, False])
def test_gaussian(learned):
    params, x = _params_and_images(binary=False)
    likelihood = Gaussian(0.3, learned=learned).double()
    expected = distributions.Normal(params, likelihood.log_sigma.exp()).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(likelihood.log_prob(params, x), expected, **CLOSE)
    torch.testing.assert_close(likelihood.mean(params), params.clamp(0, 1), **CLOSE)
    assert float(likelihood.log_sigma.detach().exp()) == pytest.approx(0.3, rel=1e-6)
    assert len(list(likelihood.parameters())) == learned
    assert "log_sigma" in likelihood.state_dict()


def test_the_learned_scale_is_fitted_where_it_equals_the_residual():
    likelihood = Gaussian(0.2).double()
    params = torch.zeros(1, 4, dtype=torch.float64)
    likelihood.log_prob(params, torch.full((1, 4), 0.2, dtype=torch.float64)).sum().backward()
    # d/d log σ = Σ (residual²/σ² − 1); log 0.2 was rounded to float32.
    assert abs(float(likelihood.log_sigma.grad)) < 4 * 2 * torch.finfo(torch.float32).eps * 2


def test_bits_per_dim():
    assert bits_per_dim(0.0, 3072) == 8  # density one on [0, 1]: 256 values alike
    assert bits_per_dim(-3072 * math.log(2), 3072) == pytest.approx(7, rel=1e-15)  # 128 alike


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_make_likelihood(name):
    likelihood = make_likelihood(name)
    assert likelihood.continuous == name.startswith("gaussian")
    assert any(p.requires_grad for p in likelihood.parameters()) == (name == "gaussian")


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"likelihood must be one of bernoulli, .*got 'poisson'"):
        make_likelihood("poisson")
    with pytest.raises(ValueError, match="sigma must be a finite number > 0, got 0"):
        Gaussian(0)
