"""CUDA's kernel_product: chunks of outputs, shares of the columns, long sums, against float64."""

import math

import pytest
import torch
from test_cuda_kernels import ALLOWED, wide

from cgm_fast.ops import backends
from cgm_fast.testing import relative_l2

if backends.availability()["cuda"] is not None:
    pytest.skip(f"cuda: {backends.availability()['cuda']}", allow_module_level=True)

from cgm_fast.ops.cuda import launch
from cgm_fast.ops.kernel_product import cuda, reference
from cgm_fast.ops.kernel_product.problem import Problem, Wanted
from cgm_fast.ops.mmd.kernels import FAMILIES


@pytest.fixture
def device(kernels_device):
    return kernels_device


def product_of(n, m, d, p, batch=None, scales=1, dtype=torch.float32, device="cpu", **others):
    """A kernel product with u, of samples in a batch, and bandwidths of its items."""
    shape = (batch,) if batch else ()
    sizes = {"x": (n, d), "y": (m, d), "u": (n, p), "v": (m, p)}
    x, y, u, v = (torch.randn(*shape, *size, dtype=dtype).to(device) for size in sizes.values())
    variance = ((torch.rand(*shape, scales, dtype=dtype) + 0.5) * d).to(device)
    weights = tuple(0.5 + s for s in range(scales))
    problem = Problem(x, y, u, v, variance, (1.0,) * scales, weights, "gaussian")
    return problem._replace(**others)


ALL = Wanted(True, True, True)


def assert_product_close(problem, allowed=1e-6, wanted=ALL):
    """Against the reference in float64; each sum's error is over its terms' magnitudes."""
    found = cuda.fwd(problem, wanted)
    expected = reference.fwd(wide(problem), wanted)
    sizes = reference.fwd(wide(problem._replace(u=problem.u.abs(), v=problem.v.abs())), wanted)
    for name in ("product", "variance"):
        got, right = getattr(found, name), getattr(expected, name)
        assert (got is None) == (right is None)
        if got is not None:
            assert ((got - right).abs() <= allowed * getattr(sizes, name).abs() + 1e-30).all(), name
    assert (found.x is None) == (expected.x is None)
    if found.x is not None:
        assert relative_l2(found.x, expected.x) <= 10 * allowed
    again = cuda.fwd(problem, wanted)
    for one, other in zip(found, again, strict=True):
        assert one is None or torch.equal(one, other)
    return found


@pytest.fixture
def little_work(monkeypatch):
    """Columns are shared from two tiles on, among the blocks of 4 multiprocessors."""
    monkeypatch.setattr(cuda, "LEAST_COLUMNS", 64)
    monkeypatch.setattr(cuda, "multiprocessors", lambda device: 4)


@pytest.mark.parametrize("kernel", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [None, 2])
def test_products_of_every_family(kernel, dtype, batch, little_work, device):
    problem = product_of(70, 150, 5, 3, batch, 2, dtype, device, kernel=kernel)
    problem.y[..., 4, :] = problem.x[..., 3, :]
    assert_product_close(problem, ALLOWED[dtype])
    assert not launch.counters(1, problem.x.device).any()


@pytest.mark.parametrize("p", [1, 4, 5, 16, 17, 33, 64, 65, 150])
@pytest.mark.parametrize("d", [3, 64, 70, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_in_chunks(d, p, dtype, device):
    problem = product_of(67, 90, d, p, dtype=dtype, device=device)
    assert_product_close(problem, ALLOWED[dtype])


@pytest.mark.parametrize("wanted", [ALL, ALL._replace(x=False), ALL._replace(product=False),
                                    Wanted(True, False, False),
                                    Wanted(False, True, False),
                                    Wanted(False, False, True)])  # fmt: skip
@pytest.mark.parametrize("m", [40, 700])
def test_products_as_wanted(wanted, m, little_work, device):
    problem = product_of(65, m, 6, 70, 2, 3, device=device)
    assert_product_close(problem, wanted=wanted)


@pytest.mark.parametrize("columns", [64, 128, 320, 10**6])
@pytest.mark.parametrize(("n", "m"), [(1, 3000), (130, 1000), (700, 500)])
def test_any_share_of_the_columns(columns, n, m, monkeypatch, little_work, device):
    monkeypatch.setattr(cuda, "LEAST_COLUMNS", columns)
    problem = product_of(n, m, 4, 2, device=device)
    splits = cuda._splits(-(-n // 64), m, 8, torch.float32)
    assert (splits > 1) == (2 * columns <= m)
    assert_product_close(problem)


@pytest.mark.parametrize("items", [1, 5, 300])
def test_more_rows_than_blocks(items, little_work, device):
    assert_product_close(product_of(66, 33, 3, 2, items, 2, device=device))


@pytest.mark.slow
@pytest.mark.parametrize("p", [1, 40, 100])
def test_many_columns_round_like_few(p, device):
    generator = torch.Generator().manual_seed(1)
    problem = product_of(2, 200_000, 1, p, device=device)
    v = torch.rand(200_000, p, generator=generator).to(device) + 0.1  # rounding does not average
    assert_product_close(problem._replace(v=v), 5e-7)


def test_an_infinite_value_stays_one(little_work, device):
    problem = product_of(3, 300, 2, 2, device=device)
    problem.v[5, 1] = math.inf
    found = cuda.fwd(problem, Wanted(True, False, False)).product
    assert found[:, 0].isfinite().all()
    assert (found[:, 1] == math.inf).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_products_of_samples_with_any_strides(dtype, device):
    problem = product_of(70, 80, 11, 2, 2, device=device)
    x, y = problem.x.to(dtype), problem.y.to(dtype)
    x = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    y = torch.stack((y, y), -1)[..., 0]
    given = [value.to(torch.promote_types(dtype, torch.float32)) for value in problem[2:5]]
    problem = Problem(x, y, *given, *problem[5:])
    assert_product_close(problem, 1e-6 if dtype != torch.float64 else 1e-14)


def test_gradients_far_from_the_origin(device):
    problem = product_of(70, 150, 7, 3, device=device)
    shifted = [(z + 1000.0) for z in problem[:2]]
    assert_product_close(problem._replace(x=shifted[0], y=shifted[1]))
