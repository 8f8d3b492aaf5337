import pytest
import torch
from torch import distributions

from cgm_fast.cgm.models import FullMixturePrior, MixturePrior


def _prior(k=4, n=3, offset=0.0, variances=(0.02, 0.5, 1.0, 3.0)):
    means = torch.randn(k, n, dtype=torch.float64) + offset
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    return MixturePrior(means, weights, torch.tensor(variances, dtype=torch.float64))


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_log_prob(offset):
    prior = _prior(offset=offset)
    z = offset + torch.randn(7, 5, 3, dtype=torch.float64)
    components = distributions.Independent(
        distributions.Normal(prior.means, prior.variances.sqrt().unsqueeze(1)), 1
    )
    oracle = distributions.MixtureSameFamily(distributions.Categorical(prior.weights), components)
    # Both take differences of numbers of size `offset`, rounded to float64 once.
    torch.testing.assert_close(prior.log_prob(z), oracle.log_prob(z), rtol=1e-12, atol=1e-12)


def test_a_component_of_no_weight_is_left_out():
    prior = _prior()
    z = torch.randn(6, 3, dtype=torch.float64)
    kept = MixturePrior(
        prior.means[:2], torch.tensor([0.3, 0.7], dtype=torch.float64), prior.variances[:2]
    )
    weights = torch.tensor([0.3, 0.7, 0.0, 0.0], dtype=torch.float64)
    padded = MixturePrior(prior.means, weights, prior.variances)
    torch.testing.assert_close(padded.log_prob(z), kept.log_prob(z), rtol=1e-14, atol=1e-14)
    assert set(padded.sample(500)[1].tolist()) == {0, 1}


def test_paper_prior():
    g = torch.randn(5, 3)
    prior = MixturePrior.paper(g, 0.02)
    assert torch.equal(prior.means, g)
    torch.testing.assert_close(prior.weights, torch.full((5,), 0.2))
    torch.testing.assert_close(prior.variances, torch.full((5,), 0.02))


def test_fitted_prior_has_the_moments_of_the_codes():
    g = torch.randn(3, 2, dtype=torch.float64)
    r = torch.randn(50, 2, dtype=torch.float64)
    assignment = torch.arange(50) % 2  # category 2 is empty
    prior = MixturePrior.fitted(g, r, assignment, 0.1)
    assert torch.equal(prior.means, g)
    assert prior.weights.tolist() == [0.5, 0.5, 0.0]
    for k in range(2):
        squares = [float((r[i, j] - g[k, j]) ** 2) for i in range(k, 50, 2) for j in range(2)]
        assert float(prior.variances[k]) == pytest.approx(sum(squares) / len(squares) + 0.1, 1e-13)
    assert float(prior.variances[2]) == 0.1


def test_sample_moments():
    prior, count = _prior(), 40_000
    z, chosen = prior.sample(count, generator=torch.Generator().manual_seed(1))
    for k in range(4):
        p, variance = float(prior.weights[k]), float(prior.variances[k])
        members = z[chosen == k] - prior.means[k]
        n = members.numel()
        assert abs(len(members) / count - p) < 3 * (p * (1 - p) / count) ** 0.5
        assert abs(float(members.mean())) < 3 * (variance / n) ** 0.5
        assert abs(float(members.square().mean()) - variance) < 3 * variance * (2 / n) ** 0.5


def test_sample_of_one_category():
    prior = _prior()
    z, chosen = prior.sample(2000, 3, torch.Generator().manual_seed(0))
    assert chosen.tolist() == [3] * 2000
    assert (z.mean(0) - prior.means[3]).abs().max() < 4 * (3.0 / 2000) ** 0.5
    again, _ = prior.sample(2000, 3, torch.Generator().manual_seed(0))
    assert torch.equal(z, again)


@pytest.mark.parametrize("category", [-1, 4])
def test_no_such_category(category):
    with pytest.raises(ValueError, match=rf"category must lie in \[0, 4\), got {category}"):
        _prior().sample(1, category)


@pytest.mark.parametrize("make", [_prior, lambda: _full()])
def test_to(make):
    prior = make()
    narrow = prior.to(torch.float32)
    assert type(narrow) is type(prior)
    assert {each.dtype for each in vars(narrow).values()} == {torch.float32}


def _full(k=3, n=2):
    draw = torch.randn(k, n, n + 2, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    factors = torch.linalg.cholesky(draw @ draw.mT)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return FullMixturePrior(draw.sum(2), weights, factors)


def _components(prior):
    return distributions.MultivariateNormal(prior.means, scale_tril=prior.factors)


def test_covariances_of_their_own():
    prior, count = _full(), 40_000
    z = torch.randn(7, 5, 2, dtype=torch.float64)
    oracle = distributions.MixtureSameFamily(
        distributions.Categorical(prior.weights), _components(prior)
    )
    torch.testing.assert_close(prior.log_prob(z), oracle.log_prob(z), rtol=1e-12, atol=1e-12)
    draws, chosen = prior.sample(count, generator=torch.Generator().manual_seed(1))
    for k in range(3):
        offset = draws[chosen == k] - prior.means[k]
        # Whitened, so that every element's error is of the same size.
        white = torch.linalg.solve_triangular(prior.factors[k], offset.T, upper=False)
        error = white @ white.T / len(offset) - torch.eye(2, dtype=torch.float64)
        assert error.abs().max() < 4 * (2 / len(offset)) ** 0.5
        assert white.mean(1).abs().max() < 4 / len(offset) ** 0.5
    covariances = prior.factors @ prior.factors.mT
    assert prior.widest() == pytest.approx(float(torch.linalg.eigvalsh(covariances).max()))


def test_a_full_fit_has_the_moments_of_the_codes():
    g = torch.randn(3, 2, dtype=torch.float64)
    r = torch.randn(50, 2, dtype=torch.float64)
    assignment = torch.arange(50) % 2  # category 2 is empty
    noise = torch.tensor([0.1, 0.3], dtype=torch.float64)
    prior = FullMixturePrior.fitted(g, r, assignment, noise)
    assert prior.weights.tolist() == [0.5, 0.5, 0.0]
    for k in range(2):
        own = r[k::2]
        torch.testing.assert_close(prior.means[k], own.mean(0))
        expected = torch.cov(own.T, correction=0) + torch.diag(noise)
        torch.testing.assert_close(prior.factors[k] @ prior.factors[k].T, expected)
    assert torch.equal(prior.means[2], g[2])
    torch.testing.assert_close(prior.factors[2], torch.diag(noise.sqrt()))
    assert prior.widest() < 10  # of components that occur


@pytest.mark.parametrize("make", [_prior, _full])
def test_precision_is_the_hessian_where_one_component_is_alone(make):
    prior = make()
    weights = torch.zeros_like(prior.weights)
    weights[1] = 1
    prior = type(prior)(prior.means, weights, *list(vars(prior).values())[2:3])
    z = torch.randn(prior.means.shape[1], dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(prior.log_prob, z)
    torch.testing.assert_close(prior.precision(z), -hessian)
    assert prior.precision(z.expand(4, 5, -1)).shape == (4, 5, len(z), len(z))
