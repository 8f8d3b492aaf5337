"""`mmd` against the formula in float64: values, derivatives, numerics, invariants."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from cgm_fast import mmd
from cgm_fast.ops.chunks import TileSize
from cgm_fast.ops.mmd import chunked, matmul
from cgm_fast.testing import (
    GRADIENT_TOLERANCE,
    LAYOUTS,
    LOSS_TOLERANCE,
    assert_error_budget,
    assert_gradient_close,
    assert_loss_close,
    derivatives,
    mmd_formula,
    mmd_magnitude,
    mmd_total,
    rounding,
    sample_weights,
    samples,
)

# n, m, d; the oracle stores n * m * d values, so where one is large another is small.
SHAPES = [
    (1, 2, 1),
    (1, 33, 64),
    (31, 1, 2),
    (33, 63, 10),
    (100, 31, 64),
    (63, 100, 300),
    (33, 31, 4096),
    (2000, 100, 1),
    (31, 2000, 2),
]
OPTIONS = {
    "biased": {},
    "unbiased": {"estimator": "unbiased"},
    "x_weights": {"x_weights": 1.0},
    "y_weights": {"y_weights": 1.0},
    "weights": {"x_weights": 1.0, "y_weights": 1.0},
    "unequal_mass": {"x_weights": 3.0, "y_weights": 0.5},
    "unbiased_weights": {"estimator": "unbiased", "x_weights": 1.0, "y_weights": 2.0},
    "mean_of_three": {"sigma": (0.5, 1.0, 2.0)},
    "sum_of_three": {"sigma": (0.5, 1.0, 2.0), "kernel_agg": "sum"},
    "unbiased_sum_of_two": {"estimator": "unbiased", "sigma": (1.0, 4.0), "kernel_agg": "sum"},
}


def shape_id(shape):
    return "x".join(map(str, shape))


def with_tensors(x, y, option, sigma):
    """An option of the table as keywords with tensors: weights of that mass, bandwidths [s]."""
    option = dict(option)
    relative = option.pop("sigma", (1.0,))
    option["sigma"] = torch.tensor([sigma * s for s in relative], dtype=x.dtype, device=x.device)
    for name, sample, seed in (("x_weights", x, 1), ("y_weights", y, 2)):
        if name in option:
            batch = sample.shape[0] if sample.dim() == 3 else None
            option[name] = sample_weights(
                sample.shape[-2], batch=batch, total=option[name], dtype=sample.dtype, seed=seed
            ).to(sample.device)
    return option


def kernel_and_oracle(x, y, option, backend, *, order=2):
    """Derivatives in x, y and every tensor of the option, by `backend` and by the formula."""
    tensors = {name: value for name, value in option.items() if isinstance(value, torch.Tensor)}
    plain = {name: value for name, value in option.items() if name not in tensors}

    def call(x, y, *values):
        named = dict(zip(tensors, values, strict=True))
        return mmd(x, y, bandwidth=named.pop("sigma"), **named, **plain, backend=backend)

    def formula(x, y, *values, **how):
        return mmd_formula(x, y, **dict(zip(tensors, values, strict=True)), **plain, **how)

    def magnitude(*values):
        return mmd_magnitude(x, y, **dict(zip(tensors, values, strict=True)), **plain)

    def total(*values):
        return mmd_total(x, y, **dict(zip(tensors, values, strict=True)), **plain)

    inputs = (x, y, *tensors.values())
    wide = [value.double() for value in inputs]
    return {
        "kernel": derivatives(call, inputs, order=order),
        "oracle": derivatives(formula, wide, order=order),
        "eager": derivatives(partial(formula, dtype=x.dtype, by_product=True), inputs, order=order),
        "magnitude": magnitude(*wide[2:]),
        "totals": derivatives(total, wide[2:], order=1)[1],
    }


def assert_contract(results, of_loss=LOSS_TOLERANCE, of_gradient=GRADIENT_TOLERANCE):
    """Loss against the sum of its terms' magnitudes, gradients of the samples as vectors.

    Weights and bandwidths have gradients that cancel, so these too are held against the sum of
    their terms' magnitudes, which is the derivative of Σ|c||k − 1|.
    """
    loss, gradients, _ = results["kernel"]
    oracle, expected, _ = results["oracle"]
    assert_loss_close(loss, oracle, results["magnitude"], of_loss)
    for gradient, wanted in zip(gradients[:2], expected[:2], strict=True):
        assert_gradient_close(gradient, wanted, of_gradient)
    for gradient, wanted, scale in zip(gradients[2:], expected[2:], results["totals"], strict=True):
        step = 0 if gradient.dtype.itemsize > 2 else torch.finfo(gradient.dtype).eps * wanted.abs()
        assert ((gradient.double() - wanted).abs() <= of_gradient * scale.abs() + step).all()


def whole(parts):
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_loss_and_gradients_meet_the_contract_and_the_budget(shape, backend, device, interpreted):
    if interpreted and max(shape) >= 2000:
        pytest.skip("half a minute in the interpreter; test_triton.py has turns, splits and chunks")
    x, y = samples(*shape, device=device)
    option = with_tensors(x, y, {}, math.sqrt(shape[2]))
    small = max(shape[:2]) ** 2 * shape[2] < 1e6  # the oracle's second derivative is a heavy one
    results = kernel_and_oracle(x, y, option, backend, order=2 if small else 1)
    assert_contract(results)
    kernel, oracle, eager = (results[which] for which in ("kernel", "oracle", "eager"))
    assert_error_budget(kernel[0], oracle[0], eager[0], factor=2)
    for part in (0, 1):
        assert_error_budget(kernel[1][part], oracle[1][part], eager[1][part], factor=3)
    if small:
        assert_error_budget(whole(kernel[2]), whole(oracle[2]), whole(eager[2]), factor=3)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("batch", [None, 3], ids=["single", "batch"])
def test_every_option_meets_the_contract_and_the_budget(option, batch, backend, device):
    x, y = samples(31, 33, 10, batch=batch, device=device)
    results = kernel_and_oracle(x, y, with_tensors(x, y, OPTIONS[option], 3.0), backend)
    assert_contract(results)
    product, oracle, eager = (whole(results[k][2]) for k in ("kernel", "oracle", "eager"))
    assert_error_budget(product, oracle, eager, factor=3)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("batch", [None, 2], ids=["single", "batch"])
def test_float64_equals_the_formula_to_rounding(option, batch, backend, device):
    x, y = samples(33, 31, 5, batch=batch, dtype=torch.float64, device=device)
    results = kernel_and_oracle(x, y, with_tensors(x, y, OPTIONS[option], 2.0), backend)
    tolerance = rounding(sum(x.shape[-2:]) + y.shape[-2])
    assert_contract(results, tolerance, tolerance)
    for product, expected in zip(results["kernel"][2], results["oracle"][2], strict=True):
        assert_gradient_close(product, expected, tolerance)


# Shape, bandwidth, how the samples lie, and whether plain 1e-6 and 1e-5 are asked for.
NUMERICS = {
    "offset": ((100, 63, 10), 3.0, {"offset": 1e3}, True),
    "offset_and_wide": ((33, 31, 4096), 64.0, {"offset": 1e3}, True),
    "one_row": ((1, 100, 10), 3.0, {}, True),
    "one_row_each_and_wide": ((1, 1, 4096), 64.0, {}, True),
    "one_feature": ((100, 63, 1), 1.0, {}, True),
    "huge_bandwidth": ((63, 100, 10), 1e4, {}, True),
    "tiny_bandwidth": ((63, 100, 10), 1e-3, {}, True),
    "vanishing_bandwidth": ((63, 100, 10), 1e-12, {}, True),
    "hundreds_of_bandwidths_apart": ((63, 100, 10), 3.0, {"apart": 300.0}, False),
    "bandwidth_of_the_nearest_neighbour": ((100, 63, 1), 0.01, {}, False),
}


@pytest.mark.slow_interpreted
@pytest.mark.usefixtures("tensor_cores")
@pytest.mark.parametrize("case", NUMERICS)
def test_numerics_contract(case, backend, device, interpreted):
    if interpreted and case == "one_row_each_and_wide":
        pytest.skip("half a minute in the interpreter, as long as offset_and_wide")
    shape, sigma, how, exact = NUMERICS[case]
    x, y = samples(*shape, **how, device=device)
    results = kernel_and_oracle(x, y, with_tensors(x, y, {}, sigma), backend, order=1)
    # Clusters far apart lose digits in |a|² + |b|² − 2ab, which an implementation may use.
    assert_contract(results) if exact else assert_contract(results, 1e-4, 1e-3)


@pytest.mark.parametrize("far", [2.0, 4.0, 5.0])
def test_a_row_far_from_the_others_keeps_its_gradient(far, backend, device):
    """Its kernel values are tiny, and must not be left with the rounding of k − 1."""
    generator = torch.Generator().manual_seed(0)
    y = (0.01 * torch.randn(150, 1, generator=generator)).to(device)
    x = torch.full((1, 1), far, device=device)
    assert_contract(kernel_and_oracle(x, y, with_tensors(x, y, {}, 1.0), backend, order=1))


@pytest.mark.parametrize("sigma", [1e-3, 1e-12])
def test_second_derivative_where_the_kernel_vanishes(sigma, backend, device):
    x, y = samples(33, 31, 10, device=device)
    results = kernel_and_oracle(x, y, with_tensors(x, y, {}, sigma), backend)
    assert all(float(part.abs().max()) == 0 for part in results["oracle"][2])
    assert all(float(part.abs().max()) == 0 for part in results["kernel"][2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("option", ["biased", "unbiased_weights", "sum_of_three"])
def test_half_inputs_are_computed_in_float32(dtype, option, backend, device):
    x, y = samples(100, 63, 10, dtype=dtype, device=device)
    results = kernel_and_oracle(x, y, with_tensors(x, y, OPTIONS[option], 3.0), backend, order=1)
    assert results["kernel"][0].dtype == torch.float32
    assert {part.dtype for part in results["kernel"][1]} == {dtype}
    assert_contract(results)


def test_bfloat16_at_the_papers_size_is_off_by_less_than_1e4th_of_a_nat(backend, device):
    x, y = samples(64, 64, 10, dtype=torch.bfloat16, device=device)
    loss = mmd(x, y, backend=backend)
    oracle = mmd_formula(x, y, sigma=[math.sqrt(10)])
    assert abs(1000 * float(loss) - 1000 * float(oracle)) < 1e-4


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [None, 3], ids=["single", "batch"])
def test_any_memory_layout(layout, batch, backend, device):
    x, y = (LAYOUTS[layout](z) for z in samples(31, 63, 10, batch=batch, device=device))
    option = with_tensors(x, y, OPTIONS["weights"], 3.0)
    results = kernel_and_oracle(x, y, option, backend)
    assert_contract(results)
    product, oracle, eager = (whole(results[k][2]) for k in ("kernel", "oracle", "eager"))
    assert_error_budget(product, oracle, eager, factor=3)


@pytest.mark.parametrize("pairs", [1, 500, 20_000], ids=["a_row", "some_rows", "some_items"])
@pytest.mark.parametrize("option", ["unbiased_weights", "sum_of_three"])
def test_the_reference_may_cut_anywhere(pairs, option, monkeypatch):
    monkeypatch.setattr(chunked, "pairs_per_chunk", lambda *_: pairs)
    x, y = samples(63, 33, 4, batch=5, dtype=torch.float64)
    results = kernel_and_oracle(x, y, with_tensors(x, y, OPTIONS[option], 2.0), "reference")
    tolerance = rounding(63 + 33 + 4)
    assert_contract(results, tolerance, tolerance)
    for product, expected in zip(results["kernel"][2], results["oracle"][2], strict=True):
        assert_gradient_close(product, expected, tolerance)


@pytest.mark.parametrize("size", [(5, 5), (7, 16), (64, 500)], ids=["square", "both", "columns"])
@pytest.mark.parametrize("option", ["biased", "unbiased_weights", "sum_of_three"])
def test_matrix_products_may_cut_anywhere(size, option, monkeypatch):
    monkeypatch.setattr(matmul, "tile_size", lambda *_: TileSize(*size))
    x, y = samples(63, 33, 4, batch=None if size[0] == 5 else 5, dtype=torch.float64)
    results = kernel_and_oracle(x, y, with_tensors(x, y, OPTIONS[option], 2.0), "matmul", order=1)
    tolerance = rounding(63 + 33 + 4)
    assert_contract(results, tolerance, tolerance)


WANTED = ["x", "y", "x_weights", "y_weights", "bandwidth"]


@pytest.mark.parametrize("wanted", [*([name] for name in WANTED), ["x", "bandwidth"]], ids="-".join)
def test_only_the_gradients_asked_for(wanted, backend, device):
    x, y = samples(33, 63, 10, dtype=torch.float64, device=device)
    option = with_tensors(x, y, OPTIONS["unbiased_weights"], 3.0)
    option["bandwidth"] = option.pop("sigma")
    option = {"x": x, "y": y, **option, "backend": backend}
    every = [option[name].requires_grad_() for name in WANTED]
    expected = dict(zip(WANTED, torch.autograd.grad(mmd(**option), every), strict=True))
    for name in WANTED:
        option[name] = option[name].detach().requires_grad_(name in wanted)
    mmd(**option).backward()
    for name in WANTED:
        assert (option[name].grad is not None) == (name in wanted)
        if name in wanted:
            assert_gradient_close(option[name].grad, expected[name], rounding(33 + 63 + 10))


@pytest.mark.parametrize(
    ("bandwidth", "sigma"),
    [
        ("paper", [math.sqrt(10)]),
        ("infovae", [10 / math.sqrt(2)]),
        (2, [2.0]),
        ([1.0, 2.0], [1.0, 2.0]),
        (torch.tensor(1.5), [1.5]),
        (torch.tensor([1.5, 3.0], dtype=torch.float64), [1.5, 3.0]),
        (torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])),
    ],
    ids=["paper", "infovae", "int", "list", "scalar", "vector", "matrix"],
)
def test_bandwidth_in_every_form(bandwidth, sigma, backend, device):
    x, y = samples(33, 31, 10, batch=2, device=device)
    on_device = bandwidth.to(device) if isinstance(bandwidth, torch.Tensor) else bandwidth
    loss = mmd(x, y, bandwidth=on_device, backend=backend)
    assert_loss_close(loss, mmd_formula(x, y, sigma=sigma), mmd_magnitude(x, y, sigma=sigma))


@pytest.mark.parametrize(
    ("bandwidth", "same"),
    [
        (np.float32(1.5), 1.5),
        (np.int64(2), 2.0),
        (np.array(1.5), 1.5),
        (np.array([1.5, 3.0]), [1.5, 3.0]),
        (np.array([1, 3], dtype=np.int32), [1.0, 3.0]),
        ([np.float32(1.5), 3], [1.5, 3.0]),
        (torch.tensor(2), 2.0),
        (torch.tensor([1, 3]), [1.0, 3.0]),
        ([torch.tensor(1.5), torch.tensor(3.0)], [1.5, 3.0]),
        ([torch.tensor(1), 3.0], [1.0, 3.0]),
    ],
    ids=lambda value: f"{type(value).__name__}-{value}".replace(" ", ""),
)
def test_bandwidths_of_numpy_and_of_tensors(bandwidth, same, device):
    x, y = samples(33, 31, 10, device=device)
    if isinstance(bandwidth, torch.Tensor):
        bandwidth = bandwidth.to(device)
    elif isinstance(bandwidth, list):
        bandwidth = [s.to(device) if isinstance(s, torch.Tensor) else s for s in bandwidth]
    torch.testing.assert_close(mmd(x, y, bandwidth=bandwidth), mmd(x, y, bandwidth=same))


def test_a_list_of_bandwidths_keeps_their_gradients(device):
    x, y = samples(33, 31, 10, device=device)
    apart = [torch.tensor(s, device=device, requires_grad=True) for s in (1.0, 3.0)]
    together = torch.tensor([1.0, 3.0], device=device, requires_grad=True)
    expected = torch.autograd.grad(mmd(x, y, bandwidth=together), together)[0]
    found = torch.autograd.grad(mmd(x, y, bandwidth=apart), apart)
    torch.testing.assert_close(torch.stack(found), expected)


@pytest.mark.slow_interpreted
def test_a_batch_is_its_items(backend, device):
    # Large enough that an implementation may give whole items to threads.
    x, y = samples(100, 63, 10, batch=5, device=device)
    loss, gradients, _ = derivatives(partial(mmd, backend=backend), (x, y), order=1)
    for i in range(5):
        one, parts, _ = derivatives(partial(mmd, backend=backend), (x[i], y[i]), order=1)
        assert_loss_close(loss[i], one, mmd_magnitude(x[i], y[i], sigma=[math.sqrt(10)]))
        for part, of_batch in zip(parts, gradients, strict=True):
            assert_gradient_close(of_batch[i], part)


def test_weights_are_shared_by_a_batch(backend, device):
    x, y = samples(33, 31, 10, batch=3, device=device)
    w = sample_weights(33, device=device)
    shared = mmd(x, y, x_weights=w, backend=backend)
    assert torch.equal(shared, mmd(x, y, x_weights=w.expand(3, 33), backend=backend))
    assert shared.shape == (3,)


@pytest.mark.parametrize("option", ["weights", "unbiased_weights", "sum_of_three"])
def test_gradcheck_of_first_and_second_derivatives(option, backend, device, interpreted, emulated):
    if interpreted:
        pytest.skip("a minute in the interpreter; test_float64_equals_the_formula has them all")
    x, y = samples(3, 4, 2, batch=2, dtype=torch.float64, device=device)
    option = with_tensors(x, y, OPTIONS[option], 1.5)
    tensors = {name: value for name, value in option.items() if isinstance(value, torch.Tensor)}
    plain = {name: value for name, value in option.items() if name not in tensors}

    def call(x, y, *values):
        named = dict(zip(tensors, values, strict=True))
        return mmd(x, y, bandwidth=named.pop("sigma"), **named, **plain, backend=backend)

    inputs = [value.requires_grad_() for value in (x, y, *tensors.values())]
    assert gradcheck(call, inputs, fast_mode=emulated)
    assert gradgradcheck(call, inputs, fast_mode=emulated)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_coincident_points_have_a_zero_gradient_and_a_finite_second_one(estimator, backend, device):
    x = torch.full((33, 10), 0.1, device=device)
    y = torch.full((31, 10), 0.1, device=device)
    option = with_tensors(x, y, {"estimator": estimator}, 3.0)
    results = kernel_and_oracle(x, y, option, backend)
    loss, gradients, products = results["kernel"]
    # The mean, which may be subtracted first, is off by a rounding of 0.1; that is rounded again.
    residue = 0.1 * torch.finfo(torch.float32).eps ** 2
    assert abs(float(loss)) <= residue
    assert all(float(part.abs().max()) <= residue for part in gradients)
    # The points do not pull, but a step of one of them is felt: (Ht)_i = 2/h Σ c_ij t_j.
    assert_gradient_close(whole(products), whole(results["oracle"][2]))


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("n", [1, 2, 33, 600])
def test_identical_samples_are_at_no_distance(n, backend, device):
    x, _ = samples(n, 1, 10, device=device)
    magnitude = mmd_magnitude(x, x, sigma=[3.0])
    loss = mmd(x, x.clone(), bandwidth=3.0, backend=backend)
    assert_loss_close(loss, torch.zeros(()), magnitude)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("batch", [None, 3], ids=["single", "batch"])
def test_the_biased_estimator_is_never_negative_and_keeps_its_gradient(
    batch, weighted, backend, device
):
    negative = 0
    for seed in range(40 if backend in ("native", "reference") else 4):
        x, _ = samples(40, 1, 5, batch=batch, seed=seed, device=device)
        how = {"backend": backend, "bandwidth": 3.0}
        if weighted:
            how["x_weights"] = sample_weights(40, seed=seed, device=device)
            how["y_weights"] = how["x_weights"].clone()
        y = (x + 1e-5 * torch.randn_like(x)).requires_grad_()
        loss = mmd(x, y, **how)
        assert (loss >= 0).all()
        assert loss.sqrt().isfinite().all()
        (gradient,) = torch.autograd.grad(loss.sum(), y)
        sizes = gradient.flatten(-2).abs().amax(-1)
        assert (sizes > 0).all()
        negative += int((loss == 0).sum())
        exact = mmd(x.double(), y.detach().double(), backend="reference", bandwidth=3.0)
        assert (exact > 0).all() or weighted
    # These two had something to mend.
    assert negative or backend not in ("native", "reference")


def grid(x):
    """Rounded to multiples of 2⁻⁸, so that moving by an integer below 2¹⁵ is exact in float32."""
    return (x * 256).round() / 256


sizes = st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(1, 12))
seeds = st.integers(0, 1000)


def drawn(shape, seed, device):
    """Samples on the grid, and what their losses may err by: the contract's, and a rounding."""
    x, y = (grid(z) for z in samples(*shape, seed=seed, device=device))
    rounded = torch.finfo(torch.float32).eps * mmd_formula(x, y, sigma=[2.0]).abs()
    return x, y, LOSS_TOLERANCE * mmd_magnitude(x, y, sigma=[2.0]) + rounded


@pytest.mark.slow_interpreted
@given(shape=sizes, seed=seeds)
def test_symmetric_and_not_negative(backend, device, shape, seed):
    x, y, error = drawn(shape, seed, device)
    forth = mmd(x, y, bandwidth=2.0, backend=backend)
    back = mmd(y, x, bandwidth=2.0, backend=backend)
    assert abs(float(forth) - float(back)) <= 2 * error
    assert float(forth) >= -error


@pytest.mark.slow_interpreted
@given(shape=sizes, seed=seeds, shift=st.integers(-4000, 4000))
def test_moving_everything_changes_nothing(backend, device, shape, seed, shift):
    x, y, error = drawn(shape, seed, device)
    here = mmd(x, y, bandwidth=2.0, backend=backend)
    there = mmd(x + shift, y + shift, bandwidth=2.0, backend=backend)
    assert abs(float(here) - float(there)) <= 2 * error


@pytest.mark.slow_interpreted
@given(shape=sizes, seed=seeds)
def test_order_does_not_matter(backend, device, shape, seed):
    x, y, error = drawn(shape, seed, device)
    p, q = torch.randperm(len(x), device=device), torch.randperm(len(y), device=device)
    one = mmd(x, y, bandwidth=2.0, backend=backend)
    other = mmd(x[p], y[q], bandwidth=2.0, backend=backend)
    assert abs(float(one) - float(other)) <= 2 * error


@pytest.mark.slow_interpreted
@given(shape=sizes, seed=seeds, power=st.integers(-20, 20))
def test_scaling_data_and_bandwidth_by_a_power_of_two_is_exact(backend, device, shape, seed, power):
    x, y, _ = drawn(shape, seed, device)
    one = mmd(x, y, bandwidth=2.0, backend=backend)
    other = mmd(x * 2.0**power, y * 2.0**power, bandwidth=2.0 * 2.0**power, backend=backend)
    assert torch.equal(one, other)


@pytest.mark.slow_interpreted
@given(shape=sizes, seed=seeds, total=st.sampled_from([1.0, 4.0]))
def test_a_point_twice_is_a_point_of_twice_the_weight(backend, device, shape, seed, total):
    x, y, _ = drawn(shape, seed, device)
    w = sample_weights(len(x), total=total, device=device)
    heavy = torch.cat((2 * w[:1], w[1:]))
    option = {"x_weights": heavy, "bandwidth": 2.0, "backend": backend}
    error = LOSS_TOLERANCE * mmd_magnitude(x, y, sigma=[2.0], x_weights=heavy)
    once = mmd(x, y, **option)
    twice = mmd(torch.cat((x[:1], x)), y, **(option | {"x_weights": torch.cat((w[:1], w))}))
    # What is left over when masses differ, (W_x − W_y)², is rounded once on each side.
    step = 4 * torch.finfo(torch.float32).eps * (float(heavy.sum()) + 1) ** 2
    assert abs(float(once) - float(twice)) <= 2 * error + step


@pytest.mark.slow_interpreted
@given(shape=sizes, seed=seeds)
def test_equal_weights_are_no_weights(backend, device, shape, seed):
    x, y, error = drawn(shape, seed, device)
    uniform = torch.full((len(x),), 1 / len(x), device=device)
    plain = mmd(x, y, bandwidth=2.0, backend=backend)
    weighted = mmd(x, y, x_weights=uniform, bandwidth=2.0, backend=backend)
    # 1/n is rounded: the terms of x change by that, relatively.
    assert abs(float(plain) - float(weighted)) <= 2 * error
