"""Matrix products as they are taken on a GPU: Triton's kernels for tiles, in the interpreter, and
decisions that the host does not wait for."""

import pytest
import torch

import cgm_fast
from cgm_fast.ops import backends, products
from cgm_fast.ops.mmd import matmul as mmd_products
from cgm_fast.ops.prototype_margin import matmul as margin_products
from cgm_fast.testing import relative_l2, sample_weights, samples

if backends.availability()["triton"] is not None:
    pytest.skip("triton cannot run here", allow_module_level=True)

from cgm_fast.ops.chunks import TileSize
from cgm_fast.ops.triton import distances


@pytest.fixture
def on_gpu(monkeypatch):
    """The CPU has Triton's kernels, and tiles that cut groups and blocks."""
    for module in (products, mmd_products):
        monkeypatch.setattr(module, "kernels_for", lambda device: distances)
    monkeypatch.setattr(mmd_products, "tile_size", lambda *_: TileSize(40, 300))


OPTIONS = {
    "biased": {},
    "unbiased": {"estimator": "unbiased"},
    "three": {"bandwidth": [2.0, 4.0, 8.0], "kernel_agg": "sum"},
    "trained": {"bandwidth": torch.tensor([3.0, 5.0])},
    "narrow": {"bandwidth": 0.3},  # by differences
    "weights": {"weighted": True},
    "laplacian": {"kernel": "laplacian"},
    "energy": {"kernel": "energy", "weighted": True},
    "imq": {"kernel": "imq", "bandwidth": torch.tensor([3.0, 5.0]), "weighted": True},
}


def gradients(x, y, backend, *, weighted=False, second=False, **options):
    """The loss, its gradients in everything, and those of these."""
    leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    if weighted:
        for name, sample in (("x_weights", x), ("y_weights", y)):
            options[name] = sample_weights(sample.shape[-2], total=1.0, dtype=x.dtype)
            leaves.append(options[name].requires_grad_())
    if isinstance(options.get("bandwidth"), torch.Tensor):
        options["bandwidth"] = options["bandwidth"].to(x.dtype).clone().requires_grad_()
        leaves.append(options["bandwidth"])
    loss = cgm_fast.mmd(*leaves[:2], backend=backend, **options)
    found = torch.autograd.grad(loss.sum(), leaves, create_graph=second)
    if second:
        along = sum((g * torch.linspace(-1, 1, g.numel()).view_as(g)).sum() for g in found)
        found = (*found, *torch.autograd.grad(along, leaves))
    return [loss.detach(), *(value.detach() for value in found)]


@pytest.mark.filterwarnings("ignore::cgm_fast.BandwidthWarning")
@pytest.mark.parametrize("option", OPTIONS)
def test_the_kernel_for_tiles_agrees_with_the_reference(option, on_gpu):
    x, y = samples(70, 50, 10)
    found = gradients(x, y, "matmul", **OPTIONS[option])
    exact = gradients(x.double(), y.double(), "reference", **OPTIONS[option])
    for value, wanted in zip(found, exact, strict=True):
        assert relative_l2(value, wanted) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_of_a_batch_in_other_dtypes(dtype, on_gpu):
    x, y = samples(33, 45, 5, batch=2, dtype=dtype)
    found = gradients(x, y, "matmul")
    exact = gradients(x.double(), y.double(), "reference")
    for value, wanted in zip(found, exact, strict=True):
        assert relative_l2(value, wanted) < (1e-12 if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize("bandwidth", [3.0, 0.3], ids=["products", "differences"])
@pytest.mark.filterwarnings("ignore::cgm_fast.BandwidthWarning")
def test_second_derivatives_and_kernel_products_too(bandwidth, on_gpu):
    x, y = samples(40, 30, 10)
    options = {"second": True, "bandwidth": torch.tensor([bandwidth])}
    found = gradients(x, y, "matmul", **options)
    exact = gradients(x.double(), y.double(), "reference", **options)
    for value, wanted in zip(found, exact, strict=True):
        assert relative_l2(value, wanted) < 2e-5
    v = torch.rand(30, 3)
    out = cgm_fast.kernel_product(x, y, v, bandwidth=bandwidth, backend="matmul")
    wide = (value.double() for value in (x, y, v))
    truth = cgm_fast.kernel_product(*wide, bandwidth=bandwidth, backend="reference")
    assert relative_l2(out, truth) < 1e-5


def test_where_tf32_is_allowed_weights_are_rounded_before_they_are_added_up(on_gpu, fast):
    x, y = samples(70, 50, 10)
    found = gradients(x, y, "matmul")
    exact = gradients(x.double(), y.double(), "reference")
    errors = [relative_l2(value, wanted) for value, wanted in zip(found, exact, strict=True)]
    assert errors[0] < 1e-5  # samples and products are float32's here
    assert 1e-5 < max(errors[1:]) < 2e-3


def test_outliers_are_looked_for_on_the_device(on_gpu, monkeypatch):
    asked = []
    original = torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda t: asked.append(t) or original(t))
    run = mmd_products.fwd
    x, y = samples(70, 50, 10)
    x[0] += 1e4
    problem, wanted = mmd_problem(x, y)
    value = run(problem, wanted)
    assert not asked
    monkeypatch.setattr(torch.Tensor, "__bool__", original)
    exact = cgm_fast.mmd(x.double(), y.double(), backend="reference")
    assert relative_l2(value.loss, exact) < 1e-5


def mmd_problem(x, y):
    from cgm_fast.ops.mmd.problem import Problem, Wanted

    n, m = len(x), len(y)
    relations = (n**-2.0, -1.0 / (n * m), -1.0 / (n * m), m**-2.0)
    static = ((n, m), relations, (float(x.shape[1]),), (1.0,), "gaussian", True)
    return Problem(x, y, None, None, None, *static), Wanted(0, n + m, False, False, False)


def duplicates(k, d):
    """Samples about prototypes, each of which is there three times."""
    generator = torch.Generator().manual_seed(0)
    some = torch.randn(k // 3, d, generator=generator)
    g = torch.cat((some, some, some))
    r = some[torch.arange(90) % len(some)] + 0.01 * torch.randn(90, d, generator=generator)
    return r, g


@pytest.mark.parametrize("k", [3, 30, 300])
@pytest.mark.parametrize("decide", ["_decide", "_decide_on_host"])
def test_equal_prototypes_and_near_ones_whoever_decides(k, decide, monkeypatch):
    """Everything nearer than the margin, and nothing else, on a GPU as on the CPU."""
    monkeypatch.setattr(margin_products, "_decide_on_host", getattr(margin_products, decide))
    r, g = duplicates(k, 100)
    leaves = r.requires_grad_(), g.requires_grad_()
    found = cgm_fast.prototype_margin(*leaves, backend="matmul")
    exact = cgm_fast.prototype_margin(*leaves, backend="reference")
    assert torch.equal(found.assignment, exact.assignment)
    assert int(found.assignment.max()) < k // 3
    assert relative_l2(found.loss.detach(), exact.loss.detach()) < 1e-5
    for value, wanted in zip(
        torch.autograd.grad(found.loss, leaves),
        torch.autograd.grad(exact.loss, leaves),
        strict=True,
    ):
        assert relative_l2(value, wanted) < 1e-4  # either has a product's rounding in r − g
