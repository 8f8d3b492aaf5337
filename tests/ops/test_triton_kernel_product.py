"""Triton's kernel_product: splits, turns, chunks, passes and precision, against float64."""

import functools

import pytest
import torch

import cgm_fast
from cgm_fast.ops import backends
from cgm_fast.ops.kernel_product import reference
from cgm_fast.ops.kernel_product.problem import Problem, Wanted
from cgm_fast.ops.mmd.kernels import FAMILIES

if backends.availability()["triton"] is not None:
    pytest.skip(backends.availability()["triton"], allow_module_level=True)

from triton.runtime.interpreter import GridExecutor

from cgm_fast.ops.kernel_product import triton as kernel_product
from cgm_fast.ops.triton import launch

pytestmark = pytest.mark.usefixtures("tensor_cores")

EVERYTHING = Wanted(True, True, True)
KERNELS = [name for name in FAMILIES if name != "matern12"]  # which is the laplacian's other name
# At "high": a few of tf32's units, 2^-11, of terms whose signs partly cancel.
FAST = 2e-3


@pytest.fixture
def device(kernels_device):
    return kernels_device


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def problem_of(n, m, d, p, device, kernel="gaussian", scales=1, batch=1, dtype=torch.float32):
    """With variances near the squared distances, and weights that differ."""
    x, y, u, v = (drawn(batch, *shape).to(dtype) for shape in ((n, d), (m, d), (n, p), (m, p)))
    variance = torch.rand(batch, scales).to(torch.promote_types(dtype, torch.float32)) + 0.5
    weights = tuple(0.5 + s for s in range(scales))
    tensors = (value.to(device) for value in (x, y, u, v, d * variance))
    return Problem(*tensors, (1.0,) * scales, weights, kernel)


def widened(problem):
    return problem._replace(
        **{
            name: value.cpu().double()
            for name, value in problem._asdict().items()
            if isinstance(value, torch.Tensor)
        }
    )


def assert_as_reference(problem, wanted=EVERYTHING, tolerance=1e-6):
    """Of the norm of sums of sizes; of the derivative in x, of its own norm."""
    found, wide = kernel_product.fwd(problem, wanted), widened(problem)
    truth = reference.fwd(wide, wanted)
    sizes = reference.fwd(wide._replace(u=wide.u.abs(), v=wide.v.abs()), wanted)
    for name, value, expected in zip(truth._fields, found, truth, strict=True):
        assert (value is None) == (expected is None), name
        if value is not None:
            assert value.shape == expected.shape
            error = torch.linalg.vector_norm(value.cpu().double() - expected)
            size = expected if name == "x" else getattr(sizes, name)
            assert error <= tolerance * torch.linalg.vector_norm(size), name


@pytest.mark.parametrize(("d", "p"), [(3, 2), (20, 16), (20, 40), (40, 70)])
@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "rational_quadratic"])
def test_splits_and_turns(kernel, d, p, device, monkeypatch):
    """What large samples do."""
    problem = problem_of(70, 300, d, p, device, kernel, scales=2)
    monkeypatch.setattr(kernel_product, "_TURN", 64)
    monkeypatch.setattr(kernel_product, "parallel", lambda *_: 2)
    assert_as_reference(problem)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_family_in_a_batch(kernel, device):
    assert_as_reference(problem_of(20, 33, 5, 3, device, kernel, scales=3, batch=2))


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype, device):
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    assert_as_reference(problem_of(20, 33, 5, 3, device, dtype=dtype), tolerance=tolerance)


def test_values_of_another_dtype(device):
    """A cotangent of half samples is float32, and stands for u or v."""
    problem = problem_of(20, 33, 5, 3, device, dtype=torch.float16)
    assert_as_reference(problem._replace(u=problem.u.float() / 3))
    assert_as_reference(problem._replace(v=problem.v.float() / 3))


@pytest.mark.parametrize("wanted", [(True, True, False), (True, False, True), (False, False, True)])
@pytest.mark.parametrize("p", [16, 17, 150])
def test_values_in_chunks(wanted, p, device):
    assert_as_reference(problem_of(20, 70, 5, p, device), Wanted(*wanted))


def test_one_pass_is_two(device, monkeypatch):
    problem = problem_of(70, 80, 5, 9, device, "matern52", scales=2)
    whole = kernel_product.fwd(problem, EVERYTHING)
    monkeypatch.setattr(kernel_product, "_MOST_TOGETHER", 0)
    for one, other in zip(whole, kernel_product.fwd(problem, EVERYTHING), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.slow_interpreted
def test_long_sums_stay_accurate(device):
    """Of positive terms, whose rounding and cut bits would add up."""
    x, y, v = drawn(2, 2), drawn(3000, 2), torch.rand(3000, 1, dtype=torch.float64)
    x, y, v = (value.float().to(device) for value in (x, y, v))
    found = cgm_fast.kernel_product(x, y, v, backend="triton")
    wide = [value.cpu().double() for value in (x, y, v)]
    truth = cgm_fast.kernel_product(*wide, backend="reference")
    assert ((found.cpu() - truth).abs() <= 5e-7 * truth).all()


@pytest.mark.slow_interpreted
@pytest.mark.parametrize(("d", "p"), [(2, 1), (40, 20), (70, 70)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_tf32_has_an_error_budget_of_its_own(d, p, offset, fast, device):
    problem = problem_of(70, 130, d, p, device)
    problem = problem._replace(x=problem.x + offset, y=problem.y + offset)
    assert_as_reference(problem, tolerance=FAST)


def test_tf32_does_not_shrink_products(fast, device):
    """Tensor cores cut what they multiply; rounded before, it has no bias."""
    x, y, v = torch.randn(100, 4), torch.randn(130, 4), torch.rand(130, 3)
    x, y, v = (value.to(device).requires_grad_() for value in (x, y, v))
    wide = [value.detach().cpu().double().requires_grad_() for value in (x, y, v)]
    out, truth = (
        cgm_fast.kernel_product(*given, bandwidth=2.0, backend=backend)
        for given, backend in (((x, y, v), "triton"), (wide, "reference"))
    )
    found = torch.autograd.grad(out.sum(), (x, y, v))
    pairs = zip((out, *found), (truth, *torch.autograd.grad(truth.sum(), wide)), strict=True)
    for value, expected in pairs:
        a, b = value.detach().cpu().double().flatten(), expected.detach().flatten()
        assert abs(float(a @ b / (b @ b)) - 1) <= 1e-4  # 5e-4 of a cut k


def test_half_samples_where_tf32_is_allowed(fast, device):
    assert_as_reference(problem_of(70, 80, 20, 3, device, dtype=torch.float16), tolerance=FAST)


def test_a_nan_stays_in_its_row_or_column(device):
    x, y, v = (value.float().to(device) for value in (drawn(40, 3), drawn(50, 3), drawn(50, 3)))
    clean = cgm_fast.kernel_product(x, y, v, backend="triton")
    x[7, 1], v[3, 2] = float("nan"), float("nan")
    out = cgm_fast.kernel_product(x, y, v, backend="triton")
    touched = torch.zeros(40, 3, dtype=torch.bool, device=device)
    touched[7], touched[:, 2] = True, True
    assert (out.isnan() == touched).all()
    assert torch.equal(out[~touched], clean[~touched])


def test_float64_with_an_older_triton_is_an_error_that_says_so(monkeypatch, device):
    monkeypatch.setattr(launch, "DOUBLES", False)
    x = torch.randn(5, 3, dtype=torch.float64, device=device)
    with pytest.raises(launch.NoDoubles, match="takes float64 from triton"):
        cgm_fast.kernel_product(x, x, x, backend="triton")


def test_how_many_launches(device, monkeypatch):
    if not launch.INTERPRETED:
        pytest.skip("counted where the interpreter launches")
    names = []
    call = GridExecutor.__call__

    @functools.wraps(call)
    def counting(self, *args, **kwargs):
        names.append(self.fn.__name__)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", counting)
    packing = ["sum_kernel", "pack_kernel", "pack_kernel"]
    once, finish = ["kernel_product_kernel"], ["kernel_product_finish_kernel"]
    for d, p, passes in ((16, 32, once), (32, 16, once), (16, 33, once * 2), (33, 16, once * 2)):
        kernel_product.fwd(problem_of(2, 3, d, p, device), EVERYTHING)
        assert names == packing + passes + finish
        names.clear()
    kernel_product.fwd(problem_of(2, 3, 16, 100, device), Wanted(True, False, False))
    assert names == packing + once + finish
