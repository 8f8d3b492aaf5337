import math

import pytest
import torch
from torch import distributions

from cgm_fast.cgm.models.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Gaussian,
    LogisticMixture,
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
    uniform = 3072 * math.log(256)  # of 256 levels, each alike
    assert bits_per_dim(uniform, 3072, dequantised=False) == pytest.approx(8, rel=1e-15)


LEVELS = torch.arange(256, dtype=torch.float64) / 255


def _mixture_params(likelihood, channels, pixels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = likelihood.channels(channels)
    return torch.randn(1, count, 1, pixels, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("components", [1, 4])
@pytest.mark.parametrize("scale", [1.0, 6.0])  # wide components, and ones thinner than a level
def test_a_logistic_mixtures_levels_sum_to_one(components, scale):
    likelihood = LogisticMixture(components)
    params = scale * _mixture_params(likelihood, 1)
    log_p = likelihood.log_prob(params.expand(256, -1, -1, -1), LEVELS.view(256, 1, 1, 1))
    # Where a level has hardly any mass its density at the middle stands for it.
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-3)


def test_a_logistic_mixtures_later_channels_are_conditional_on_earlier_ones():
    likelihood = LogisticMixture(3)
    params = _mixture_params(likelihood, 2)
    pairs = torch.cartesian_prod(LEVELS[::15], LEVELS).view(-1, 2, 1, 1)
    log_p = likelihood.log_prob(params.expand(len(pairs), -1, -1, -1), pairs)
    marginal = log_p.exp().view(-1, 256).sum(1)
    parts = params.view(-1, 3)  # logits, two means, two log-scales, a coefficient
    logits, first_mean, first_scale = parts[0], parts[1], parts[3]
    alone = torch.cat((logits, first_mean, first_scale)).view(1, 9, 1, 1)
    first = LEVELS[::15].view(-1, 1, 1, 1)
    expected = likelihood.log_prob(alone.expand(len(first), -1, -1, -1), first).exp()
    torch.testing.assert_close(marginal, expected, rtol=1e-3, atol=1e-9)
    coupled = params.clone()
    coupled[:, -3:] += 1  # the coefficients
    assert not torch.allclose(likelihood.log_prob(coupled, pairs[5:6]), log_p[5:6])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_logistic_mixtures_samples_have_its_mean_and_are_levels(channels):
    likelihood = LogisticMixture(2)
    params = 0.2 * _mixture_params(likelihood, channels, seed=4)
    params[:, 2 * (1 + channels) : 2 * (1 + 2 * channels)] -= 4  # narrow: no mass is cut off
    generator = torch.Generator().manual_seed(0)
    drawn = likelihood.sample(params.expand(20000, -1, -1, -1).float(), generator).double()
    assert torch.allclose(drawn * 255, (drawn * 255).round(), atol=1e-4)
    error = drawn.mean(0) - likelihood.mean(params)[0]
    assert bool((error.abs() < 4 * drawn.std(0) / 20000**0.5 + 1e-3).all())


def test_a_logistic_mixtures_gradient_is_finite_far_from_the_image():
    likelihood = LogisticMixture(2)
    params = (40 * _mixture_params(likelihood, 3, pixels=6)).float().requires_grad_()
    likelihood.log_prob(params, torch.rand(1, 3, 1, 6).mul(255).round() / 255).sum().backward()
    assert bool(params.grad.isfinite().all())


@pytest.mark.parametrize("name", LIKELIHOODS)
@torch.no_grad()
def test_samples_have_the_mean(name):
    likelihood = make_likelihood(name)
    generator = torch.Generator().manual_seed(1)
    params = 0.5 + 0.1 * torch.randn(1, likelihood.channels(1), 2, 2, generator=generator)
    drawn = likelihood.sample(params.expand(4000, -1, -1, -1), generator)
    assert drawn.shape == (4000, 1, 2, 2)
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1
    if name != "logistic-mixture":  # whose tails are cut off here, and whose mean knows no edge
        error = drawn.mean(0) - likelihood.mean(params)[0]
        assert bool((error.abs() < 5 * drawn.std(0) / 4000**0.5).all())


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
