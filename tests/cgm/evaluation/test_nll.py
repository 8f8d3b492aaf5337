"""Against closed forms: x = W z + b + noise with a mixture prior is a mixture of Gaussians."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tiny import linear_model
from torch.distributions import MultivariateNormal

from cgm_fast.cgm.evaluation.codes import prepared_batches
from cgm_fast.cgm.evaluation.nll import Likelihoods, likelihoods
from cgm_fast.cgm.models import MixturePrior
from cgm_fast.cgm.models.likelihoods import Bernoulli, Gaussian

SIGMA2, SIDE, N = 0.02, 4, 3
APART = torch.tensor([[0.0, 0.0, 0.0], [0.6, 0.0, 0.0]])
COINCIDENT = torch.tensor([[0.0, 0.0, 0.0], [1e-4, 0.0, 0.0]])  # both: factor analysis
PRIORS = {
    "paper": MixturePrior.paper(APART, SIGMA2),
    "paper, factor analysis": MixturePrior.paper(COINCIDENT, SIGMA2),
    "fitted": MixturePrior(APART, torch.tensor([0.3, 0.7]), torch.tensor([1.0, 0.5])),
    "fitted, factor analysis": MixturePrior.paper(COINCIDENT, 1.0),
    "unequal widths": MixturePrior(APART, torch.tensor([0.5, 0.5]), torch.tensor([SIGMA2, 1.0])),
}


def _model(scale, noise, prior_variance=1.0):
    """A linear CGM, its W [16, 3], and b: the encoder gives the mean of p(z given x) for K = 1."""
    w = scale * torch.randn(SIDE**2, N, generator=torch.Generator().manual_seed(3)).double()
    b = torch.full((SIDE**2,), 0.5, dtype=torch.float64)
    model = linear_model(
        N, 2, (1, SIDE, SIDE), likelihood=Gaussian(noise, learned=False), sigma2=SIGMA2
    )
    precision = w.T @ w / noise**2 + torch.eye(N, dtype=torch.float64) / prior_variance
    a = torch.linalg.solve(precision, w.T / noise**2)
    with torch.no_grad():
        model.decoder[0].weight.copy_(w)
        model.decoder[0].bias.copy_(b)
        model.encoder[1].weight.copy_(a)
        model.encoder[1].bias.copy_(-a @ b)
        model.descriptor.prototypes.copy_(APART)
    return model.eval(), w, b


def _exact(x, w, b, noise, prior):
    """log p(x) [n] in float64."""
    prior = prior.to(torch.float64)
    terms = [
        weight.log()
        + MultivariateNormal(
            w @ mean + b, variance * w @ w.T + noise**2 * torch.eye(len(w), dtype=torch.float64)
        ).log_prob(x.flatten(1).double())
        for mean, weight, variance in zip(prior.means, prior.weights, prior.variances, strict=True)
    ]
    return torch.logsumexp(torch.stack(terms), 0)


def _images(n=8):
    draw = torch.Generator().manual_seed(1)
    return torch.randint(100, 156, (n, 1, SIDE, SIDE), dtype=torch.uint8, generator=draw)


# A posterior about as wide as the encoder's noise, and one that is nearly the prior. The latter is
# left out where it has two modes 4 deviations apart, which an encoder of one mode cannot find.
SHARP, FLAT = (0.3, 0.2), (0.05, 1.0)
CASES = [(name, *SHARP) for name in PRIORS] + [(name, *FLAT) for name in PRIORS if name != "paper"]
ROUNDING = 16 * 1e-6  # of 16 pixels' log-probabilities in float32, each of a few nats


@pytest.mark.parametrize("modal", [True, False])
@pytest.mark.parametrize(("name", "scale", "noise"), CASES)
def test_closed_form(name, scale, noise, modal):
    prior = PRIORS[name]
    model, w, b = _model(scale, noise, float(prior.variances.max()))
    errors, gaps, variances = [], [], []
    for seed in range(12):
        found = likelihoods(model, _images(), "none", prior, samples=512, seed=seed, modal=modal)
        (x,) = prepared_batches(model, _images(), "none", seed)
        exact = _exact(x, w, b, noise, prior)
        errors.append(-found.nll - float(exact.mean()))
        gaps.append(found.elbo - float(exact.mean()))
        variances.append(1 / found.effective_samples - 1 / found.samples)
    errors, gaps = (torch.tensor(each, dtype=torch.float64) for each in (errors, gaps))
    # The logarithm of a mean of weights is low by half its relative variance, by Jensen.
    bias = 0.5 * sum(variances) / len(variances)
    error = 3 * float(errors.std()) / len(errors) ** 0.5
    assert -error - bias - ROUNDING < float(errors.mean()) < error + ROUNDING
    assert float(gaps.mean()) < 3 * float(gaps.std()) / len(gaps) ** 0.5 + ROUNDING


@pytest.mark.parametrize("name", ["paper", "fitted"])
def test_closed_form_given_the_category(name):
    """log p(x given k) is a single Gaussian's; latents are the same, whatever is asked for."""
    prior = PRIORS[name]
    model, w, b = _model(*SHARP, float(prior.variances.max()))
    own = torch.arange(len(_images())) % 2
    of_each = [
        MixturePrior(prior.means[k : k + 1], torch.ones(1), prior.variances[k : k + 1])
        for k in range(2)
    ]
    errors = []
    for seed in range(12):
        options = {"samples": 512, "seed": seed}
        found = likelihoods(model, _images(), "none", prior, categories=own, **options)
        plain = likelihoods(model, _images(), "none", prior, **options)
        assert replace(found, nll_given_category=None) == plain
        assert set(found.to_dict()) - set(plain.to_dict()) == {"nll_given_category"}
        (x,) = prepared_batches(model, _images(), "none", seed)
        exact = torch.stack([_exact(x, w, b, SHARP[1], each) for each in of_each])
        errors.append(-found.nll_given_category - float(exact[own, torch.arange(8)].mean()))
    errors = torch.tensor(errors, dtype=torch.float64)
    assert abs(float(errors.mean())) < 3 * float(errors.std()) / len(errors) ** 0.5 + 0.01


def test_elbo_and_its_parts():
    """E_q of quadratics in closed form, for one Gaussian as prior."""
    model, w, b = _model(0.3, 0.2)
    prior = MixturePrior.paper(COINCIDENT, 1.0)
    estimates = [
        likelihoods(model, _images(), "none", prior, samples=200, seed=s) for s in range(12)
    ]
    kl, reconstruction = [], []
    for seed in range(12):
        (x,) = prepared_batches(model, _images(), "none", seed)
        r = model.encode(x).detach().double()
        spread = SIGMA2 - 1 - math.log(SIGMA2)
        kl.append(0.5 * (r.square().sum(1) + N * spread).mean())
        residual = x.flatten(1).double() - r @ w.T - b
        squares = residual.square().sum(1) + SIGMA2 * w.square().sum()
        pixel = 0.5 * math.log(2 * math.pi * 0.2**2)
        reconstruction.append((0.5 * squares / 0.2**2 + SIDE**2 * pixel).mean())
    for name, exact in (("kl", kl), ("reconstruction", reconstruction)):
        found = torch.tensor([getattr(estimate, name) for estimate in estimates]).double()
        errors = found - torch.stack(exact)
        assert abs(float(errors.mean())) < 3 * float(errors.std()) / len(errors) ** 0.5
    for estimate in estimates:
        assert estimate.elbo == pytest.approx(-estimate.reconstruction - estimate.kl, abs=1e-9)
        assert estimate.elbo < -estimate.nll


def test_more_samples_give_a_tighter_bound():
    """In S the estimate rises towards log p(x): E log of a mean of weights (Burda et al.)."""
    model, w, b = _model(0.1, 0.4)
    prior = PRIORS["fitted"]
    rising = []
    for samples, seeds in ((2, 100), (8, 100), (128, 20)):
        found = []
        for seed in range(seeds):
            (x,) = prepared_batches(model, _images(), "none", seed)
            exact = float(_exact(x, w, b, 0.4, prior).mean())
            estimate = likelihoods(
                model, _images(), "none", prior, samples=samples, seed=seed, modal=False
            )
            found.append(-estimate.nll - exact)
        rising.append(torch.tensor(found))
    for fewer, more in pairwise(rising):
        error = (fewer.var() / len(fewer) + more.var() / len(more)).sqrt()
        assert more.mean() - fewer.mean() > 3 * error


class Watched(Bernoulli):
    """Pixels of probability 0.8 whatever the latent, and a note of what was to be explained."""

    def __init__(self):
        super().__init__()
        self.targets = []

    def log_prob(self, params, x):
        self.targets.append(x)
        return super().log_prob(torch.full_like(params, math.log(4)), x)


def test_binary_targets_are_drawn_from_grey_images():
    """With a Bernoulli likelihood log p is of binary images, never of grey ones."""
    watched = Watched()
    model = linear_model(N, 2, (1, SIDE, SIDE), likelihood=watched, sigma2=SIGMA2).eval()
    images = torch.full((300, 1, SIDE, SIDE), 51, dtype=torch.uint8)  # a fifth of white
    prior = MixturePrior.paper(model.prototypes.detach(), SIGMA2)
    found = likelihoods(model, images, "none", prior, samples=2, modal=False)
    drawn = torch.cat(watched.targets)[::2].double()  # each is explained by two latents
    assert len(drawn) == 300
    assert drawn.unique().tolist() == [0.0, 1.0]
    assert abs(float(drawn.mean()) - 0.2) < 3 * (0.2 * 0.8 / drawn.numel()) ** 0.5
    ones = drawn.flatten(1).sum(1).mean()
    expected = -ones * math.log(0.8) - (SIDE**2 - ones) * math.log(0.2)
    assert found.reconstruction == pytest.approx(float(expected), rel=1e-6)
    for binarization, value in (("threshold", 0.0), ("none", 1.0)):
        white = torch.full((1, 1, SIDE, SIDE), 255 if value else 51, dtype=torch.uint8)
        single = likelihoods(model, white, binarization, prior, samples=2, modal=False)
        assert (watched.targets[-1] == value).all()
        assert math.isnan(single.nll_standard_error)  # of a single image


def test_seeds_and_fields():
    model, *_ = _model(0.3, 0.2)
    a, b, c = (
        likelihoods(model, _images(), "none", PRIORS["fitted"], samples=9, seed=s)
        for s in (0, 0, 1)
    )
    assert a == b != c
    assert (a.samples, a.images) == (9, 8)
    assert 1 <= a.effective_samples <= 9
    assert Likelihoods(**a.to_dict()) == a


def test_at_least_two_samples():
    model, *_ = _model(0.3, 0.2)
    with pytest.raises(ValueError, match="samples must be at least 2, got 1"):
        likelihoods(model, _images(), "none", PRIORS["paper"], samples=1)
