"""The kernels on tensor cores that add as pessimistically as any that were measured.

By default the emulations add a few exact products to the accumulator and cut once; here addends are
cut where they are aligned, four products at a time (tests/tensor_cores.py).
"""

import math

import numpy
import pytest
import torch

import cgm_fast
from cgm_fast.ops import backends
from cgm_fast.testing import derivatives, mmd_formula, mmd_total, relative_l2, samples

HIGHEST, HIGH = (1e-6, 1e-5), (2e-5, 5e-4)  # of loss and gradient, as in mmd's README


@pytest.fixture(params=["cuda", "triton"])
def emulated_backend(request, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("a GPU's tensor cores add as they do")
    if reason := backends.availability()[request.param]:
        pytest.skip(f"{request.param}: {reason}")
    if request.param == "cuda":
        from cgm_fast.ops.mmd import cuda

        # Tensor cores are used from 512 rows on, by 14 blocks that share the work.
        monkeypatch.setattr(cuda, "multiprocessors", lambda device: 7)
    return request.param


@pytest.mark.parametrize(
    ("d", "precision", "allowed"),
    [(16, "highest", HIGHEST), (16, "high", HIGH), (64, "highest", HIGHEST)],
)
def test_mmd_keeps_what_the_precision_promises(
    d, precision, allowed, emulated_backend, pessimistic_tensor_cores
):
    # Far from the origin, so that products would be large if samples were not centred.
    x, y = samples(270, 250, d, offset=10.0) if emulated_backend == "cuda" else samples(64, 48, d)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        loss, gradients = derivatives(
            lambda x, y: cgm_fast.mmd(x, y, backend=emulated_backend), (x, y), order=1
        )[:2]
    finally:
        torch.set_float32_matmul_precision(before)
    wide, sigma = (x.double(), y.double()), [math.sqrt(d)]
    expected = derivatives(lambda x, y: mmd_formula(x, y, sigma=sigma), wide, order=1)
    magnitude = mmd_total(*wide, sigma=sigma)
    assert float((loss.double() - expected[0]).abs() / magnitude) <= allowed[0]
    assert relative_l2(torch.cat(gradients, -2), torch.cat(expected[1], -2)) <= allowed[1]


def test_addends_are_cut_where_they_are_aligned():
    tensor_cores = pytest.importorskip("tensor_cores")

    def summed(total, *products):
        a = numpy.ones((1, len(products)), numpy.float32)
        b = numpy.array(products, numpy.float32)[:, None]
        return float(tensor_cores.accumulate_aligned(a, b, numpy.float32([[total]]))[0, 0])

    tiny = 2.0**-25
    assert summed(0, tiny, tiny, tiny, tiny) == 4 * tiny
    assert summed(1, tiny, tiny, tiny, tiny) == 1  # each is cut: together they would be 2^-23
    assert summed(1, *(4 * [2 * tiny])) == 1 + 8 * tiny  # but not one of 24 bits below
    assert summed(1, -2 * tiny) == 1 - 2 * tiny
    assert summed(0, *(4 * [tiny]), 1) == 1 + 4 * tiny  # four at a time
    # A product's exponent is that of its factors: 1.5 by 1.5 is not aligned as 2.25.
    a = numpy.float32([[1.5, 2.0**-24]])
    b = numpy.float32([[1.5], [1]])
    nothing = numpy.zeros((1, 1), numpy.float32)
    assert float(tensor_cores.accumulate_aligned(a, b, nothing)[0, 0]) == 2.25
    # Beside one that is cut once, what a random product loses is little.
    generator = numpy.random.default_rng(0)
    a, b = (generator.normal(size=shape).astype(numpy.float32) for shape in ((8, 64), (64, 8)))
    nothing = numpy.zeros((8, 8), numpy.float32)
    exact = a.astype(float) @ b.astype(float)
    error = abs(tensor_cores.dot(a, b, nothing, "TF32x3", tensor_cores.accumulate_aligned) - exact)
    once = abs(tensor_cores.dot(a, b, nothing, "TF32x3") - exact)
    assert once.mean() < error.mean() < 1e-5
