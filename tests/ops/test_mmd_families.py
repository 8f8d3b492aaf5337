"""Radial kernels other than the Gaussian: values, first and second derivatives, coincident rows.

A row of FORMULAS is all that a new family needs here.
"""

import importlib
import math

import pytest
import torch

import cgm_fast
from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.ops.mmd.problem import Problem, Tangent, Wanted

wide = torch.float64

# k as a function of r = |a - b| and σ, as the documentation of `mmd` has it.
FORMULAS = {
    "gaussian": lambda r, s: torch.exp(-(r**2) / (2 * s**2)),
    "laplacian": lambda r, s: torch.exp(-r / s),
    "matern12": lambda r, s: torch.exp(-r / s),
    "matern32": lambda r, s: (1 + math.sqrt(3) * r / s) * torch.exp(-math.sqrt(3) * r / s),
    "matern52": lambda r, s: (
        (1 + math.sqrt(5) * r / s + 5 * r**2 / (3 * s**2)) * torch.exp(-math.sqrt(5) * r / s)
    ),
    "rational_quadratic": lambda r, s: 1 / (1 + r**2 / (2 * s**2)),
    "imq": lambda r, s: 1 / torch.sqrt(1 + r**2 / s**2),
    "energy": lambda r, s: -r / s,
}
SMOOTH = [name for name, family in FAMILIES.items() if family.order == 2]
KINKED = [name for name in FAMILIES if name not in SMOOTH]


def samples(n=24, m=30, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(k, d, generator=generator, dtype=wide) for k in (n, m))
    return x, y + 0.4


def exact(x, y, kernel, sigma, v=None, w=None, *, unbiased=False):
    """MMD² from all pairs; safe to differentiate, for no distance is the root of 0."""

    def average(a, b, p, q):
        same = a is b
        squares = (a[:, None] - b).square().sum(-1)
        own = torch.eye(len(a), len(b), dtype=torch.bool) if same else torch.zeros(1, 1).bool()
        coincide = own | (squares == 0)
        r = torch.where(coincide, 1.0, squares).sqrt()
        k = torch.where(coincide, FAMILIES[kernel].at_zero, FORMULAS[kernel](r, sigma))
        if same and unbiased:
            k = k.masked_fill(own, 0)
        return p @ k @ q

    v = torch.full((len(x),), 1 / len(x), dtype=wide) if v is None else v
    w = torch.full((len(y),), 1 / len(y), dtype=wide) if w is None else w
    of_x, of_y = 1.0, 1.0
    if unbiased:
        of_x, of_y = (u.sum() ** 2 / (u.sum() ** 2 - (u * u).sum()) for u in (v, w))
    return of_x * average(x, x, v, v) + of_y * average(y, y, w, w) - 2 * average(x, y, v, w)


def close(found, truth, tolerance=2e-5):
    error = torch.linalg.vector_norm(found.cpu().double() - truth)
    assert error <= tolerance * torch.linalg.vector_norm(truth) + 1e-7


def test_every_family_is_tested_and_named_in_the_documentation():
    assert FORMULAS.keys() == FAMILIES.keys()
    for name in FAMILIES:
        assert f'"{name}"' in cgm_fast.mmd.__doc__ or name == "gaussian"


@pytest.mark.parametrize("kernel", FAMILIES)
def test_phi_and_its_derivatives_are_those_of_the_formula(kernel):
    t = torch.logspace(-6, 2, 60, dtype=wide).requires_grad_()
    phi = FORMULAS[kernel](torch.sqrt(2 * t), 1.0)
    (first,) = torch.autograd.grad(phi.sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), t)
    family = FAMILIES[kernel]
    less, whole, slope, *curvature = family.radial(t.detach(), 2)
    torch.testing.assert_close(whole, phi.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(less, (phi - family.at_zero).detach(), rtol=1e-6, atol=1e-15)
    torch.testing.assert_close(slope, first.detach(), rtol=1e-7, atol=0)
    assert bool(curvature) == (family.order == 2)
    if curvature:
        torch.testing.assert_close(curvature[0], second, rtol=1e-6, atol=0)
    at_zero = family.radial(torch.zeros(1, dtype=wide), 2)
    assert at_zero[1] == family.at_zero
    assert all(value.isfinite().all() for value in at_zero)


@pytest.mark.parametrize("kernel", FAMILIES)
def test_less_keeps_small_distances_in_float32(kernel):
    t = torch.logspace(-6, 0, 200, dtype=wide)
    truth = FAMILIES[kernel].radial(t, 1)[0]
    found = FAMILIES[kernel].radial(t.float(), 1)[0].double()
    assert ((found - truth).abs() <= 2e-6 * truth.abs()).all()


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", FAMILIES)
def test_value_and_gradient(kernel, estimator, backend, device):
    x, y = samples()
    leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    truth = exact(*leaves, kernel, 1.3, unbiased=estimator == "unbiased")
    on_device = [v.detach().float().to(device).requires_grad_() for v in leaves]
    loss = cgm_fast.mmd(
        *on_device, bandwidth=1.3, kernel=kernel, estimator=estimator, backend=backend
    )
    assert abs(loss.item() - truth.item()) <= 3e-6
    found = torch.autograd.grad(loss, on_device)
    for one, of_truth in zip(found, torch.autograd.grad(truth, leaves), strict=True):
        close(one, of_truth)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("kernel", FAMILIES)
def test_weights_and_bandwidths(kernel, backend, device):
    x, y = samples()
    generator = torch.Generator().manual_seed(4)
    v, w = (torch.rand(k, generator=generator, dtype=wide) + 0.2 for k in (len(x), len(y)))
    leaves = [x, y, v / v.sum(), w / w.sum(), torch.tensor([0.8, 2.0], dtype=wide)]
    leaves = [value.clone().requires_grad_() for value in leaves]
    *rest, sigma = leaves
    truth = sum(exact(*rest[:2], kernel, s, *rest[2:]) for s in sigma) / 2
    on_device = [value.detach().float().to(device).requires_grad_() for value in leaves]
    loss = cgm_fast.mmd(
        *on_device[:2], x_weights=on_device[2], y_weights=on_device[3], bandwidth=on_device[4],
        kernel=kernel, backend=backend,
    )  # fmt: skip
    assert abs(loss.item() - truth.item()) <= 3e-6
    found = torch.autograd.grad(loss, on_device)
    for one, of_truth in zip(found, torch.autograd.grad(truth, leaves), strict=True):
        close(one, of_truth, 5e-5)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("kernel", FAMILIES)
def test_coincident_rows_do_not_pull_each_other(kernel, backend, device):
    x, y = samples(12, 12)
    x, y = x.float(), y.float()
    x[3], y[5] = x[4], x[4]
    leaves = [v.double().requires_grad_() for v in (x, y)]
    truth = torch.autograd.grad(exact(*leaves, kernel, 1.0), leaves)
    on_device = [v.to(device).requires_grad_() for v in (x, y)]
    loss = cgm_fast.mmd(*on_device, bandwidth=1.0, kernel=kernel, backend=backend)
    for one, of_truth in zip(torch.autograd.grad(loss, on_device), truth, strict=True):
        assert one.isfinite().all()
        close(one, of_truth, 5e-5)
    same = x.to(device).requires_grad_()
    loss = cgm_fast.mmd(same, x.to(device), bandwidth=1.0, kernel=kernel, backend=backend)
    assert abs(loss.item()) <= 1e-6
    assert torch.autograd.grad(loss, same)[0].abs().max() <= 1e-5


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("kernel", SMOOTH)
def test_the_hessian_vector_product(kernel, backend, device):
    x, y = samples(9, 11)
    rows, relations = len(x) + len(y), (1 / 81, -1 / 99, -1 / 99, 1 / 121)
    generator = torch.Generator().manual_seed(2)
    weights = torch.ones(rows, dtype=wide)
    along = torch.randn(rows, 4, generator=generator).double()
    of_weights, of_variance = (torch.randn(k, generator=generator) for k in (rows, 2))
    variance = torch.tensor([0.7, 3.0], dtype=wide)
    static = ((9, 11), relations, (), (0.5, 0.5), kernel, False)
    problem = Problem(x, y, weights, None, variance, *static)
    wanted = Wanted(0, rows, True, False, True)
    tangent = Tangent(along, of_weights.double(), None, of_variance.double())
    step = 1e-5
    reference = importlib.import_module("cgm_fast.ops.mmd.reference")

    def moved(by):
        z = torch.cat((x, y)) + by * tangent.z
        moved_tensors = (
            z[:9], z[9:], weights + by * tangent.weights, None, variance + by * tangent.variance,
        )  # fmt: skip
        return reference.fwd(Problem(*moved_tensors, *static), wanted)

    truth = [
        None if a is None else (a - b) / (2 * step)
        for a, b in zip(moved(step)[1:], moved(-step)[1:], strict=True)
    ]
    on_device = Problem(
        *(None if v is None else v.float().to(device) for v in problem[:5]), *static
    )
    implementation = importlib.import_module(f"cgm_fast.ops.mmd.{backend}")
    given = Tangent(*(None if v is None else v.float().to(device) for v in tangent))
    for found, exact_one in zip(implementation.hvp(on_device, given, wanted), truth, strict=True):
        if exact_one is not None:
            close(found, exact_one, 1e-4)


@pytest.mark.parametrize("kernel", KINKED)
def test_a_second_derivative_that_does_not_exist_is_an_error(kernel, backend, device):
    x, y = (v.float().to(device).requires_grad_() for v in samples(5, 6))
    loss = cgm_fast.mmd(x, y, kernel=kernel, backend=backend)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"kernel='{kernel}' has no second derivative.*'matern"):
        torch.autograd.grad(gradient.square().sum(), x)


def test_the_energy_distance_has_a_bandwidth_of_one():
    x, y = samples()
    found = cgm_fast.mmd(x, y, kernel="energy")
    torch.testing.assert_close(found, exact(x, y, "energy", 1.0))


def test_energy_of_unequal_masses_may_be_negative():
    x, y = samples()
    v = torch.full((len(x),), 3 / len(x), dtype=wide)
    truth = exact(x, y, "energy", 1.0, v)
    assert truth < 0
    torch.testing.assert_close(cgm_fast.mmd(x, y, x_weights=v, kernel="energy"), truth)


def test_an_unknown_kernel_is_refused():
    x, y = samples()
    with pytest.raises(ValueError, match=r"kernel must be one of 'gaussian', .*got 'box'"):
        cgm_fast.mmd(x, y, kernel="box")
    with pytest.raises(ValueError, match=r"kernel must be one of 'gaussian', .*got 'box'"):
        cgm_fast.MMDLoss(kernel="box")


def test_a_loss_has_a_kernel():
    x, y = samples()
    loss = cgm_fast.MMDLoss(1.5, kernel="imq")
    torch.testing.assert_close(loss(x, y), cgm_fast.mmd(x, y, bandwidth=1.5, kernel="imq"))
    assert "kernel=imq" in repr(loss)
