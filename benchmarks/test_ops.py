"""Time of loss and gradients per op, implementation and shape."""

import pytest
import torch

import cgm_fast
from cgm_fast.ops.backends import availability

BACKENDS = [name for name, reason in availability().items() if reason is None]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def run_with_gradients(benchmark, function, *inputs):
    def step():
        for value in inputs:
            value.grad = None
        function(*inputs).backward()

    benchmark(step)


@pytest.mark.parametrize(("n", "d"), [(64, 10), (256, 10), (1024, 10), (1024, 64), (4096, 10)])
def test_mmd(benchmark, backend, n, d):
    torch.manual_seed(0)
    x, y = (torch.randn(n, d, requires_grad=True) for _ in range(2))
    exact = cgm_fast.mmd(x.detach().double(), y.detach().double(), backend="reference")
    value = cgm_fast.mmd(x.detach(), y.detach(), backend=backend)
    assert abs(float(value) - float(exact)) < 1e-5  # no time for a wrong answer
    run_with_gradients(benchmark, lambda x, y: cgm_fast.mmd(x, y, backend=backend), x, y)


@pytest.mark.parametrize(("b", "k", "d"), [(64, 10, 10), (256, 10, 300), (4096, 100, 64)])
def test_prototype_margin(benchmark, backend, b, k, d):
    torch.manual_seed(0)
    r = torch.randn(b, d, requires_grad=True)
    g = torch.randn(k, d, requires_grad=True)
    run_with_gradients(
        benchmark, lambda r, g: cgm_fast.prototype_margin(r, g, backend=backend).loss, r, g
    )


@pytest.mark.parametrize(("b", "k", "d"), [(64, 10, 10), (100, 10, 300), (256, 100, 600)])
def test_cgm_step(benchmark, backend, b, k, d):
    torch.manual_seed(0)
    r = torch.randn(b, d, requires_grad=True)
    g = torch.randn(k, d, requires_grad=True)
    run_with_gradients(benchmark, lambda r, g: cgm_fast.cgm_loss(r, g, backend=backend).loss, r, g)
