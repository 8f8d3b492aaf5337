"""Proposals of importance sampling: densities against scipy, modes against closed forms."""

import pytest
import torch
from scipy import stats
from tiny import linear_model
from torch import nn

from cgm_fast.cgm.evaluation.nll import likelihoods
from cgm_fast.cgm.evaluation.proposals import DEGREES, Normal, StudentT, at_modes, draw
from cgm_fast.cgm.models import MixturePrior
from cgm_fast.cgm.models.likelihoods import Bernoulli, Gaussian, LogisticMixture

N, SIDE = 3, 4


def factor_of(precision):
    return torch.linalg.cholesky(precision)


def a_t():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(N, N, generator=generator, dtype=torch.float64)
    precision = a @ a.T + torch.eye(N, dtype=torch.float64)
    mode = torch.randn(N, generator=generator, dtype=torch.float64)
    return StudentT(mode, factor_of(precision)), precision


def test_densities_are_scipys():
    t, precision = a_t()
    z = torch.randn(20, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = stats.multivariate_t(t.mode, precision.inverse(), df=DEGREES).logpdf(z)
    torch.testing.assert_close(t.log_prob(z), torch.from_numpy(expected))
    normal = Normal(t.mode, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    expected = stats.norm(normal.mean, normal.variance.sqrt()).logpdf(z).sum(1)
    torch.testing.assert_close(normal.log_prob(z), torch.from_numpy(expected))


def test_draws_have_their_density():
    """Means of 1, z and z zᵀ under another density, each weighted by what they were drawn from."""
    t, _ = a_t()
    normal = Normal(t.mode + 0.5, torch.full((N,), 0.7, dtype=torch.float64))
    target = Normal(t.mode, torch.full((N,), 0.3, dtype=torch.float64))
    z, log_q = draw([normal, t], [20_000, 30_000], torch.Generator().manual_seed(2))
    w = (target.log_prob(z) - log_q).exp()
    for name, of_z in (
        ("1", torch.ones(len(z), 1)),
        ("z", (z - t.mode) / 0.3**0.5),
        ("zz", ((z - t.mode)[:, :, None] * (z - t.mode)[:, None, :]).flatten(1) / 0.3),
    ):
        terms = w[:, None] * of_z
        expected = {"1": 1.0, "z": 0.0, "zz": torch.eye(N).flatten().double()}[name]
        error = terms.std(0) / len(z) ** 0.5
        assert ((terms.mean(0) - expected).abs() < 4 * error).all(), name


def _model(likelihood, seed=3):
    """A linear decoder of 16 pixels, and a poor encoder."""
    torch.manual_seed(seed)
    model = linear_model(N, 2, (1, SIDE, SIDE), likelihood=likelihood, sigma2=0.02).eval()
    with torch.no_grad():
        model.decoder[0].weight.normal_(0, 1)
    return model


def test_the_mode_and_precision_of_a_gaussian_posterior():
    """For a linear decoder, Gaussian pixels and one Gaussian as prior both are known."""
    noise = 0.4
    model = _model(Gaussian(noise, learned=False))
    g = torch.zeros(2, N, dtype=torch.float64)
    g[:, 0] = 0.5
    prior = MixturePrior.paper(g, 0.6)
    x = torch.rand(5, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    code = torch.full((5, N), -1.0, dtype=torch.float64)
    found = at_modes(model, x, None, code, torch.full_like(code, 0.02), prior)
    w, b = model.decoder[0].weight.double(), model.decoder[0].bias.double()
    precision = w.T @ w / noise**2 + torch.eye(N, dtype=torch.float64) / 0.6
    for image, t in zip(x, found, strict=True):
        pull = w.T @ (image.flatten().double() - b) / noise**2 + g[0] / 0.6
        torch.testing.assert_close(
            t.mode, torch.linalg.solve(precision, pull), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(t.factor @ t.factor.T, precision, rtol=1e-4, atol=1e-4)


def test_modes_are_above_their_neighbours():
    """Bernoulli pixels, which make steps too long at first, and a prior of two Gaussians."""
    model = _model(Bernoulli())
    with torch.no_grad():
        model.decoder[0].weight.mul_(4)
    g = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], dtype=torch.float64)
    prior = MixturePrior.paper(g, 0.5)
    x = torch.rand(6, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(4)).round()
    code = 3 * torch.randn(6, N, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = at_modes(model, x, None, code, torch.full_like(code, 0.02), prior)

    def log_joint(z, image):
        images = image.expand(len(z), 1, SIDE, SIDE)
        return model.log_prob(z.float(), images).double() + prior.log_prob(z)

    for image, t, start in zip(x, found, code, strict=True):
        away = torch.linalg.solve_triangular(
            t.factor.T, 0.3 * torch.cat((torch.eye(N), -torch.eye(N))).double().T, upper=True
        ).T
        around = log_joint(t.mode + away, image)
        assert (around < log_joint(t.mode[None], image)).all()
        assert log_joint(t.mode[None], image) > log_joint(start[None], image)


def test_a_decoder_too_wild_for_a_mode():
    """Infinite slopes leave the encoder's own mean and variance, and an estimate."""
    model = _model(Gaussian(0.1, learned=False))
    with torch.no_grad():
        model.decoder[0].weight.fill_(1e30)
    prior = MixturePrior.paper(model.prototypes.detach().double(), 1.0)
    x = torch.rand(2, 1, SIDE, SIDE)
    code = torch.randn(2, N, dtype=torch.float64)
    variance = torch.tensor([[0.5, 1.0, 2.0]], dtype=torch.float64).expand(2, N)
    for t, start in zip(at_modes(model, x, None, code, variance, prior), code, strict=True):
        assert torch.equal(t.mode, start)
        torch.testing.assert_close(t.factor, torch.diag(variance[0].rsqrt()))


def test_a_likelihood_without_information_leaves_the_encoder_s_own():
    torch.manual_seed(0)
    likelihood = LogisticMixture(2)
    model = linear_model(N, 2, (1, SIDE, SIDE), sigma2=0.02)
    model.likelihood = likelihood
    model.decoder = nn.Sequential(
        nn.Linear(N, likelihood.channels(1) * SIDE**2),
        nn.Unflatten(1, (likelihood.channels(1), SIDE, SIDE)),
    )
    prior = MixturePrior.paper(model.prototypes.detach(), 0.02)
    images = torch.randint(256, (3, 1, SIDE, SIDE), dtype=torch.uint8)
    a, b = (
        likelihoods(model.eval(), images, "none", prior, samples=8, modal=modal)
        for modal in (True, False)
    )
    assert a == b


@pytest.mark.parametrize("samples", [2, 3, 7])
def test_few_samples(samples):
    model = _model(Bernoulli())
    prior = MixturePrior.paper(model.prototypes.detach(), 1.0)
    images = torch.randint(256, (3, 1, SIDE, SIDE), dtype=torch.uint8)
    found = likelihoods(model, images, "threshold", prior, samples=samples)
    assert found.samples == samples
    assert 1 <= found.effective_samples <= samples


def test_the_mode_makes_samples_count():
    """A posterior six times narrower than the encoder's noise in every direction."""
    model = _model(Gaussian(0.05, learned=False))
    prior = MixturePrior.paper(model.prototypes.detach(), 1.0)
    images = torch.randint(256, (4, 1, SIDE, SIDE), dtype=torch.uint8)
    found = [
        likelihoods(model, images, "none", prior, samples=400, modal=modal)
        for modal in (False, True)
    ]
    assert found[0].effective_samples < 20
    assert found[1].effective_samples > 100
