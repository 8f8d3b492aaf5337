"""What only the compiled CPU kernels have: instruction sets, a pool of threads, forks."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import cgm_fast
from cgm_fast import testing
from cgm_fast.ops import backends

reason = backends.availability()["native"]
pytestmark = pytest.mark.skipif(reason is not None, reason=f"native: {reason}")

# Shapes on both sides of every branch: one tile and many, lanes over columns and over features,
# distances summed in parts, several bandwidths; then the numerics contract against float64.
CONTRACT = """
import torch
import cgm_fast
from cgm_fast import _native
from cgm_fast.testing import assert_loss_close, mmd_formula, mmd_magnitude

torch.manual_seed(0)
for n, m, d, sigma in ((5, 3, 1, 1.0), (700, 500, 10, 3.2), (90, 70, 33, [3.0, 6.0]),
                       (40, 30, 700, 26.0), (300, 200, 3, 0.01)):
    x, y = torch.randn(n, d, requires_grad=True), torch.randn(m, d, requires_grad=True)
    sigmas = torch.tensor(sigma).reshape(-1).double()
    loss = cgm_fast.mmd(x, y, bandwidth=sigma, backend="native")
    exact = mmd_formula(x, y, sigma=sigmas)
    assert_loss_close(loss, exact, mmd_magnitude(x, y, sigma=sigmas))
    for found, wanted in zip(torch.autograd.grad(loss, (x, y)), torch.autograd.grad(exact, (x, y))):
        assert (found - wanted).norm() <= 1e-5 * wanted.norm(), (n, m, d)
# A kernel so narrow that the unbiased loss is what is left of small k.
for sigma in (1.4, [1.4, 2.0]):
    x, y = torch.randn(150, 64), torch.randn(145, 64)
    options = {"sigma": torch.tensor(sigma).reshape(-1).double(), "estimator": "unbiased"}
    loss = cgm_fast.mmd(x, y, bandwidth=sigma, estimator="unbiased", backend="native")
    magnitude = mmd_magnitude(x, y, **options)
    assert magnitude < 1e-3
    assert_loss_close(loss, mmd_formula(x, y, **options), magnitude)
print(_native.build_info()["instruction_set"])
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_keeps_the_contract(isa):
    environment = {**os.environ, "CGM_FAST_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", CONTRACT], env=environment, capture_output=True, text=True
    )
    if "this processor has no more than" in done.stderr:
        assert isa != "baseline"
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == isa


def test_an_unknown_instruction_set_is_an_error():
    done = subprocess.run(
        [sys.executable, "-c", CONTRACT],
        env={**os.environ, "CGM_FAST_ISA": "foo"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    message = "CGM_FAST_ISA must be one of 'baseline', 'avx2', 'avx512', got 'foo'"
    assert done.stderr.splitlines()[-1] == f"ValueError: {message}"


@pytest.fixture
def samples():
    return torch.randn(900, 10), torch.randn(800, 10)  # enough work for several threads


def test_concurrent_calls_agree(samples):
    """However many calls share the threads, each has the same parts, and so the same bits."""
    alone = cgm_fast.mmd(*samples, backend="native")
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda _: cgm_fast.mmd(*samples, backend="native"), range(32)))
    assert all(torch.equal(value, alone) for value in found)


@pytest.fixture
def threads():
    """Sets the number of threads; afterwards it is what it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Work for several threads, with lanes over columns and over features.
@pytest.mark.parametrize("shape", [(900, 800, 10), (1, 2000, 3), (700, 600, 65)])
def test_mmd_for_any_number_of_threads(threads, shape):
    n, m, d = shape
    x, y = testing.samples(n, m, d)
    sigma = [d**0.5]
    exact, gradient, _ = testing.derivatives(
        lambda x, y: testing.mmd_formula(x, y, sigma=sigma), (x.double(), y.double()), order=1
    )
    magnitude = testing.mmd_magnitude(x, y, sigma=sigma)
    for count in (1, 2, 3, 8):
        threads(count)
        first, again = (
            testing.derivatives(lambda x, y: cgm_fast.mmd(x, y, backend="native"), (x, y), order=1)
            for _ in range(2)
        )
        testing.assert_loss_close(first[0], exact, magnitude)
        for found, repeated, wanted in zip(first[1], again[1], gradient, strict=True):
            testing.assert_gradient_close(found, wanted)
            assert torch.equal(found, repeated)


def test_prototype_margin_for_any_number_of_threads(threads):
    r, g, labels = testing.prototypes(3000, 130, 40)
    exact, gradient, _ = testing.derivatives(
        lambda r, g: testing.prototype_margin_formula(r, g, labels)[0],
        (r.double(), g.double()),
        order=1,
    )
    for count in (1, 2, 3, 8):
        threads(count)
        loss, found, _ = testing.derivatives(
            lambda r, g: cgm_fast.prototype_margin(r, g, labels, backend="native").loss,
            (r, g),
            order=1,
        )
        assert abs(float(loss) - float(exact)) <= 1e-6 * float(exact)
        for value, wanted in zip(found, gradient, strict=True):
            testing.assert_gradient_close(value, wanted)


def test_a_workspace_used_before_leaves_no_trace():
    """Memory is kept between calls: larger, smaller and of another dtype, in turn."""
    problems = [testing.samples(n, n, d) for n, d in ((300, 10), (5, 2), (700, 40), (64, 10))]
    problems += [tuple(value.double() for value in pair) for pair in problems[:2]]

    def results():
        return [
            torch.autograd.grad(
                cgm_fast.mmd(x.requires_grad_(), y.requires_grad_(), backend="native"), (x, y)
            )
            for x, y in problems
        ]

    first = results()
    for _ in range(3):
        for one, other in zip(first, results(), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


FORK = """
import os
import torch
import cgm_fast

torch.manual_seed(0)
x, y = torch.randn(900, 10), torch.randn(800, 10)
before = cgm_fast.mmd(x, y, backend="native")  # threads wait now, but not in a child
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(cgm_fast.mmd(x, y, backend="native"), before) else 1)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(cgm_fast.mmd(x, y, backend="native"), before)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_works_in_a_forked_child():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)
