"""`prototype_margin` against eq. 8 in float64: assignment, values, derivatives, invariants."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from cgm_fast import prototype_margin
from cgm_fast.testing import (
    GRADIENT_TOLERANCE,
    LAYOUTS,
    LOSS_TOLERANCE,
    assert_gradient_close,
    assert_loss_close,
    derivatives,
    prototype_margin_formula,
    prototypes,
    rounding,
)

# Samples B, prototypes K, features d.
SHAPES = [
    (1, 2, 1),
    (31, 33, 2),
    (63, 10, 64),
    (70, 50, 300),
    (33, 3, 4096),
    (2000, 31, 10),
    (33, 1000, 64),
    (3, 65536, 8),
]
OPTIONS = {
    "paper": {},
    "mean_of_negatives": {"negatives": "mean"},
    "sum_of_samples": {"reduction": "sum"},
    "wide_margin": {"margin": 2.5},
    "no_margin": {"margin": 0.0},
}


def shape_id(shape):
    return "x".join(map(str, shape))


def magnitude(r, g, assignment, *, margin=1.0, negatives="sum", reduction="mean"):
    """The magnitudes of the terms of eq. 8 before they cancel: d_ik, and margin where it acts."""
    distance = (r.double()[:, None] - g.double()).square().sum(2)
    own = torch.nn.functional.one_hot(assignment, len(g)).bool()
    active = (distance < margin) & ~own
    weight = 1.0 if negatives == "sum" else 1 / (len(g) - 1)
    total = distance[own].sum() + weight * (margin + distance)[active].sum()
    return total if reduction == "sum" else total / len(r)


def kernel_and_oracle(r, g, labels, option, backend, order=2):
    def call(r, g):
        return prototype_margin(r, g, labels, **option, backend=backend).loss

    def formula(r, g):
        return prototype_margin_formula(r, g, labels, **option)[0]

    return (
        derivatives(call, (r, g), order=order),
        derivatives(formula, (r.double(), g.double()), order=order),
    )


def assert_all_close(kernel, oracle, scale, of_loss=LOSS_TOLERANCE, of_rest=GRADIENT_TOLERANCE):
    assert_loss_close(kernel[0], oracle[0], scale, of_loss)
    for parts, expected in zip(kernel[1:], oracle[1:], strict=True):
        for part, wanted in zip(parts, expected, strict=True):
            assert_gradient_close(part, wanted, of_rest)


def assert_nearest(assignment, r, g):
    """The index matches, or its distance is as good to within rounding."""
    distance = (r.double()[:, None] - g.double()).square().sum(2)
    lowest = distance.min(1)
    chosen = distance.gather(1, assignment[:, None]).squeeze(1)
    # In |r|² + |g|² − 2rg about a centre amid the prototypes, sums of d terms round some √d times.
    centre = g.double().mean(0)
    size = (r.double() - centre).square().sum(1) + (g.double() - centre).square().sum(1).max()
    slack = (4 + r.shape[1] ** 0.5) * torch.finfo(torch.float32).eps * size
    right = (assignment == lowest.indices) | (chosen <= lowest.values + slack)
    assert right.all(), f"not nearest: samples {(~right).nonzero().flatten().tolist()}"


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("labelled", [False, True], ids=["nearest", "labelled"])
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_loss_gradients_and_hessian_product_in_float32(
    shape, labelled, backend, device, interpreted
):
    if interpreted and max(shape) > 4000:
        pytest.skip("half a minute or more in the interpreter")
    r, g, labels = prototypes(*shape, device=device)
    labels = labels if labelled else None
    assignment = prototype_margin(r, g, labels, backend=backend).assignment
    if labelled:
        assert torch.equal(assignment, labels)
    else:
        assert_nearest(assignment, r, g)
    kernel, oracle = kernel_and_oracle(r, g, labels, {}, backend)
    assert_all_close(kernel, oracle, magnitude(r, g, assignment))


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("labelled", [False, True], ids=["nearest", "labelled"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_every_option(option, labelled, dtype, backend, device):
    r, g, labels = prototypes(63, 10, 5, dtype=dtype, device=device)
    labels = labels.to(torch.int32) if labelled else None
    option = OPTIONS[option]
    kernel, oracle = kernel_and_oracle(r, g, labels, option, backend)
    assignment = prototype_margin_formula(r, g, labels)[1].long()
    tolerances = (rounding(63 + 10 + 5),) * 2 if dtype == torch.float64 else ()
    assert_all_close(kernel, oracle, magnitude(r, g, assignment, **option), *tolerances)


def test_equals_the_contrastive_loss_of_pytorch_metric_learning(backend, device):
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import ContrastiveLoss
    from pytorch_metric_learning.reducers import SumReducer

    r, g, labels = prototypes(64, 10, 10, dtype=torch.float64, device=device)
    distance = LpDistance(normalize_embeddings=False, p=2, power=2)
    peer = ContrastiveLoss(0, 1, distance=distance, reducer=SumReducer())
    expected = peer(r, labels, ref_emb=g, ref_labels=torch.arange(10, device=device)) / 64
    loss = prototype_margin(r, g, labels, backend=backend).loss
    assert abs(float(loss) - float(expected)) <= 1e-12 * float(expected)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_far_from_the_origin_and_in_half_precision(offset, dtype, backend, device):
    r, g, labels = prototypes(100, 10, 64, offset=offset, dtype=dtype, device=device)
    kernel, oracle = kernel_and_oracle(r, g, labels, {}, backend)
    assert kernel[0].dtype == torch.float32
    assert {part.dtype for part in kernel[1]} == {dtype}
    assert_all_close(kernel, oracle, magnitude(r, g, labels))


# Shapes at which the matrix product of MKL rounds equal columns differently are among these.
@pytest.mark.slow_interpreted
@pytest.mark.parametrize("k", [2, 7, 10, 100, 1000])
@pytest.mark.parametrize("d", [1, 31, 100, 300])
def test_equal_prototypes_go_to_the_lowest_index(k, d, backend, device):
    r, g, _ = prototypes(100, k, d, device=device)
    copied = torch.randint(k, (k,)).minimum(torch.arange(k)).to(device)
    g = g[copied]
    assignment = prototype_margin(r, g, backend=backend).assignment
    first = (g[assignment][:, None] == g).all(2).int().argmax(1)
    assert torch.equal(assignment, first)
    assert_nearest(assignment, r, g)


def test_prototypes_at_equal_distance_go_to_the_lowest_index(backend, device):
    g = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]], device=device)
    r = torch.zeros(2, 2, device=device)
    assert prototype_margin(r, g, backend=backend).assignment.tolist() == [1, 1]


def test_a_prototype_on_the_margin_may_push_or_not(backend, device):
    # At distance² = margin, within rounding, both one-sided gradients of the hinge are right.
    g = torch.tensor([[0.0, 0.0], [1.0, 0.0]], device=device)
    r = torch.tensor([[1e-9, 0.0]], device=device, requires_grad=True)
    loss = prototype_margin(r, g, torch.tensor([0], device=device), backend=backend).loss
    loss.backward()
    assert abs(float(loss.detach())) <= LOSS_TOLERANCE
    push = float(r.grad[0, 0])  # 2e-9 of pull, and 2 of push or none
    assert min(abs(push - 2e-9), abs(push - 2)) <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout, backend, device):
    r, g, labels = prototypes(63, 10, 5, device=device)
    r, g = LAYOUTS[layout](r), LAYOUTS[layout](g)
    labels = torch.stack((labels, labels), 1)[:, 0]
    kernel, oracle = kernel_and_oracle(r, g, labels, {}, backend)
    assert_all_close(kernel, oracle, magnitude(r, g, labels))


@pytest.mark.parametrize("wanted", ["r", "g"])
def test_only_the_gradient_asked_for(wanted, backend, device):
    r, g, labels = prototypes(33, 10, 5, device=device)
    inputs = {"r": r.requires_grad_(), "g": g.requires_grad_()}
    both = torch.autograd.grad(
        prototype_margin(r, g, labels, backend=backend).loss, list(inputs.values())
    )
    alone = {name: value.detach() for name, value in inputs.items()}
    alone[wanted].requires_grad_()
    prototype_margin(**alone, labels=labels, backend=backend).loss.backward()
    expected = dict(zip(inputs, both, strict=True))
    assert_gradient_close(alone[wanted].grad, expected[wanted])
    assert all(value.grad is None for name, value in alone.items() if name != wanted)


@pytest.mark.parametrize("labelled", [False, True], ids=["nearest", "labelled"])
@pytest.mark.parametrize("option", ["paper", "mean_of_negatives"])
def test_gradcheck_of_first_and_second_derivatives(option, labelled, backend, device, interpreted):
    # Seed 0 leaves no distance within 1e-3 of the margin or of a tie: checked here.
    r, g, labels = prototypes(5, 4, 3, dtype=torch.float64, device=device)
    distance = (r[:, None] - g).square().sum(2)
    assert (distance - 1).abs().min() > 1e-3
    assert distance.sort(1).values.diff(dim=1)[:, 0].min() > 1e-3

    def call(r, g):
        known = labels if labelled else None
        return prototype_margin(r, g, known, **OPTIONS[option], backend=backend).loss

    inputs = (r.requires_grad_(), g.requires_grad_())
    assert gradcheck(call, inputs, fast_mode=interpreted)
    assert gradgradcheck(call, inputs, fast_mode=interpreted)


def test_a_sample_on_its_prototype_has_finite_derivatives(backend, device):
    g = torch.tensor([[0.1, 0.2], [0.1, 0.2], [5.0, 5.0]], device=device)
    kernel, oracle = kernel_and_oracle(g.clone(), g, None, {}, backend)
    # Sample 0 sits on prototype 0 and on its equal, which pushes with the full margin, unmoved.
    assert float(kernel[0]) == pytest.approx(2 / 3, abs=LOSS_TOLERANCE)
    assert all(float(part.abs().max()) == 0 for part in kernel[1])
    for part, wanted in zip(kernel[2], oracle[2], strict=True):
        assert_gradient_close(part, wanted)


@pytest.mark.parametrize("bad", ["r", "g"])
def test_nan_reaches_the_loss(bad, backend, device):
    r, g, labels = prototypes(33, 10, 5, device=device)
    {"r": r, "g": g}[bad][1, 2] = float("nan")
    for known in (None, labels):
        assert prototype_margin(r, g, known, backend=backend).loss.isnan()


sizes = st.tuples(st.integers(1, 24), st.integers(2, 24), st.integers(1, 12))
seeds = st.integers(0, 1000)


@given(shape=sizes, seed=seeds)
def test_order_does_not_matter(backend, device, shape, seed):
    r, g, labels = prototypes(*shape, seed=seed, device=device)
    p, q = torch.randperm(len(r), device=device), torch.randperm(len(g), device=device)
    one = prototype_margin(r, g, labels, backend=backend)
    other = prototype_margin(r[p], g[q], q.argsort()[labels[p]], backend=backend)
    assert torch.equal(q[other.assignment], one.assignment[p])
    assert_loss_close(one.loss, other.loss, magnitude(r, g, labels), 2 * LOSS_TOLERANCE)


@given(shape=sizes, seed=seeds, shift=st.integers(-4000, 4000))
def test_moving_everything_changes_nothing(backend, device, shape, seed, shift):
    r, g, labels = prototypes(*shape, seed=seed, device=device)
    r, g = ((z * 256).round() / 256 for z in (r, g))  # so that adding an integer is exact
    one = prototype_margin(r, g, labels, backend=backend).loss
    other = prototype_margin(r + shift, g + shift, labels, backend=backend).loss
    assert_loss_close(one, other, magnitude(r, g, labels), 2 * LOSS_TOLERANCE)


@given(shape=sizes, seed=seeds)
def test_the_nearest_prototype_pulls_least(backend, device, shape, seed):
    # Without a margin, a label can only be as near as the nearest.
    r, g, labels = prototypes(*shape, seed=seed, device=device)
    nearest = prototype_margin(r, g, margin=0.0, backend=backend).loss
    labelled = prototype_margin(r, g, labels, margin=0.0, backend=backend).loss
    assert float(nearest) <= float(labelled) * (1 + LOSS_TOLERANCE)
