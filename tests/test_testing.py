"""The helpers that the other tests lean on: what is wrong must be caught by them."""

import math

import pytest
import torch

from cgm_fast.testing import (
    LAYOUTS,
    assert_error_budget,
    assert_gradient_close,
    assert_loss_close,
    cosine,
    derivatives,
    mmd_formula,
    mmd_magnitude,
    mmd_total,
    poison,
    poisoned_memory,
    prototype_margin_formula,
    prototypes,
    relative_l2,
    sample_weights,
    samples,
)


def kernel(a, b, sigma):
    return math.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * sigma**2))


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_the_mmd_formula_is_a_double_loop(estimator):
    x, y = (z.tolist() for z in samples(4, 3, 2, dtype=torch.float64))
    skip = estimator == "unbiased"

    def mean(a, b, same):
        pairs = [
            kernel(p, q, 1.5)
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (same and skip and i == j)
        ]
        return sum(pairs) / len(pairs)

    expected = mean(x, x, True) - 2 * mean(x, y, False) + mean(y, y, True)
    x, y = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    value = mmd_formula(x, y, sigma=[1.5], estimator=estimator)
    assert float(value) == pytest.approx(expected, rel=1e-14)


def test_the_mmd_formula_of_a_batch_is_that_of_its_items():
    x, y = samples(4, 3, 2, batch=2, dtype=torch.float64)
    sigma = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    w = sample_weights(4, batch=2, dtype=torch.float64)
    value = mmd_formula(x, y, sigma=sigma, x_weights=w, kernel_agg="sum")
    for i in range(2):
        parts = (mmd_formula(x[i], y[i], sigma=[s], x_weights=w[i]) for s in sigma[i].tolist())
        assert float(value[i]) == pytest.approx(float(sum(parts)), rel=1e-14)


@pytest.mark.parametrize("measure", [mmd_magnitude, mmd_total])
def test_the_magnitude_bounds_the_value_and_vanishes_with_it(measure):
    x, y = samples(31, 33, 5)
    assert 0 < float(mmd_formula(x, y, sigma=[2.0])) < float(measure(x, y, sigma=[2.0]))
    same = torch.zeros(3, 2)
    assert float(measure(same, same, sigma=[2.0])) == 0


@pytest.mark.parametrize("sigma", [0.2, 1.0, 20.0])
def test_the_magnitude_is_a_double_loop_over_what_k_can_lose(sigma):
    x, y = (z.tolist() for z in samples(4, 3, 2, dtype=torch.float64))
    expected = total = 0.0
    for a, b, c in ((x, x, 1 / 16), (y, y, 1 / 9), (x, y, 2 / 12)):
        for p in a:
            for q in b:
                k = kernel(p, q, sigma)
                expected += c * min(1 - k, k * max(1.0, -math.log(k))) if k > 0 else 0
                total += c * (1 - k)
    x, y = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    magnitude = float(mmd_magnitude(x, y, sigma=[sigma]))
    assert magnitude == pytest.approx(expected, rel=1e-12)
    assert float(mmd_total(x, y, sigma=[sigma])) == pytest.approx(total, rel=1e-12)
    assert magnitude <= total * (1 + 1e-12)


def test_eager_by_products_is_the_same_formula():
    x, y = samples(31, 33, 5, dtype=torch.float64)
    plain = mmd_formula(x, y, sigma=[2.0])
    assert float(mmd_formula(x, y, sigma=[2.0], by_product=True)) == pytest.approx(float(plain))


def test_the_prototype_formula_on_numbers_done_by_hand():
    r, g = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.5], [1.5], [9.0]])
    # Distances: 0.25, 2.25, 81 and 2.25, 0.25, 49. Nothing but the own prototype is within 1.
    assert float(prototype_margin_formula(r, g)[0]) == pytest.approx(0.25)
    # Margin 3 adds 0.75 to each.
    loss, assignment = prototype_margin_formula(r, g, margin=3.0, reduction="sum")
    assert float(loss) == pytest.approx(2.0)
    assert assignment.tolist() == [0, 1]
    loss, _ = prototype_margin_formula(r, g, torch.tensor([2, 1]), margin=3.0, negatives="mean")
    assert float(loss) == pytest.approx(((81 + (2.75 + 0.75) / 2) + (0.25 + 0.75 / 2)) / 2)


def test_derivatives_of_a_cubic():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    value, (gradient,), (product,) = derivatives(lambda x: (x**3).sum(), [x])
    assert value.tolist() == 9
    assert gradient.tolist() == [3, 12]
    direction = torch.randn(2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(product, 6 * x * direction)
    assert derivatives(lambda x: (x**3).sum(), [x], order=1)[2] == []


def test_inputs_are_what_they_say():
    x, y = samples(31, 33, 5, batch=2, offset=100.0, dtype=torch.float16)
    assert (x.shape, y.shape, x.dtype) == ((2, 31, 5), (2, 33, 5), torch.float16)
    assert 95 < float(x.float().mean()) < 105
    assert torch.equal(x, samples(31, 33, 5, batch=2, offset=100.0, dtype=torch.float16)[0])
    apart = samples(4, 4, 1, apart=1000.0)[0]
    assert float(apart[0] - apart[1]) > 900
    weights = sample_weights(33, batch=2, total=3.0, dtype=torch.float64)
    assert weights.sum(1).tolist() == pytest.approx([3.0, 3.0])
    assert float(weights.min()) > 0
    r, g, labels = prototypes(31, 10, 5)
    assert (r.shape, g.shape, labels.shape) == ((31, 5), (10, 5), (31,))
    distance = (r[:, None] - g).square().sum(2)
    assert 0.1 < float((distance < 1).float().mean()) < 0.9  # the margin acts on some


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_the_values_but_not_the_strides(layout):
    x, _ = samples(4, 1, 3, batch=2)
    view = LAYOUTS[layout](x)
    assert view.is_contiguous() == (layout == "contiguous")
    assert torch.equal(view, x[..., :1, :].expand(x.shape) if layout == "expanded" else x)


def test_norms_and_angles():
    a = torch.tensor([3.0, 4.0])
    assert relative_l2(a, a) == 0
    assert relative_l2(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_l2(2 * a, a) == 1
    assert cosine(a, a) == 1
    assert cosine(a, torch.tensor([-4.0, 3.0])) == 0


def test_a_loss_within_its_tolerance_passes_and_one_outside_fails():
    oracle = torch.tensor(1.0, dtype=torch.float64)
    assert_loss_close(oracle + 0.9e-6, oracle, 1.0)
    assert_loss_close(oracle.float() * (1 + 2.0**-23), oracle, 0.0)  # rounded to float32
    with pytest.raises(AssertionError, match="off its oracle"):
        assert_loss_close(oracle.float() * (1 + 2.0**-21), oracle, 0.0)
    with pytest.raises(AssertionError, match="off its oracle"):
        assert_loss_close(oracle + 1.1e-6, oracle, 1.0)
    with pytest.raises(AssertionError, match="off its oracle"):
        assert_loss_close(torch.tensor(float("nan")), oracle, 1e9)


def test_a_gradient_within_its_tolerance_passes_and_one_outside_fails():
    oracle = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert_gradient_close(oracle * (1 + 0.9e-5), oracle)
    for wrong in (oracle * (1 + 1.1e-5), -oracle, oracle * float("nan")):
        with pytest.raises(AssertionError, match="off its oracle"):
            assert_gradient_close(wrong, oracle)
    with pytest.raises(AssertionError, match="shape"):
        assert_gradient_close(oracle[:1], oracle)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_gradient_may_be_rounded_once(dtype):
    oracle = torch.linspace(1, 2, 101, dtype=torch.float64)
    assert_gradient_close(oracle.to(dtype), oracle)
    with pytest.raises(AssertionError, match="off its oracle"):
        assert_gradient_close((oracle * (1 + 3 * torch.finfo(dtype).eps)).to(dtype), oracle)


def test_the_budget_is_eagers_error_times_the_factor_and_a_rounding_step():
    oracle = torch.ones(3, dtype=torch.float64)
    eager = torch.ones(3) + 1e-5
    assert_error_budget(oracle.float() + 1.9e-5, oracle, eager, factor=2)
    with pytest.raises(AssertionError, match=r"allowed .* 2 x eager's"):
        assert_error_budget(oracle.float() + 2.2e-5, oracle, eager, factor=2)
    assert_error_budget(oracle.float() + torch.finfo(torch.float32).eps, oracle, oracle)
    one_element = oracle.float()
    one_element[0] += 2.1e-5  # small in the norm, not in the largest element
    with pytest.raises(AssertionError, match="largest error"):
        assert_error_budget(one_element, oracle, eager, factor=2)


class Elsewhere:
    """Calls the allocators from a module of another name."""

    def __init__(self, name):
        self.namespace = {"__name__": name, "torch": torch}

    def __call__(self, expression):
        return eval(expression, self.namespace)


ALLOCATIONS = [
    "torch.empty(100)",
    "torch.empty((10, 10), dtype=torch.float64)",
    "torch.empty_like(torch.zeros(100))",
    "torch.zeros(1).new_empty((10, 10))",
    "torch.zeros(1).new_empty(100, dtype=torch.bfloat16)",
    "torch.empty(100, requires_grad=True)",
]


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("module", ["kernels", "kernels.fast"])
def test_poison_fills_what_the_package_allocates(allocation, module):
    with poisoned_memory("kernels"):
        out = Elsewhere(module)(allocation)
    assert out.numel() == 100
    assert out.isnan().all()
    assert out.requires_grad == ("requires_grad" in allocation)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
def test_poison_of_integers_is_the_end_of_their_range(dtype):
    with poisoned_memory("kernels"):
        out = Elsewhere("kernels")(f"torch.empty(100, dtype=torch.{dtype})")
    expected = {"uint8": 255, "bool": True}
    lowest = None if dtype in expected else torch.iinfo(out.dtype).min
    assert (out == expected.get(dtype, lowest)).all()


@pytest.mark.parametrize("module", ["kernelsmith", "torch.nn.functional", "__main__"])
def test_poison_leaves_other_modules_alone(module, monkeypatch):
    filled = []
    monkeypatch.setattr(poison, "_poison_of", lambda dtype: filled.append(dtype) or 0.0)
    with poisoned_memory("kernels"):
        Elsewhere(module)("torch.empty(100)")
        assert filled == []
        Elsewhere("kernels")("torch.empty(100)")
        assert filled == [torch.float32]


def test_poison_ends_with_its_block():
    before = torch.empty, torch.empty_like, torch.Tensor.new_empty
    with pytest.raises(KeyError), poisoned_memory("kernels"):
        raise KeyError
    assert (torch.empty, torch.empty_like, torch.Tensor.new_empty) == before


def test_poison_leaves_fake_tensors_alone():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with poisoned_memory("kernels"), FakeTensorMode():
        assert Elsewhere("kernels")("torch.empty(100)").shape == (100,)


def test_the_tests_of_this_package_run_on_poisoned_memory():
    assert Elsewhere("cgm_fast.ops.mmd.native")("torch.empty(100)").isnan().all()
