"""Models in other dtypes than float32, beside another default dtype, and another default device."""

import copy

import pytest
import torch
from tiny import linear_model
from torch import nn

from cgm_fast.cgm.models import (
    CGM,
    VAE,
    AutoregressiveDecoder,
    DCGANDecoder,
    DCGANEncoder,
    GatedPixelCNN,
    PixelSNAIL,
    ResNetDecoder,
    ResNetEncoder,
    make_likelihood,
)
from cgm_fast.cgm.models.precision import widened

SHAPE, N, K = (1, 8, 8), 4, 3
X = torch.linspace(0, 1, 6 * 64).reshape(6, *SHAPE)
LABELS = torch.tensor([0, 2, 1, 0, 2, 2])


def small(likelihood="bernoulli", decoder="dcgan", network="dcgan", **options):
    channels = make_likelihood(likelihood).channels(1)
    decoders = {
        "dcgan": lambda: DCGANDecoder(N, (channels, 8, 8), 4),
        "resnet": lambda: ResNetDecoder(N, (channels, 8, 8), 4, blocks=1),
        "pixelcnn": lambda: GatedPixelCNN(N, SHAPE, channels, 4, layers=1),
        "pixelsnail": lambda: PixelSNAIL(N, SHAPE, channels, 4, blocks=1, layers=1),
    }
    encoder = DCGANEncoder(SHAPE, N, 4) if network == "dcgan" else ResNetEncoder(SHAPE, N, 4, 1)
    return CGM(encoder, decoders[decoder](), num_prototypes=K, likelihood=likelihood, **options)


def vae(**options):
    return VAE(DCGANEncoder(SHAPE, 2 * N, 4), DCGANDecoder(N, SHAPE, 4), **options)


MODELS = {
    "cgm": small,
    "resnet": lambda: small(network="resnet", decoder="resnet"),
    "pixelcnn": lambda: small(decoder="pixelcnn"),
    "pixelsnail": lambda: small(decoder="pixelsnail", likelihood="logistic-mixture"),
    "gaussian": lambda: small("gaussian", power="unit", descriptor="ema"),
    "levels": lambda: small("logistic-mixture", descriptor="batch_mean"),
    "mapper": lambda: small(mapper=nn.Linear(N, N), descriptor="attention"),
    "iid": lambda: small(prior_sampling="iid", normalize=True, reseed_dead=1),
    "energy": lambda: small(divergence="energy", assignment="cosine"),
    "vae": vae,
    "infovae": lambda: vae(kl_weight=0.0, mmd_weight=10.0),
}


def step_and_use(model, x, labels=None):
    """A step of training, then images of every kind; what all of them are is checked."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = copy.deepcopy(model)
    out = model.train()(x, labels, generator=torch.Generator().manual_seed(1))
    out.loss.backward()
    optimizer.step()
    model.after_step(out)
    assert bool(out.loss.isfinite())
    changed = [
        not torch.equal(new, old)
        for new, old in zip(model.parameters(), before.parameters(), strict=True)
    ]
    assert sum(changed) > len(changed) / 2
    model.eval()
    images, _ = model.generate(3)
    pictures = [images]
    r, variance = model.encode(x), model.posterior(x)[1]
    priors = model.fitted_priors(r, variance.mean(0))
    if not isinstance(model.decoder, AutoregressiveDecoder):  # which takes a pass per pixel
        pictures += [model.reconstruct(x), model.reconstruct(x, noise=True)]
        pictures += [model.generate(2, category=0, prior=p)[0] for p in priors.values()]
    for picture in pictures:
        assert bool(((picture >= 0) & (picture <= 1)).all())
        assert picture.shape[1:] == SHAPE
    for value in (out.loss, out.r, r, model.decode(r, x), *pictures, model.usage):
        assert value.dtype == widened(next(model.parameters())).dtype
    return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_in_another_dtype(kind, dtype):
    """As the same model in float32, but for rounding; with images of its dtype or of another."""
    model = MODELS[kind]()
    expected = step_and_use(copy.deepcopy(model), X)
    model = model.to(dtype)
    again = copy.deepcopy(model)
    found = step_and_use(model, X.to(dtype))
    if dtype == torch.float64:  # whose noise is drawn otherwise
        torch.testing.assert_close(found.r.float(), expected.r, rtol=1e-4, atol=1e-5)
    else:  # codes of the order of 1, of an 8-bit mantissa through several layers
        torch.testing.assert_close(found.r, expected.r, rtol=0.1, atol=0.3)
        assert float(found.loss.detach()) == pytest.approx(float(expected.loss.detach()), rel=0.2)
    step_and_use(again, X)
    assert {p.dtype for p in model.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_with_labels(dtype):
    step_and_use(small().to(dtype), X, LABELS)
    cvae = VAE(DCGANEncoder((1 + K, 8, 8), 2 * N, 4), DCGANDecoder(N + K, SHAPE, 4), classes=K).to(
        dtype
    )
    out = cvae(X, LABELS)
    out.loss.backward()
    assert bool(out.loss.isfinite())
    assert cvae.eval().generate(2, category=1)[0].shape == (2, *SHAPE)


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", MODELS)
def test_another_default_dtype(float64_by_default, kind):
    model = MODELS[kind]()
    step_and_use(model, X)
    step_and_use(MODELS[kind]().float(), X)  # made before, or put into another since
    step_and_use(MODELS[kind](), X.double())


@pytest.mark.parametrize("kind", MODELS)
def test_the_default_device_is_not_asked(kind):
    """A default device of "meta", whose tensors hold nothing, stands for a GPU's."""
    model = MODELS[kind]()
    expected = step_and_use(copy.deepcopy(model), X)
    generator = torch.Generator().manual_seed(1)
    with torch.device("meta"):
        found = model.train()(X, generator=generator)
        found.loss.backward()
        model.after_step(found)
        model.eval()
        images = model.generate(3)[0], model.reconstruct(X, noise=True)
        rate = model.encode(X).var(0)
    assert torch.equal(found.loss, expected.loss)
    for value in (*found, *images, rate, model.prototypes, model.usage):
        assert value.device.type == "cpu"


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("kind", MODELS)
def test_shapes_without_content(kind, labels):
    """On the device "meta", as tools that count memory or plan a model over devices use it."""
    model, x = MODELS[kind]().to("meta"), X.to("meta")
    out = model.train()(x, None if labels is None else labels.to("meta"))
    out.loss.backward()
    expected = MODELS[kind]().train()(X, labels)
    for found, real in zip(out, expected, strict=True):
        assert (found.device.type, found.shape, found.dtype) == ("meta", real.shape, real.dtype)
    assert all(p.grad is None or p.grad.device.type == "meta" for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_running_means_are_not_lost_to_rounding(dtype):
    """By hundredths they reach their values, as they do in float32."""
    model = small(descriptor="ema").to(dtype)
    r = torch.tensor([[1.0, 2.0, -3.0, 0.5]] * 6)
    output = model.train()(X.to(dtype))._replace(r=r, assignment=torch.tensor([1] * 6))
    for _ in range(900):
        model.after_step(output)
    assert model.usage.tolist() == pytest.approx([0, 1, 0], abs=1e-3)
    assert model.prototypes[1].tolist() == pytest.approx(r[0].tolist(), abs=2e-3)


def test_a_converted_model_is_saved_and_loaded():
    model = small(descriptor="ema").to(torch.bfloat16)
    other = small(descriptor="ema").to(torch.bfloat16)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.prototypes, model.prototypes)
    assert model.to("meta").usage.device.type == "meta"
    assert model.to_empty(device="cpu").usage.device.type == "cpu"


# What an encoder says of itself


def test_latent_dim_is_the_encoders():
    for encoder in (
        DCGANEncoder(SHAPE, 6, 4),
        ResNetEncoder(SHAPE, 6, 4, 1),
        nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64, 6))),
    ):
        model = CGM(encoder, DCGANDecoder(6, SHAPE, 4))
        assert model.latent_dim == 6
        assert model.prototypes.shape == (10, 6)
        assert model.train()(X).r.shape == (6, 6)
        assert VAE(encoder, DCGANDecoder(3, SHAPE, 4)).latent_dim == 3
        assert VAE(encoder, DCGANDecoder(6, SHAPE, 4), sigma2=0.1).latent_dim == 6
        with pytest.raises(ValueError, match="latent_dim must be the encoder's 6, got 10"):
            CGM(encoder, DCGANDecoder(10, SHAPE, 4), latent_dim=10)
    with pytest.raises(ValueError, match=r"a mean and a log-variance for each .*, got 5 numbers"):
        VAE(DCGANEncoder(SHAPE, 5, 4), DCGANDecoder(2, SHAPE, 4))


def test_an_encoder_that_does_not_say():
    silent = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Identity())
    model = CGM(silent, DCGANDecoder(10, SHAPE, 4))
    assert model.latent_dim == 10
    with pytest.raises(ValueError, match="return 10 numbers per image for latent_dim 10, got 6"):
        model(X)
    with pytest.raises(ValueError, match="return 4 numbers per image for latent_dim 2, got 6"):
        VAE(silent, DCGANDecoder(2, SHAPE, 4), latent_dim=2)(X)


# Some labels


@pytest.mark.parametrize("descriptor", ["learned", "batch_mean"])
@pytest.mark.parametrize("assignment", ["euclidean", "cosine"])
def test_an_image_without_a_label_goes_to_its_nearest_prototype(descriptor, assignment):
    model = linear_model(descriptor=descriptor, assignment=assignment)
    some = torch.tensor([0, -1, 1, -1, 2, -1])
    nearest = model.assign(model.encode(X))
    filled = torch.where(some < 0, nearest, some)
    assert torch.equal(model.assign(model.encode(X), some), filled)
    found = model(X, some, generator=torch.Generator().manual_seed(1))
    expected = model(X, filled, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.assignment, filled)
    assert not torch.equal(filled, nearest)
