"""Many features on the CPU, where tiles of rows meet in blocked matrix products: see wide.h."""

import pytest
import torch

import cgm_fast
from cgm_fast.ops.backends import availability
from cgm_fast.testing import GRADIENT_TOLERANCE, relative_l2

pytestmark = pytest.mark.skipif(
    availability()["native"] is not None, reason="the compiled module is not here"
)


def value_and_gradients(function, *inputs):
    leaves = [value.detach().requires_grad_() for value in inputs]
    value = function(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("d", [128, 129, 300, 1000])
@pytest.mark.parametrize(("n", "m"), [(1, 700), (200, 193), (16, 17)])
def test_mmd_of_every_shape_of_tiles(n, m, d):
    x = torch.randn(n, d) + 100
    y = torch.randn(m, d) * 1.1 + 100
    found = value_and_gradients(lambda x, y: cgm_fast.mmd(x, y, backend="native"), x, y)
    exact = value_and_gradients(cgm_fast.mmd, x.double(), y.double())
    assert abs(found[0] - exact[0]) <= 1e-6
    for part, expected in zip(found[1:], exact[1:], strict=True):
        assert relative_l2(part, expected) <= GRADIENT_TOLERANCE


def test_mmd_of_a_hundred_thousand_features():
    x, y = torch.randn(2, 20, 100_000)
    found = value_and_gradients(cgm_fast.mmd, x, y)
    exact = value_and_gradients(cgm_fast.mmd, x.double(), y.double())
    for part, expected in zip(found, exact, strict=True):
        assert relative_l2(part, expected) <= GRADIENT_TOLERANCE


def test_mmd_of_storage_that_is_neither_aligned_nor_in_one_piece():
    d = 200
    flat = torch.randn(1 + 90 * d)
    unaligned, y = flat[1:].view(90, d), torch.randn(d, 70).T
    expected = cgm_fast.mmd(unaligned.clone(), y.contiguous())
    assert torch.equal(cgm_fast.mmd(unaligned, y), expected)
    spread = torch.randn(90, 2 * d)[:, ::2]
    assert torch.equal(cgm_fast.mmd(spread, y), cgm_fast.mmd(spread.contiguous(), y.contiguous()))


@pytest.mark.parametrize("wanted", ["x", "y"])
def test_mmd_with_the_gradient_of_one_sample(wanted):
    x, y = torch.randn(250, 150), torch.randn(210, 150)
    both = dict(zip("xy", value_and_gradients(cgm_fast.mmd, x, y)[1:], strict=True))
    leaf = {"x": x, "y": y}[wanted].requires_grad_()
    (gradient,) = torch.autograd.grad(cgm_fast.mmd(x, y), leaf)
    assert torch.equal(gradient, both[wanted])


@pytest.mark.parametrize("moves", ["x", "both"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_hessian_vector_products(moves, estimator):
    def product(dtype):
        x = base.to(dtype).requires_grad_()
        y = other.to(dtype).requires_grad_(moves == "both")
        inputs = (x, y) if moves == "both" else (x,)
        loss = cgm_fast.mmd(x, y, estimator=estimator)
        gradients = torch.autograd.grad(loss, inputs, create_graph=True)
        along = sum((g * t.to(dtype)).sum() for g, t in zip(gradients, tangents, strict=False))
        return torch.autograd.grad(along, inputs)

    base, other = torch.randn(230, 140), torch.randn(100, 140) + 0.1
    tangents = torch.randn(230, 140), torch.randn(100, 140)
    for part, expected in zip(product(torch.float32), product(torch.float64), strict=True):
        assert relative_l2(part, expected) <= GRADIENT_TOLERANCE


def margin_and_gradients(r, g, **options):
    r, g = r.detach().requires_grad_(), g.detach().requires_grad_()
    loss, assignment = cgm_fast.prototype_margin(r, g, **options)
    return (loss.detach(), *torch.autograd.grad(loss, (r, g))), assignment


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.05, 1e-3])
def test_margins_that_many_few_or_no_pairs_are_within(scale, labels):
    r, g = scale * torch.randn(130, 256), scale * torch.randn(250, 256)
    options = {"labels": torch.randint(250, (130,))} if labels else {}
    found, assignment = margin_and_gradients(r, g, backend="native", **options)
    exact, nearest = margin_and_gradients(r.double(), g.double(), **options)
    assert torch.equal(assignment, nearest)
    for part, expected in zip(found, exact, strict=True):
        assert relative_l2(part, expected) <= GRADIENT_TOLERANCE


def test_of_equal_prototypes_the_first_is_nearest():
    g = torch.randn(100, 300).repeat(5, 1)
    r = g[torch.randint(500, (64,))] + 0.1 * torch.randn(64, 300)
    _, assignment = margin_and_gradients(r, g, backend="native")
    assert (assignment < 100).all()


def test_a_product_s_rounding_decides_nothing():
    """Prototypes whose distances differ by less than a product of their coordinates can tell."""
    torch.manual_seed(0)
    g = 1000 + torch.randn(1, 512) + 1e-3 * torch.randn(300, 512)
    r = g[:200] + 1e-4 * torch.randn(200, 512)
    _, assignment = margin_and_gradients(r, g, backend="native")
    nearest = torch.cdist(
        r.double(), g.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).argmin(1)
    assert torch.equal(assignment, nearest)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_the_loss(value):
    r, g = torch.randn(64, 256), torch.randn(300, 256)
    r[3, 7] = value
    assert not cgm_fast.prototype_margin(r, g, backend="native")[0].isfinite()
    assert not cgm_fast.mmd(r, g, backend="native").isfinite()
