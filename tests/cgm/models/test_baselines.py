"""VAE, CVAE, InfoVAE, BIR-VAE: their terms against closed forms, and what each takes."""

import math

import pytest
import torch
from torch import distributions, nn

from cgm_fast import mmd
from cgm_fast.cgm.evaluation import nll
from cgm_fast.cgm.evaluation.nll import likelihoods
from cgm_fast.cgm.models import VAE, MixturePrior
from cgm_fast.cgm.models.likelihoods import Gaussian

N, SHAPE = 3, (1, 4, 4)
X = torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(50) % 4


def model(outputs=2 * N, classes=0, **options):
    torch.manual_seed(1)
    size = 16 * (1 + classes)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(size, outputs))
    decoder = nn.Sequential(nn.Linear(N + classes, 16), nn.Unflatten(1, SHAPE))
    return VAE(encoder, decoder, latent_dim=N, classes=classes, **options)


def test_a_vaes_kl_is_that_of_its_posterior():
    vae = model()
    out = vae(X)
    mean, variance = vae.posterior(X)
    q = distributions.Normal(mean, variance.sqrt())
    expected = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(out.kl, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.loss.detach(), out.reconstruction + out.kl)
    assert out.mmd == out.margin == 0
    assert torch.equal(out.variance, variance.detach())


@pytest.mark.parametrize("sigma2", [None, 0.05])
def test_an_infovae_compares_its_samples_with_those_of_the_prior(sigma2):
    info = model(2 * N if sigma2 is None else N, sigma2=sigma2, kl_weight=0.0, mmd_weight=100.0)
    out = info(X, generator=torch.Generator().manual_seed(5))
    noise = torch.randn((2, 50, N), generator=torch.Generator().manual_seed(5))
    mean, variance = info.posterior(X)
    z = mean + variance.sqrt() * noise[0]
    torch.testing.assert_close(out.mmd, mmd(z, noise[1]).detach())
    torch.testing.assert_close(out.loss.detach(), out.reconstruction + 100 * out.mmd)
    assert out.kl == 0
    assert info.weights == (100.0, 0.0)
    if sigma2 is not None:
        assert bool((variance == torch.tensor(sigma2)).all())


def test_a_cvae_sees_labels_on_both_sides():
    cvae = model(classes=4)
    with pytest.raises(ValueError, match="needs labels"):
        cvae(X)
    other = (LABELS + 1) % 4
    assert not torch.equal(cvae.encode(X, LABELS), cvae.encode(X, other))
    z = torch.zeros(50, N)
    assert not torch.equal(cvae.decode(z, labels=LABELS), cvae.decode(z, labels=other))
    out = cvae(X, LABELS)
    assert torch.equal(out.assignment, LABELS)
    images, categories = cvae.generate(6, category=2)
    assert images.shape == (6, *SHAPE)
    assert categories.tolist() == [2] * 6
    assert cvae.reconstruct(X, LABELS).shape == X.shape


def test_every_parameter_gets_a_gradient():
    for baseline, labels in ((model(), None), (model(classes=4), LABELS)):
        baseline(X, labels).loss.backward()
        assert all(float(p.grad.abs().sum()) > 0 for p in baseline.parameters())


def test_the_prior_is_a_standard_normal():
    z = torch.randn(9, N, dtype=torch.float64)
    expected = distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    for baseline in (model(), model(classes=4)):
        for mixing in ("uniform", "empirical"):
            found = baseline.prior(mixing).to(torch.float64).log_prob(z)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        (fitted,) = baseline.fitted_priors(z, torch.full((N,), 0.2)).values()
        torch.testing.assert_close(fitted.means, z.mean(0, keepdim=True))
        covariance = torch.cov(z.T, correction=0) + 0.2 * torch.eye(N, dtype=torch.float64)
        torch.testing.assert_close(fitted.factors[0] @ fitted.factors[0].T, covariance)
        with pytest.raises(ValueError, match="mixing must be"):
            baseline.prior("some")


@pytest.mark.parametrize("limit", [("DECODE_ON_CPU", 15), ("PARAMETERS", 20)])
def test_its_likelihood_however_many_latents_are_decoded_at_once(limit, monkeypatch):
    vae = model().eval()
    images = (X[:9] * 255).round().byte()
    least = vae.posterior((images > 127).float())[1].detach().amin(1)
    # Some images have a wider Gaussian among their proposals, and the others do not.
    tau2 = 1.5 * least.median().item()
    prior = MixturePrior.paper(torch.zeros(1, N), tau2)
    assert 0 < (tau2 > 1.5 * least).sum() < 9
    whole = likelihoods(vae, images, "threshold", prior, samples=6)
    monkeypatch.setattr(nll, *limit)
    parts = likelihoods(vae, images, "threshold", prior, samples=6)
    assert parts.to_dict() == pytest.approx(whole.to_dict(), rel=1e-5)


def test_its_likelihood_against_factor_analysis():
    """With a linear decoder and the posterior's own variance, log p(x) is a Gaussian's."""
    noise = 0.5
    vae = model(likelihood=Gaussian(noise, learned=False)).eval()
    w, b = (value.detach().double() for value in vae.decoder[0].parameters())
    precision = torch.eye(N, dtype=torch.float64) + w.T @ w / noise**2
    a = torch.linalg.solve(precision, w.T / noise**2)
    spread = torch.linalg.inv(precision).diagonal()
    with torch.no_grad():
        vae.encoder[1].weight.copy_(torch.cat((a, torch.zeros_like(a))))
        vae.encoder[1].bias.copy_(torch.cat((-a @ b, spread.log())))
    images = (X[:8] * 255).round().byte()
    errors = []
    for seed in range(8):
        found = likelihoods(vae, images, "threshold", vae.prior(), samples=600, seed=seed)
        x = (images > 127).double().flatten(1)
        cov = w @ w.T + noise**2 * torch.eye(16, dtype=torch.float64)
        exact = distributions.MultivariateNormal(b, cov).log_prob(x).mean()
        assert found.elbo < float(exact)
        errors.append(-found.nll - float(exact))
    values = torch.tensor(errors, dtype=torch.float64)
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(len(values)) + 1e-3


def test_bad_arguments():
    with pytest.raises(ValueError, match="latent_dim must be at least 1, got 0"):
        VAE(nn.Identity(), nn.Identity(), latent_dim=0)
    with pytest.raises(ValueError, match="sigma2"):
        model(sigma2=-1.0)
