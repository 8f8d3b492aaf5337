"""K(x, y) v and its derivatives: every kernel, implementation and shape, against all pairs."""

import math

import pytest
import torch
from test_mmd_families import FORMULAS, KINKED, SMOOTH
from torch import func, library

import cgm_fast
from cgm_fast.ops.mmd.kernels import FAMILIES

wide = torch.float64


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, dtype=wide, generator=generator)


def matrix(x, y, kernel, sigma):
    """K [n, m] in float64; safe to differentiate, for no distance is the root of 0."""
    squares = (x[:, None] - y).square().sum(-1)
    r = torch.where(squares == 0, 1.0, squares).sqrt()
    return torch.where(squares == 0, FAMILIES[kernel].at_zero, FORMULAS[kernel](r, sigma))


def exact(x, y, v, sigma, kernel="gaussian", agg="mean"):
    total = sum(matrix(x, y, kernel, s) @ v for s in sigma)
    return total / len(sigma) if agg == "mean" else total


def budget(x, y, v, sigma, kernel="gaussian"):
    """Σ_j |k_ij| |v_j|, which the error of a product is relative to."""
    return sum(matrix(x, y, kernel, s).abs() @ v.abs() for s in sigma) / len(sigma)


def check(found, truth, tolerance=2e-5):
    error = torch.linalg.vector_norm(found.cpu().double() - truth)
    assert error <= tolerance * torch.linalg.vector_norm(truth) + 1e-7


@pytest.mark.slow_interpreted
@pytest.mark.parametrize(
    ("n", "m", "d", "p"),
    [
        (1, 1, 1, 1),
        (3, 40, 2, 1),
        (70, 33, 10, 3),
        (33, 130, 40, 17),
        (20, 50, 5, 70),
        (17, 65, 130, 2),
        (83, 600, 3, 1),
    ],
)
def test_product_and_gradients(n, m, d, p, backend, device):
    given = x, y, v = drawn(n, d), drawn(m, d, seed=1) + 0.2, drawn(m, p, seed=2)
    sigma = (0.7 * math.sqrt(d),)
    leaves = [value.clone().requires_grad_() for value in given]
    truth, cotangent = exact(*leaves, sigma), drawn(n, p, seed=3)
    on_device = [value.float().to(device).requires_grad_() for value in given]
    out = cgm_fast.kernel_product(*on_device, bandwidth=sigma[0], backend=backend)
    assert out.shape == (n, p)
    assert out.dtype == torch.float32
    assert cgm_fast.last_backend("kernel_product") == backend
    error = (out.detach().cpu().double() - truth.detach()).abs()
    assert (error <= 2e-6 * budget(x, y, v, sigma) + 1e-12).all()
    found = torch.autograd.grad(out, on_device, cotangent.to(out))
    for one, of_truth in zip(found, torch.autograd.grad(truth, leaves, cotangent), strict=True):
        check(one, of_truth)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("kernel", FAMILIES)
def test_families_and_trained_bandwidths(kernel, backend, device):
    sigma = torch.tensor([0.8, 2.0], dtype=wide)
    given = drawn(25, 4), drawn(38, 4, seed=1), drawn(38, 3, seed=2), sigma
    leaves = [value.clone().requires_grad_() for value in given]
    truth, cotangent = exact(*leaves, kernel, "sum"), drawn(25, 3, seed=3)
    on_device = [value.float().to(device).requires_grad_() for value in given]
    x, y, v, sigma = on_device
    out = cgm_fast.kernel_product(
        x, y, v, bandwidth=sigma, kernel=kernel, kernel_agg="sum", backend=backend
    )
    check(out.detach(), truth.detach(), 3e-6)
    found = torch.autograd.grad(out, on_device, cotangent.to(out))
    for one, of_truth in zip(found, torch.autograd.grad(truth, leaves, cotangent), strict=True):
        check(one, of_truth, 5e-5)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "energy", "matern32"])
def test_rows_that_coincide(kernel, backend, device):
    x, v = drawn(20, 6).float(), drawn(20, 2).float()
    leaves = [x.double().requires_grad_(), x.double().requires_grad_()]
    truth = exact(*leaves, v.double(), (1.0,), kernel)
    on_device = [x.clone().to(device).requires_grad_() for _ in range(2)]
    out = cgm_fast.kernel_product(
        *on_device, v.to(device), bandwidth=1.0, kernel=kernel, backend=backend
    )
    check(out.detach(), truth.detach(), 3e-6)
    found = torch.autograd.grad(out.square().sum(), on_device)
    for one, of_truth in zip(found, torch.autograd.grad(truth.square().sum(), leaves), strict=True):
        assert one.isfinite().all()
        check(one, of_truth, 5e-5)


@pytest.mark.slow_interpreted
def test_a_batch_strides_and_half_precision(backend, device):
    x, y, v = drawn(3, 12, 8), drawn(8, 3, 9, seed=1), drawn(3, 9, seed=2)
    y = y.permute(1, 2, 0)
    sigma = torch.tensor([[1.0, 3.0], [2.0, 2.5], [0.5, 4.0]], dtype=wide)
    for dtype, tolerance in ((torch.float32, 3e-6), (torch.bfloat16, 3e-6), (torch.float16, 3e-6)):
        given = [value.to(dtype).to(device) for value in (x, y, v)]
        out = cgm_fast.kernel_product(*given, bandwidth=sigma.float().to(device), backend=backend)
        assert out.shape == (3, 12)
        assert out.dtype == torch.float32
        for i in range(3):
            a, b, w = (value[i].cpu().double() for value in given)
            check(out[i], exact(a, b, w[:, None], sigma[i])[:, 0], tolerance)
        leaves = [value.detach().requires_grad_() for value in given]
        total = cgm_fast.kernel_product(*leaves, bandwidth=2.0, backend=backend).square().sum()
        gradients = torch.autograd.grad(total, leaves)
        assert [g.dtype for g in gradients] == [dtype] * 3
        assert all(g.isfinite().all() for g in gradients)


@pytest.mark.slow_interpreted
def test_double(backend, device):
    given = x, y, v = drawn(9, 3), drawn(14, 3, seed=1), drawn(14, 2, seed=2)
    out = cgm_fast.kernel_product(*(value.to(device) for value in given), backend=backend)
    assert out.dtype == wide
    torch.testing.assert_close(out.cpu(), exact(x, y, v, (math.sqrt(3),)), rtol=1e-12, atol=1e-14)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("shift", [1e3, 1e4])
def test_data_far_from_the_origin_and_bandwidths_apart(shift, backend, device):
    x, y, v = (drawn(30, 6) + shift).float(), (drawn(60, 6, seed=1) + shift).float(), drawn(60, 2)
    y[30:] += 40.0  # many bandwidths away
    truth = exact(x.double(), y.double(), v, (1.0,))
    found = cgm_fast.kernel_product(
        *(value.float().to(device) for value in (x, y, v)), bandwidth=1.0, backend=backend
    )
    scale = budget(x.double(), y.double(), v, (1.0,))
    assert ((found.cpu().double() - truth).abs() <= 3e-6 * scale + 1e-12).all()


@pytest.mark.parametrize("kernel", SMOOTH)
def test_second_derivatives(kernel):
    given = [drawn(4, 2), drawn(3, 2, seed=1), drawn(3, 2, seed=2), torch.tensor([1.2]).double()]
    leaves = [value.clone().requires_grad_() for value in given]

    def call(x, y, v, sigma):
        return cgm_fast.kernel_product(x, y, v, bandwidth=sigma, kernel=kernel)

    assert torch.autograd.gradcheck(
        call,
        leaves,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("kernel", KINKED)
def test_a_second_derivative_that_does_not_exist_is_an_error(kernel):
    x, y, v = (value.requires_grad_() for value in (drawn(4, 2), drawn(3, 2), drawn(3, 1)))
    out = cgm_fast.kernel_product(x, y, v, kernel=kernel)
    of_x, of_v = torch.autograd.grad(out.square().sum(), (x, v), create_graph=True)
    assert torch.autograd.grad(of_v.sum(), v, retain_graph=True)[0].isfinite().all()  # linear
    with pytest.raises(RuntimeError, match=rf"kernel='{kernel}' has no second derivative"):
        torch.autograd.grad(of_x.square().sum(), x)


def test_third_derivatives_are_an_error():
    x, y, v = (value.requires_grad_() for value in (drawn(4, 2), drawn(3, 2), drawn(3, 1)))
    out = cgm_fast.kernel_product(x, y, v).square().sum()
    (first,) = torch.autograd.grad(out, x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivatives are not implemented"):
        torch.autograd.grad(second.square().sum(), x)


def test_transforms():
    x, y, v = drawn(3, 5, 2), drawn(4, 2, seed=1), drawn(4, 3, seed=2)

    def call(x, y, v):
        return cgm_fast.kernel_product(x, y, v, bandwidth=1.3)

    def formula(x, y, v):
        return torch.exp(-(x[:, None] - y).square().sum(-1) / (2 * 1.3**2)) @ v

    for f in (
        lambda g: torch.vmap(g, (0, None, None))(x, y, v),
        lambda g: torch.vmap(g, (None, None, 1), 2)(x[0], y, v[:, :, None]),
        lambda g: func.grad(lambda *of: g(*of).square().sum(), (0, 1, 2))(x[0], y, v),
        lambda g: func.jacrev(g)(x[0], y, v),
        lambda g: func.jacfwd(g, 2)(x[0], y, v),
        lambda g: func.hessian(lambda a: g(a, y, v).square().sum())(x[0]),
        lambda g: torch.vmap(func.grad(lambda *of: g(*of).square().sum()), (0, None, None))(
            x, y, v
        ),
    ):
        torch.testing.assert_close(f(call), f(formula))


def test_compiled():
    x, y, v = (value.requires_grad_() for value in (drawn(6, 3), drawn(5, 3), drawn(5, 2)))

    def loss(x, y, v):
        return (2 * cgm_fast.kernel_product(x, y, v, bandwidth=1.5)).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for one, other in zip(
        torch.autograd.grad(compiled(x, y, v), (x, y, v)),
        torch.autograd.grad(loss(x, y, v), (x, y, v)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_opcheck():
    op = torch.ops.cgm_fast.kernel_product_fwd.default
    x, y, u, v = drawn(6, 3), drawn(5, 3, seed=1), drawn(6, 2), drawn(5, 2, seed=1)
    leaves = [value.requires_grad_() for value in (x, y, u, v)]
    static = ([2.0], [1.0], "gaussian")
    library.opcheck(op, (*leaves, None, *static, True, True, True, "auto"))
    x, y, v = (value.detach().requires_grad_() for value in (x, y, v))
    library.opcheck(op, (x, y, None, v, None, *static, True, False, False, "auto"))


def test_mmd_is_made_of_products():
    x, y = drawn(30, 3), drawn(20, 3, seed=1)
    ones = [torch.full((len(z),), 1 / len(z), dtype=wide) for z in (x, y)]
    witness = [
        cgm_fast.kernel_product(z, x, ones[0], bandwidth=1.1)
        - cgm_fast.kernel_product(z, y, ones[1], bandwidth=1.1)
        for z in (x, y)
    ]
    torch.testing.assert_close(
        witness[0].mean() - witness[1].mean(), cgm_fast.mmd(x, y, bandwidth=1.1)
    )


def test_no_matrix_is_stored(backend, device):
    """Neither forward nor backward: of an n x m matrix a tensor would have these many entries."""
    from torch.utils._python_dispatch import TorchDispatchMode

    n = m = 700

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            out = op(*args, **(kwargs or {}))
            for value in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(value, torch.Tensor):
                    Largest.seen = max(Largest.seen, value.numel())
            return out

    if backend == "triton" and device != "cuda":
        pytest.skip("interpreted: slow")
    x, y, v = (value.float().to(device) for value in (drawn(n, 4), drawn(m, 4), drawn(m, 2)))
    x.requires_grad_()
    with Largest():
        cgm_fast.kernel_product(x, y, v, backend=backend).square().sum().backward()
    limit = 1 << 18 if backend == "reference" else 64 * (n + m)
    assert Largest.seen <= limit < n * m


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": drawn(4)}, r"v must have shape \[5\] or \[5, p\], got \[4\]"),
        ({"v": drawn(1, 5, 2)}, r"v must have shape \[5\] or \[5, p\], got \[1, 5, 2\]"),
        ({"v": drawn(5, 0)}, r"v must not be empty, got shape \[5, 0\]"),
        ({"x": drawn(6, 2)}, "same number of features d, got 2 and 3"),
        ({"x": drawn(0, 3)}, r"x must not be empty, got shape \[0, 3\]"),
        ({"x": drawn(2, 6, 3)}, r"x and y must be \[n, d\] and \[m, d\]"),
        ({"bandwidth": 0.0}, "bandwidth must be a finite number > 0, got 0"),
        ({"bandwidth": torch.ones(2, 2)}, r"bandwidth must have shape .* got \[2, 2\]"),
        ({"kernel": "box"}, "kernel must be one of 'gaussian'"),
        ({"kernel_agg": "max"}, "kernel_agg must be one of 'mean', 'sum', got 'max'"),
        ({"backend": "abacus"}, "backend must be one of 'auto'"),
    ],
)
def test_bad_values(change, message):
    given = {"x": drawn(6, 3), "y": drawn(5, 3), "v": drawn(5, 2)} | change
    with pytest.raises(ValueError, match=message):
        cgm_fast.kernel_product(given.pop("x"), given.pop("y"), given.pop("v"), **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": [1.0]}, "v must be a torch.Tensor, got list"),
        ({"v": torch.ones(5, dtype=torch.int64)}, "v must have dtype float16.*got torch.int64"),
        ({"v": torch.ones(5)}, "y and v must have one dtype, got torch.float64 and torch.float32"),
        ({"bandwidth": None}, "bandwidth must be 'paper'.*got NoneType"),
    ],
)
def test_bad_types(change, message):
    given = {"x": drawn(6, 3), "y": drawn(5, 3), "v": drawn(5, 2)} | change
    with pytest.raises(TypeError, match=message):
        cgm_fast.kernel_product(given.pop("x"), given.pop("y"), given.pop("v"), **given)


def test_values_that_are_not_finite_are_refused_on_request():
    x, y, v = drawn(6, 3), drawn(5, 3), drawn(5, 2)
    v[0, 0] = float("nan")
    with pytest.raises(ValueError, match="v must be finite, got 1 NaN or infinite of 10 values"):
        cgm_fast.kernel_product(x, y, v, check_finite=True)


def test_autocast_promotes_and_does_not_round():
    x, y, v = drawn(6, 3).float(), drawn(5, 3).bfloat16(), drawn(5, 2).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = cgm_fast.kernel_product(x, y, v)
    assert out.dtype == torch.float32
    check(out, exact(x.double(), y.double(), v.double(), (math.sqrt(3),)), 3e-6)


def test_a_far_row_that_weighs_nothing_changes_nothing(backend, device):
    if backend == "triton":
        pytest.skip("packs rows about their mean: see the op's README")
    x, y, v = drawn(5, 10), drawn(40, 10, seed=1), torch.ones(40, dtype=wide)
    y[7], v[7] = 1e8, 0.0
    leaf = x.clone().requires_grad_()
    near = torch.arange(40) != 7
    truth = exact(leaf, y[near], v[near], (math.sqrt(10),))
    on_device = x.float().to(device).requires_grad_()
    out = cgm_fast.kernel_product(
        on_device, y.float().to(device), v.float().to(device), backend=backend
    )
    check(out.detach(), truth.detach(), 3e-6)
    (found,) = torch.autograd.grad(out.sum(), on_device)
    check(found, torch.autograd.grad(truth.sum(), leaf)[0])


def test_clusters_far_from_their_mean_keep_their_digits(backend, device):
    if backend == "triton":
        pytest.skip("packs rows about their mean: see the op's README")
    near = torch.cat((torch.full((20, 2), -3.0), torch.full((20, 2), 3.0))).double()
    x, y = ((near + 1e-3 * drawn(40, 2, seed=s)).float() for s in (0, 1))
    v = torch.rand(40)
    truth = exact(x.double(), y.double(), v.double(), (1e-3,))
    found = cgm_fast.kernel_product(
        x.to(device), y.to(device), v.to(device), bandwidth=1e-3, backend=backend
    )
    check(found, truth, 2e-6)


@pytest.mark.parametrize("kernel", ["laplacian", "energy"])
def test_rows_that_nearly_coincide_have_a_right_gradient(kernel, backend, device):
    if backend in ("triton", "matmul", "reference"):
        pytest.skip("their gradient is a sum about a centre: see the op's README")
    x = drawn(50, 10).float()
    y = x + 1e-5 * drawn(50, 10, seed=1).float()
    leaf, v = x.double().requires_grad_(), torch.ones(50)
    (truth,) = torch.autograd.grad(exact(leaf, y.double(), v.double(), (3.0,), kernel).sum(), leaf)
    on_device = x.to(device).requires_grad_()
    out = cgm_fast.kernel_product(
        on_device, y.to(device), v.to(device), bandwidth=3.0, kernel=kernel, backend=backend
    )
    check(torch.autograd.grad(out.sum(), on_device)[0], truth, 2e-6)


def test_a_result_can_be_changed_in_place(backend, device):
    x, y, v = (value.float().to(device) for value in (drawn(6, 3), drawn(5, 3), drawn(5)))
    x.requires_grad_()
    out = cgm_fast.kernel_product(x, y, v, backend=backend)
    out -= 1.0
    loss = cgm_fast.mmd(x, y, backend=backend)
    loss += out.sum()
    loss.backward()
    assert x.grad.isfinite().all()
