"""The loss modules: they pass their options on, check them, and behave as `nn.Module`s do."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import cgm_fast
from cgm_fast import CGMLoss, MMDLoss, PrototypeLoss
from cgm_fast.testing import assert_gradient_close, prototypes, sample_weights, samples

X, Y = samples(31, 33, 10)
R, G, LABELS = prototypes(31, 10, 5)
NOISE = torch.randn(2, 31, 5, generator=torch.Generator().manual_seed(0))

MMD_OPTIONS = {
    "default": {},
    "number": {"bandwidth": 2.0},
    "several": {"bandwidth": [1.0, 2.0], "kernel_agg": "sum"},
    "infovae": {"bandwidth": "infovae"},
    "tensor": {"bandwidth": torch.tensor([1.0, 3.0])},
    "unbiased": {"estimator": "unbiased", "backend": "reference"},
}
PROTOTYPE_OPTIONS = {
    "default": {},
    "margin": {"margin": 2.0, "backend": "reference"},
    "mean": {"negatives": "mean", "reduction": "sum"},
}
CGM_OPTIONS = {
    "default": {},
    "weights": {"mmd_weight": 10.0, "margin_weight": 0.5, "margin": 2.0, "negatives": "mean"},
    "noise": {"sigma2": 0.1, "prior_sigma2": 1.0, "detach_prior": True},
    "kernel": {"bandwidth": (1.0, 2.0), "kernel_agg": "sum", "backend": "reference"},
}
LOSSES = [MMDLoss, PrototypeLoss, CGMLoss]


@pytest.mark.parametrize("option", MMD_OPTIONS)
def test_mmd_loss_is_mmd(option):
    option = MMD_OPTIONS[option]
    w = sample_weights(31)
    assert torch.equal(MMDLoss(**option)(X, Y), cgm_fast.mmd(X, Y, **option))
    weighted = cgm_fast.mmd(X, Y, x_weights=w, y_weights=None, **option)
    assert torch.equal(MMDLoss(**option)(X, Y, x_weights=w), weighted)


def test_labels_are_not_taken_for_weights():
    with pytest.raises(TypeError, match=r"two samples, got 3 arguments; it has no labels.*by name"):
        MMDLoss()(X, Y, torch.ones(31))


@pytest.mark.parametrize("option", PROTOTYPE_OPTIONS)
@pytest.mark.parametrize("labels", [None, LABELS], ids=["nearest", "labelled"])
def test_prototype_loss_is_prototype_margin(option, labels):
    option = PROTOTYPE_OPTIONS[option]
    loss = PrototypeLoss(**option)(R, G, labels)
    assert torch.equal(loss, cgm_fast.prototype_margin(R, G, labels, **option).loss)


@pytest.mark.parametrize("option", CGM_OPTIONS)
@pytest.mark.parametrize("labels", [None, LABELS], ids=["nearest", "labelled"])
def test_cgm_loss_module_is_cgm_loss(option, labels):
    option = CGM_OPTIONS[option]
    result = CGMLoss(**option)(R, G, labels, noise=NOISE)
    expected = cgm_fast.cgm_loss(R, G, labels, noise=NOISE, **option)
    assert all(torch.equal(one, other) for one, other in zip(result, expected, strict=True))
    assert result._fields == ("loss", "mmd", "margin", "assignment", "z")


def test_cgm_loss_takes_a_generator():
    def draw():
        return CGMLoss()(R, G, generator=torch.Generator().manual_seed(3)).z

    assert torch.equal(draw(), draw())


def test_normalize_puts_samples_and_prototypes_on_the_unit_sphere():
    unit = [nn.functional.normalize(z, dim=1) for z in (R, G)]
    loss = PrototypeLoss(normalize=True)(R, G)
    assert torch.equal(loss, PrototypeLoss()(*unit))
    assert torch.equal(loss, PrototypeLoss(normalize=True)(4 * R, G / 2))  # exact scalings


def test_a_bandwidth_parameter_is_trained():
    bandwidth = nn.Parameter(torch.tensor(2.0))
    loss = MMDLoss(bandwidth)
    assert [name for name, _ in loss.named_parameters()] == ["bandwidth"]
    loss(X, Y).backward()
    (expected,) = torch.autograd.grad(cgm_fast.mmd(X, Y, bandwidth=bandwidth), bandwidth)
    assert_gradient_close(bandwidth.grad, expected)


def test_a_bandwidth_tensor_is_a_buffer_of_its_own():
    bandwidth = torch.tensor([1.0, 2.0])
    loss = MMDLoss(bandwidth)
    bandwidth.zero_()
    assert list(loss.parameters()) == []
    assert loss.state_dict()["bandwidth"].tolist() == [1.0, 2.0]
    other = MMDLoss(torch.ones(2))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(X, Y), loss(X, Y))


@pytest.mark.parametrize("make", LOSSES)
def test_a_plain_loss_has_no_state(make):
    assert make().state_dict() == {}
    assert list(make().parameters()) == []


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles(make, duplicate):
    loss = make(backend="reference")
    args = (X, Y) if make is MMDLoss else (R, G)
    how = {"noise": NOISE} if make is CGMLoss else {}
    one, other = loss(*args, **how), duplicate(loss)(*args, **how)
    assert torch.equal(one[0], other[0]) if make is CGMLoss else torch.equal(one, other)


@pytest.mark.parametrize(
    ("loss", "shown"),
    [
        (MMDLoss(2.0, estimator="unbiased"), ["bandwidth=2.0", "estimator=unbiased"]),
        (MMDLoss(torch.ones(3)), ["bandwidth=tensor[3]", "estimator=biased", "backend=auto"]),
        (MMDLoss(kernel_agg="sum", check_finite=True), ["kernel_agg=sum", "check_finite=True"]),
        (PrototypeLoss(0.5, negatives="mean"), ["margin=0.5", "negatives=mean", "backend=auto"]),
        (PrototypeLoss(reduction="sum", normalize=True), ["reduction=sum", "normalize=True"]),
        (CGMLoss(prior_sigma2=1, detach_prior=True), ["prior_sigma2=1.0", "detach_prior=True"]),
        (CGMLoss(0.1, mmd_weight=3), ["sigma2=0.1", "mmd_weight=3.0", "margin_weight=1.0"]),
    ],
)
def test_printing_shows_options(loss, shown):
    assert all(text in repr(loss) for text in shown)


@pytest.mark.parametrize("make", LOSSES)
def test_printing_leaves_no_option_out(make):
    shown = make().extra_repr()
    options = [name for name in inspect.signature(make.__init__).parameters if name != "self"]
    assert [part.split("=")[0] for part in shown.split(", ")] == options


@pytest.mark.parametrize(
    ("bandwidth", "same"),
    [
        (np.float32(2), 2.0),
        (np.array([1.0, 2.0]), (1.0, 2.0)),
        (torch.tensor([1, 2]), torch.tensor([1.0, 2.0])),
        ([torch.tensor(1.0), 2.0], torch.tensor([1.0, 2.0])),
    ],
    ids=["number", "array", "integers", "list"],
)
def test_bandwidths_in_every_form(bandwidth, same):
    assert torch.equal(MMDLoss(bandwidth)(X, Y), MMDLoss(same)(X, Y))
    if not isinstance(same, torch.Tensor):
        noise = {"noise": NOISE}
        found, expected = (CGMLoss(bandwidth=s)(R, G, **noise).loss for s in (bandwidth, same))
        assert torch.equal(found, expected)


def test_options_may_be_numbers_of_numpy():
    loss = PrototypeLoss(np.int64(2))
    assert loss.margin == 2.0
    assert type(loss.margin) is float
    assert torch.equal(loss(R, G), cgm_fast.prototype_margin(R, G, margin=np.float32(2)).loss)


@pytest.mark.parametrize(
    ("make", "op", "args"),
    [
        (MMDLoss, "mmd", (X, Y)),
        (PrototypeLoss, "prototype_margin", (R, G)),
        (CGMLoss, "cgm_loss", (R, G)),
    ],
)
def test_last_backend(make, op, args):
    loss = make(backend="reference")
    loss(*args)
    assert loss.last_backend == cgm_fast.last_backend(op) == "reference"


@pytest.mark.parametrize("make", LOSSES)
def test_check_finite_reaches_the_function(make):
    first = X.clone() if make is MMDLoss else R.clone()
    first[0, 0] = float("inf")
    second = Y if make is MMDLoss else G
    with pytest.raises(ValueError, match="must be finite, got 1 NaN or infinite"):
        make(check_finite=True)(first, second)


@pytest.mark.parametrize("make", [MMDLoss, PrototypeLoss])
def test_compiles_whole(make):
    torch.compiler.reset()
    loss = make()
    args = (X, Y) if make is MMDLoss else (R, G)
    call = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(call(*args), loss(*args))


NAN = float("nan")
BAD = {
    "mmd_bandwidth": (MMDLoss, {"bandwidth": -1.0}, ValueError, r"bandwidth .* > 0, got -1"),
    "mmd_name": (MMDLoss, {"bandwidth": "m"}, ValueError, r"'paper', 'infovae', got 'm'"),
    "mmd_list": (MMDLoss, {"bandwidth": [1, 0]}, ValueError, r"bandwidth .* > 0, got 0"),
    "mmd_empty": (MMDLoss, {"bandwidth": []}, ValueError, r"bandwidth .* at least one number"),
    "mmd_tensor": (MMDLoss, {"bandwidth": -torch.ones(2)}, ValueError, r"bandwidth .* > 0, got -1"),
    "mmd_booleans": (MMDLoss, {"bandwidth": torch.tensor(True)}, TypeError, r"bandwidth .*bool"),
    "mmd_none": (
        MMDLoss,
        {"bandwidth": None},
        TypeError,
        r"bandwidth must be .*a number.*got None",
    ),
    "mmd_parameters": (
        MMDLoss,
        {"bandwidth": [nn.Parameter(torch.ones(())), 1.0]},
        TypeError,
        r"bandwidth must be one Parameter",
    ),
    "mmd_estimator": (MMDLoss, {"estimator": "u"}, ValueError, r"estimator .*'biased', .*got 'u'"),
    "mmd_agg": (MMDLoss, {"kernel_agg": "max"}, ValueError, r"kernel_agg .*got 'max'"),
    "mmd_backend": (MMDLoss, {"backend": "gpu"}, ValueError, r"backend .*'reference'.*got 'gpu'"),
    "margin": (PrototypeLoss, {"margin": -1.0}, ValueError, r"margin .* >= 0, got -1"),
    "negatives": (PrototypeLoss, {"negatives": "x"}, ValueError, r"negatives .*'sum', 'mean'"),
    "reduction": (PrototypeLoss, {"reduction": "none"}, ValueError, r"reduction .*got 'none'"),
    "prototype_backend": (PrototypeLoss, {"backend": "gpu"}, ValueError, r"backend .*got 'gpu'"),
    "sigma2": (CGMLoss, {"sigma2": NAN}, ValueError, r"sigma2 .* >= 0, got nan"),
    "prior_sigma2": (CGMLoss, {"prior_sigma2": -1}, ValueError, r"prior_sigma2 .* >= 0, got -1"),
    "mmd_weight": (CGMLoss, {"mmd_weight": "1"}, TypeError, r"mmd_weight .*number, got str"),
    "margin_weight": (CGMLoss, {"margin_weight": -1}, ValueError, r"margin_weight .*got -1"),
    "cgm_margin": (CGMLoss, {"margin": -1}, ValueError, r"margin .*got -1"),
    "cgm_bandwidth": (CGMLoss, {"bandwidth": 0}, ValueError, r"bandwidth .* > 0, got 0"),
    "cgm_name": (CGMLoss, {"bandwidth": "m"}, ValueError, r"'paper', 'infovae', got 'm'"),
    "cgm_tensor": (CGMLoss, {"bandwidth": torch.ones(1)}, TypeError, r"bandwidth .*got Tensor"),
    "cgm_agg": (CGMLoss, {"kernel_agg": "max"}, ValueError, r"kernel_agg .*got 'max'"),
    "cgm_negatives": (CGMLoss, {"negatives": "x"}, ValueError, r"negatives .*got 'x'"),
    "cgm_backend": (CGMLoss, {"backend": "gpu"}, ValueError, r"backend .*got 'gpu'"),
}


@pytest.mark.parametrize(("make", "option", "error", "message"), BAD.values(), ids=BAD)
def test_a_bad_option_is_refused_when_the_loss_is_made(make, option, error, message):
    with pytest.raises(error, match=message):
        make(**option)
