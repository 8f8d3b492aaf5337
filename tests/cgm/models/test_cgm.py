import copy
import pickle

import pytest
import torch
from tiny import linear_model
from torch import nn

from cgm_fast import mmd, prototype_margin
from cgm_fast.cgm.models import CGM, DCGANDecoder, DCGANEncoder, Descriptor, Likelihood
from cgm_fast.testing import LOSS_TOLERANCE

X = torch.linspace(0, 1, 6 * 64).reshape(6, 1, 8, 8)
LABELS = torch.tensor([0, 2, 1, 0, 2, 2])


def _generator(seed=5):
    return torch.Generator().manual_seed(seed)


class Laplace(Likelihood):
    def log_prob(self, params, x):
        return torch.distributions.Laplace(params, 1.0).log_prob(x).flatten(1).sum(1)

    def mean(self, params):
        return params


class Points(Descriptor):
    """Somebody's own prototypes: the corners of a simplex, scaled by a trained number."""

    def __init__(self, k, n):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("corners", torch.eye(k, n))

    @property
    def prototypes(self):
        return self.scale * self.corners


def _loss_by_hand(model, x, labels, weights, sigma2, tau2, margin):
    """Eq. 6 from the public functions, with the draws that the model makes from the generator."""
    mmd_weight, margin_weight = weights
    r, g = model.encode(x), model.prototypes
    pull, k = prototype_margin(r, g, labels, margin=margin)
    e, e_prior = torch.randn((2, *r.shape), generator=_generator())
    z, prior = model.mapper(r) + sigma2**0.5 * e, model.mapper(g)[k] + tau2**0.5 * e_prior
    value = mmd(z, prior)
    reconstruction = -model.likelihood.log_prob(model.decode(z), x).mean()
    return reconstruction + mmd_weight * value + margin_weight * pull, reconstruction, value, pull


def farthest(r, g):
    return torch.cdist(r, g)


@pytest.mark.parametrize("assignment", ["cosine", "dot", farthest])
def test_assignment_by_a_similarity(assignment):
    """The category of greatest similarity is what everything else is about; labels go before."""
    model = linear_model(assignment=assignment)
    with torch.no_grad():  # lengths that tell the similarities apart
        model.prototypes.mul_(torch.tensor([[0.1], [1.0], [5.0]]))
    r, g = model.encode(X), model.prototypes
    table = {
        "cosine": nn.functional.cosine_similarity(r[:, None], g[None], dim=2),
        "dot": (r[:, None] * g[None]).sum(2),
        farthest: (r[:, None] - g[None]).norm(dim=2),
    }[assignment]
    expected = table.argmax(1)
    assert torch.equal(model.assign(r), expected)
    found = model(X, generator=_generator())
    assert torch.equal(found.assignment, expected)
    by_labels = linear_model()
    by_labels.load_state_dict(model.state_dict())
    assert torch.equal(found.loss, by_labels(X, expected, generator=_generator()).loss)
    assert torch.equal(model(X, LABELS).assignment, LABELS)


def energy_distance(z, prior):
    """Of the negative-type semimetric |a - b|: a kernel that is no Gaussian's (II-C, II-E)."""
    within = torch.cdist(z, z).mean() + torch.cdist(prior, prior).mean()
    return 2 * torch.cdist(z, prior).mean() - within


@pytest.mark.parametrize("labels", [None, LABELS], ids=["cgm1", "cgm2"])
def test_another_divergence(labels):
    options = {"sigma2": 0.05, "mmd_weight": 7.0, "margin_weight": 3.0}
    model = linear_model(divergence=energy_distance, **options)
    found = model(X, labels, generator=_generator())
    r, g = model.encode(X), model.prototypes
    pull, k = prototype_margin(r, g, labels)
    e, e_prior = torch.randn((2, *r.shape), generator=_generator())
    value = energy_distance(r + 0.05**0.5 * e, g[k] + 0.05**0.5 * e_prior)
    torch.testing.assert_close(found.mmd, value.detach())
    torch.testing.assert_close(found.loss, found.reconstruction + 7 * value + 3 * pull)
    found.loss.backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters())


@pytest.mark.parametrize("labels", [None, LABELS], ids=["cgm1", "cgm2"])
@pytest.mark.parametrize(
    "options",
    [
        {"negatives": "mean"},
        {"normalize": True, "margin": 0.5},
        {"normalize": True, "negatives": "mean", "conditional": True},
        {"prior_sampling": "iid"},
        {"prior_sampling": "iid", "estimator": "unbiased"},
    ],
    ids=lambda options: "-".join(options),
)
def test_other_readings(options, labels):
    """Their loss from the public functions, with the model's draws."""
    model = linear_model(mmd_weight=7.0, margin_weight=3.0, sigma2=0.05, **options)
    found = model(X, labels, generator=_generator())
    r, g = model.encode(X), model.prototypes
    margin, negatives = options.get("margin", 1.0), options.get("negatives", "sum")
    scale = nn.functional.normalize if options.get("normalize") else lambda part: part
    pull, k = prototype_margin(scale(r), scale(g), labels, margin=margin, negatives=negatives)
    generator = _generator()
    e, e_prior = torch.randn((2, *r.shape), generator=generator)
    iid = "prior_sampling" in options
    centres = torch.randint(3, k.shape, generator=generator) if iid else k
    z, prior = r + 0.05**0.5 * e, g[centres] + 0.05**0.5 * e_prior
    if options.get("conditional"):
        value = sum((k == j).float().mean() * mmd(z[k == j], prior[k == j]) for j in k.unique())
    else:
        value = mmd(z, prior, estimator=options.get("estimator", "biased"))
    torch.testing.assert_close(found.mmd, value.detach(), atol=1e-5, rtol=1e-5)
    expected = found.reconstruction + 7 * value + 3 * pull
    torch.testing.assert_close(found.loss, expected, atol=1e-4, rtol=1e-6)
    assert torch.equal(found.assignment, k)
    nearest = prototype_margin(scale(r), scale(g)).assignment
    assert torch.equal(model.assign(r), nearest)
    found.loss.backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters())


def test_prior_samples_around_any_prototype():
    """In shares that are the prior's, not the batch's: all codes are of one category here."""
    model = linear_model(prior_sampling="iid", sigma2=1e-6)
    seen = []

    class Watched:
        plain = False

        def __call__(self, z, prior, categories, k):
            seen.append(prior)
            return z.sum() * 0

    model.divergence = Watched()
    model(X.repeat(100, 1, 1, 1), torch.zeros(600, dtype=torch.int64), generator=_generator())
    nearest = torch.cdist(seen[0], model.prototypes).argmin(1)
    shares = torch.bincount(nearest, minlength=3) / 600
    assert (shares - 1 / 3).abs().max() < 4 * (2 / 9 / 600) ** 0.5


def test_prototypes_begin_apart_by_the_margin():
    """Twice as large for four times the margin; a descriptor of one's own is left as it is."""
    found = []
    for margin in (0.5, 1.0, 4.0):
        torch.manual_seed(0)
        found.append(linear_model(margin=margin, descriptor="ema").prototypes)
    torch.testing.assert_close(found[2], 2 * found[1])
    assert torch.equal(found[0], found[1])
    own = Points(3, 3)
    assert torch.equal(linear_model(margin=4.0, descriptor=own).prototypes, torch.eye(3))


def test_no_such_assignment():
    with pytest.raises(ValueError, match=r"assignment must be one of 'euclidean'.*, got 'nearest'"):
        linear_model(assignment="nearest")


@pytest.mark.parametrize("labels", [None, LABELS], ids=["cgm1", "cgm2"])
@pytest.mark.parametrize("mapped", [False, True], ids=["identity", "linear"])
@pytest.mark.parametrize("own", [False, True], ids=["named", "own"])
def test_the_loss_is_the_sum_of_its_parts(labels, mapped, own):
    options = {"sigma2": 0.05, "prior_sigma2": 0.2, "margin": 2.0}
    if mapped:
        options["mapper"] = nn.Linear(3, 3)
    if own:
        options |= {"descriptor": Points(3, 3), "likelihood": Laplace()}
    model = linear_model(mmd_weight=10.0, margin_weight=3.0, **options)
    output = model(X, labels, generator=_generator())
    by_hand = _loss_by_hand(model, X, labels, (10.0, 3.0), 0.05, 0.2, 2.0)
    # Each MMD² is right to LOSS_TOLERANCE of Σ|c_ij||k − 1| <= 4, each other sum to a few ulp.
    close = {"atol": 2 * 10 * 4 * LOSS_TOLERANCE, "rtol": 1e-6}
    for name, expected in zip(("loss", "reconstruction", "mmd", "margin"), by_hand, strict=True):
        torch.testing.assert_close(getattr(output, name), expected, check_dtype=False, **close)
    expected = labels if labels is not None else torch.cdist(output.r, model.prototypes).argmin(1)
    assert torch.equal(output.assignment, expected)
    ours = torch.autograd.grad(output.loss, list(model.parameters()))
    theirs = torch.autograd.grad(by_hand[0], list(model.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        # Each is right to 1e-5 of its norm; so is their sum over terms unless those cancel.
        assert (a - b).norm() <= 1e-4 * b.norm()
        assert b.any()


def test_a_target_of_its_own_is_what_the_decoder_explains():
    model = linear_model(mmd_weight=0.0, margin_weight=0.0)
    clean = (X < 0.5).float()
    seen = model(X, target=clean, generator=_generator())
    z = seen.r + 0.02**0.5 * torch.randn((2, 6, 3), generator=_generator())[0]
    expected = -model.likelihood.log_prob(model.decode(z), clean).mean()
    torch.testing.assert_close(seen.reconstruction, expected.detach())


def test_detach_prior_leaves_the_prototypes_to_the_margin_loss():
    for mapper in (None, nn.Linear(3, 3)):
        model = linear_model(detach_prior=True, margin_weight=0.0, mapper=mapper)
        model(X).loss.backward()
        grad = model.prototypes.grad
        assert grad is None or not grad.any()
        assert model.encoder[1].weight.grad.any()


class Recorder(nn.Module):
    def forward(self, z):
        self.z = z
        return z.new_zeros(len(z), 1, 8, 8)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("noise", [{"sigma2": 0.02}, {"rate_bits": 12.0}], ids=["sigma2", "rate"])
def test_the_noise_has_variance_sigma2(mapped, noise):
    """The root is taken once: 0.02 as a deviation, or a root of a root, would be far off."""
    sigma2 = noise.get("sigma2", 4 ** (-12 / 8))
    encoder, decoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), Recorder()
    mapper = nn.Sequential(nn.Identity()) if mapped else None
    model = CGM(encoder, decoder, latent_dim=8, num_prototypes=2, mapper=mapper, **noise)
    assert model.sigma2 == pytest.approx(sigma2, rel=1e-15)
    x = torch.rand(2048, 1, 8, 8)
    r = model.encode(x)
    for call in (model, lambda images: model.reconstruct(images, noise=True)):
        call(x)
        drawn = (decoder.z - r).detach().double()
        assert abs(float(drawn.square().mean()) - sigma2) < 3 * sigma2 * (2 / drawn.numel()) ** 0.5
        assert abs(float(drawn.mean())) < 3 * (sigma2 / drawn.numel()) ** 0.5


def test_unit_power():
    model = linear_model(power="unit", sigma2=0.3)
    r = model.encode(torch.rand(64, 1, 8, 8))
    before = model.encoder(torch.rand(64, 1, 8, 8)).var(0, correction=0)
    variance = r.detach().double().var(0, correction=0)
    # Batch normalisation adds 1e-5 to the variance that it divides by.
    assert (variance / 0.7 <= 1 + 1e-6).all()
    assert (variance / 0.7 >= 1 - 1e-4 / before.min().item()).all()


def test_usage_is_a_running_mean():
    model = linear_model()
    output = model(X, LABELS)
    model.after_step(output, decay=0.75)
    torch.testing.assert_close(model.usage, 0.75 / 3 + 0.25 * torch.tensor([2.0, 1.0, 3.0]) / 6)
    assert model.prior().weights.tolist() == (model.usage / model.usage.sum()).tolist()


@pytest.mark.parametrize("descriptor", ["learned", "ema"])
def test_reseed_dead(descriptor):
    model = linear_model(reseed_dead=3, descriptor=descriptor)
    with torch.no_grad():
        model.prototypes.copy_(torch.tensor([[0.0] * 3, [900.0] * 3, [800.0] * 3]))
    for step in range(1, 4):
        output = model(X)
        before = model.prototypes.detach().clone()
        model.after_step(output)
        if step < 3:  # two steps without a member: not yet
            assert torch.equal(model.prototypes[1:], before[1:])
    for k in (1, 2):
        assert (output.r == model.prototypes[k].detach()).all(1).any()
    assert model.prototypes[0].tolist() == before[0].tolist() or descriptor == "ema"
    assert model.idle_steps.tolist() == [0, 0, 0]


def test_dead_prototypes_stay_by_default():
    model = linear_model()
    with torch.no_grad():
        model.prototypes[2] = 900.0
    for _ in range(50):
        model.after_step(model(X))
    assert model.prototypes[2].tolist() == [900.0] * 3
    assert model.idle_steps[2] == 50


def test_generate():
    model = linear_model().eval()
    images, categories = model.generate(7, category=2, generator=_generator())
    assert images.shape == (7, 1, 8, 8)
    assert (images >= 0).all()
    assert (images <= 1).all()
    assert categories.tolist() == [2] * 7
    z = model.prototypes[2] + 0.02**0.5 * torch.randn(7, 3, generator=_generator())
    torch.testing.assert_close(images, model.likelihood.mean(model.decode(z)).detach())


def test_generate_by_mixing_weight():
    model = linear_model().eval()
    model.usage.copy_(torch.tensor([0.2, 0.8, 0.0]))
    n = 3000
    for mixing, weights in (("empirical", (0.2, 0.8, 0.0)), ("uniform", (1 / 3,) * 3)):
        _, categories = model.generate(n, mixing=mixing, generator=_generator())
        for k, p in enumerate(weights):
            share = float((categories == k).float().mean())
            assert abs(share - p) <= 3 * (p * (1 - p) / n) ** 0.5


def test_the_prior_has_the_component_variance_it_was_trained_with():
    assert linear_model(sigma2=0.1).prior().variances.tolist() == pytest.approx([0.1] * 3)
    wide = linear_model(sigma2=0.1, prior_sigma2=1.0).prior("uniform")
    assert wide.variances.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_prototypes": 1}, "num_prototypes must be at least 2, got 1"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"sigma2": 0.1, "rate_bits": 3.0}, "sigma2 or rate_bits, not both"),
        ({"sigma2": 0.0}, "sigma2 must be"),
        ({"power": "half"}, "power must be one of 'free', 'unit', got 'half'"),
        ({"power": "unit", "sigma2": 2.0}, "sigma2 <= 1"),
        ({"reseed_dead": -1}, "reseed_dead must be at least 0"),
        ({"likelihood": "poisson"}, "likelihood must be one of"),
        ({"descriptor": "median"}, "descriptor must be one of"),
        ({"descriptor": Points(4, 3)}, r"prototypes must be \[3, 3\], got \[4, 3\]"),
        ({"mmd_weight": -1.0}, "mmd_weight must be"),
        ({"backend": "fpga"}, "backend must be one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CGM(nn.Flatten(), nn.Identity(), **{"latent_dim": 3, "num_prototypes": 3, **arguments})


def test_bad_calls():
    model = linear_model()
    with pytest.raises(ValueError, match=r"category must lie in \[0, 3\), got 3"):
        model.generate(1, category=3)
    with pytest.raises(ValueError, match="mixing must be one of"):
        model.generate(1, mixing="fair")
    with pytest.raises(ValueError, match="labels"):
        model(X, torch.tensor([0, 1, 2, 3, 0, 0]))


@pytest.mark.parametrize("descriptor", ["learned", "attention"])
def test_copies_and_state(descriptor):
    options = {"descriptor": descriptor, "power": "unit", "reseed_dead": 2}
    model = linear_model(**options)
    model.after_step(model(X))
    fresh = linear_model(**options)
    fresh.load_state_dict(model.state_dict())
    for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(
            other(X, generator=_generator()).loss, model(X, generator=_generator()).loss
        )
        assert torch.equal(other.usage, model.usage)


@pytest.mark.parametrize("mapped", [False, True])
def test_bf16_networks_and_float32_losses(mapped):
    mapper = nn.Linear(5, 5) if mapped else None
    model = CGM(
        DCGANEncoder((1, 8, 8), 5, 4), DCGANDecoder(5, (1, 8, 8), 4), latent_dim=5, mapper=mapper
    )
    full = model(X, generator=_generator())
    with torch.autocast("cpu", torch.bfloat16):
        assert model.encoder(X).dtype == torch.bfloat16
        output = model(X, generator=_generator())
    for name in ("loss", "reconstruction", "mmd", "margin", "r"):
        assert getattr(output, name).dtype == torch.float32
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    # Three layers that each round to 8 bits of mantissa, on logits of the order of one.
    assert abs(output.reconstruction / full.reconstruction - 1) < 3 * 2**-8


def test_repr_tells_the_sizes():
    assert "latent_dim=3, num_prototypes=3, sigma2=0.125" in repr(linear_model(sigma2=0.125))
