"""Derivatives and batches by `torch.func`, vmap, forward mode, is_grads_batched, torch.compile.

Each transform of an op is held against the same quantity of the formula, in float64.
"""

import math

import pytest
import torch
from torch import func
from torch.autograd import forward_ad

import cgm_fast
from cgm_fast.testing import cgm_formula, mmd_formula, prototype_margin_formula

# Torch's own, when it first makes a forward derivative, and when it linearizes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
]

ITEMS, ROWS, OTHERS, FEATURES = 3, 6, 5, 3
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def drawn(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator)


X, Y = drawn(ITEMS, ROWS, FEATURES), drawn(OTHERS, FEATURES)
NOISE = drawn(2, ROWS, FEATURES)
ALONG = drawn(ROWS, FEATURES + 1)[:, 1:]


def weighted(mmd):
    """Weights and bandwidths that are functions of the samples, so that all have derivatives."""

    def call(x, y):
        w = x[:, 0].square() + 0.1
        sigma = y[0, :2].square() + 1
        return mmd(x, y, sigma, x_weights=w / w.sum(), estimator="unbiased")

    return call


def gaussian(x, y):
    return torch.exp((x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1) / (-2 * FEATURES))


OPS = {
    "mmd": (
        lambda x, y: cgm_fast.mmd(x, y),
        lambda x, y: mmd_formula(x, y, sigma=[math.sqrt(FEATURES)]),
    ),
    "weighted_mmd": (
        weighted(lambda x, y, sigma, **how: cgm_fast.mmd(x, y, bandwidth=sigma, **how)),
        weighted(lambda x, y, sigma, **how: mmd_formula(x, y, sigma=sigma, **how)),
    ),
    "prototype_margin": (
        lambda r, g: cgm_fast.prototype_margin(r, g, LABELS).loss,
        lambda r, g: prototype_margin_formula(r, g, LABELS)[0],
    ),
    "cgm_loss": (
        lambda r, g: cgm_fast.cgm_loss(r, g, LABELS, noise=NOISE, mmd_weight=1.0).loss,
        lambda r, g: cgm_formula(r, g, LABELS, NOISE, mmd_weight=1.0)[0],
    ),
    "kernel_product": (
        lambda x, y: cgm_fast.kernel_product(x, y, y.square()).square().sum(),
        lambda x, y: (gaussian(x, y) @ y.square()).square().sum(),
    ),
}


def leaf(value):
    return value.clone().requires_grad_()


def through_vmap(f, wrap=lambda call: call):
    """Ordinary autograd, of a graph with vmap in it."""
    x, y = leaf(X), leaf(Y)
    return torch.autograd.grad(wrap(torch.vmap(f, (0, None)))(x, y).square().sum(), (x, y))


def forward_over_reverse(f):
    x = leaf(X[0])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, ALONG)
        value = f(dual, Y)
        (gradient,) = torch.autograd.grad(value, dual, create_graph=True)
        parts = (*forward_ad.unpack_dual(value), *forward_ad.unpack_dual(gradient))
        return tuple(part.clone() for part in parts)


def batched_gradients(f, create_graph):
    x = leaf(X[0])
    (gradient,) = torch.autograd.grad(f(x, Y), x, create_graph=True)
    unit = torch.eye(x.numel(), dtype=x.dtype).unflatten(1, x.shape)
    (hessian,) = torch.autograd.grad(gradient, x, unit, is_grads_batched=True)
    factors = torch.tensor([1.0, 2.0], dtype=x.dtype)
    (scaled,) = torch.autograd.grad(
        f(x, Y), x, factors, is_grads_batched=True, create_graph=create_graph
    )
    if not create_graph:
        return hessian, scaled
    along = torch.stack((ALONG, 2 * ALONG))
    return hessian, scaled, *torch.autograd.grad((scaled * along).sum(), x)


def later(f):
    """Second derivatives by a vjp that is used when its transform is over."""
    value, vjp = func.vjp(lambda x: func.grad(f)(x, Y).square().sum(), X[0])
    return vjp(torch.ones_like(value))


EAGER = {
    "vmap": lambda f: torch.vmap(f, (0, None))(X, Y),
    "vmap_of_both": lambda f: torch.vmap(f, (1, 1))(
        X.transpose(0, 1), Y.unsqueeze(1).expand(-1, ITEMS, -1)
    ),
    "vmap_of_vmap": lambda f: torch.vmap(torch.vmap(f, (0, None)), (None, 0))(
        X, torch.stack((Y, 2 * Y))
    ),
    "through_vmap": through_vmap,
    "grad": lambda f: func.grad(f, argnums=(0, 1))(X[0], Y),
    "grad_of_one": lambda f: func.grad(f, argnums=1)(X[0], Y),
    "vmap_of_grad": lambda f: torch.vmap(func.grad(f), (0, None))(X, Y),
    "grad_of_vmap": lambda f: func.grad(lambda x: torch.vmap(f, (0, None))(x, Y).square().sum())(X),
    "jvp": lambda f: func.jvp(f, (X[0], Y), (ALONG, Y)),
    "jvp_of_one": lambda f: func.jvp(lambda x: f(x, Y), (X[0],), (ALONG,)),
    "jacrev": lambda f: func.jacrev(f)(X[0], Y),
    "jacfwd": lambda f: func.jacfwd(f)(X[0], Y),
    "hessian": lambda f: func.hessian(f)(X[0], Y),
    "vmap_of_hessian": lambda f: torch.vmap(func.hessian(f), (0, None))(X, Y),
    "mixed_hessian": lambda f: func.jacfwd(func.jacrev(f, argnums=0), argnums=1)(X[0], Y),
    "reverse_over_reverse": lambda f: func.jacrev(func.jacrev(f))(X[0], Y),
    "reverse_over_forward": lambda f: func.jacrev(func.jacfwd(f))(X[0], Y),
    "forward_over_forward": lambda f: func.jacfwd(func.jacfwd(f))(X[0], Y),
    "later": later,
    "forward_over_reverse": forward_over_reverse,
    "is_grads_batched": lambda f: batched_gradients(f, create_graph=False),
    "is_grads_batched_twice": lambda f: batched_gradients(f, create_graph=True),
    "vectorized_hessian": lambda f: torch.autograd.functional.hessian(
        lambda x: f(x, Y), X[0], vectorize=True
    ),
    "vectorized_forward_hessian": lambda f: torch.autograd.functional.hessian(
        lambda x: f(x, Y), X[0], vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
}


def compiled(call):
    torch.compiler.reset()
    return torch.compile(call, fullgraph=True, backend="aot_eager")


# With what torch.compile, or tracing, is asked for, and what it should be.
TRACED = {
    "grad": (lambda f: compiled(func.grad(lambda x: f(x, Y)))(X[0]), "grad"),
    "vmap_of_grad": (
        lambda f: compiled(torch.vmap(func.grad(lambda x: f(x, Y))))(X),
        "vmap_of_grad",
    ),
    "jacrev": (lambda f: compiled(func.jacrev(lambda x: f(x, Y)))(X[0]), "jacrev"),
    "through_vmap": (lambda f: through_vmap(f, compiled), "through_vmap"),
    "linearize": (lambda f: func.linearize(lambda x: f(x, Y), X[0])[1](ALONG), "jvp_of_one"),
}


def parts(results):
    return [part.detach() for part in torch.utils._pytree.tree_leaves(results)]


def assert_the_same(results, expected):
    results, expected = parts(results), parts(expected)
    assert len(results) == len(expected)
    for value, wanted in zip(results, expected, strict=True):
        assert wanted.abs().max() > 1e-3  # zeros would be right by chance
        torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-12)


# What forward mode gives of K v along x and y is mmd's Hessian-vector product, and that has no
# derivative in what the Hessian depends on.
ONCE = {("kernel_product", "reverse_over_forward"), ("kernel_product", "forward_over_forward")}


@pytest.mark.parametrize("transform", EAGER)
@pytest.mark.parametrize("op", OPS)
def test_transforms_see_the_derivatives(op, transform):
    call, formula = OPS[op]
    if (op, transform) in ONCE:
        message = "third derivatives|forward mode of kernel_product"
        with pytest.raises((RuntimeError, NotImplementedError), match=message):
            EAGER[transform](call)
        return
    assert_the_same(EAGER[transform](call), EAGER[transform](formula))


@pytest.mark.parametrize("transform", TRACED)
@pytest.mark.parametrize("op", OPS)
def test_traced_transforms_see_the_derivatives(op, transform):
    call, formula = OPS[op]
    traced, eager = TRACED[transform]
    wanted = EAGER[eager](formula)
    wanted = wanted[0] if transform == "grad" else wanted[1] if transform == "linearize" else wanted
    assert_the_same(traced(call), wanted)


@pytest.mark.parametrize("op", OPS)
def test_a_batch_of_batches_of_mmd(op):
    if "mmd" not in op:
        pytest.skip("takes no batch")
    x, y = torch.stack((X, 2 * X)), torch.stack((Y, 2 * Y, 3 * Y))
    mapped = torch.vmap(lambda x: cgm_fast.mmd(x, y))(x)
    torch.testing.assert_close(mapped, torch.stack([cgm_fast.mmd(item, y) for item in x]))


@pytest.mark.parametrize("op", OPS)
def test_a_third_derivative_raises_under_transforms_too(op):
    call = OPS[op][0]

    def third(differentiate):
        return differentiate(lambda x: func.grad(lambda x: func.grad(call)(x, Y).sum())(x).sum())

    with pytest.raises(RuntimeError, match="third derivatives"):
        third(func.grad)(X[0])
    with pytest.raises(NotImplementedError, match="third derivatives"):
        third(func.jacfwd)(X[0])


def test_the_registered_op_itself_is_differentiable():
    x, y = leaf(X[0]), leaf(Y)
    n, m = len(x), len(y)
    relations = [n**-2.0, -1 / (n * m), -1 / (n * m), m**-2.0]
    problem = (x, y, None, None, None, [n, m], relations, [3.0], [1.0], "gaussian", True)
    wanted = (0, 0, False, False, False)
    loss, *_ = torch.ops.cgm_fast.mmd_fwd(*problem, *wanted, "auto")
    assert_the_same(
        torch.autograd.grad(loss, (x, y)), torch.autograd.grad(cgm_fast.mmd(x, y), (x, y))
    )


def test_a_gradient_in_the_noise_is_refused():
    with pytest.raises(ValueError, match="noise must not require a gradient"):
        cgm_fast.cgm_loss(X[0], Y, noise=leaf(NOISE))
    numbers = (0.1, 0.1, 1.0, 1.0, 1.0, 1.0, [3.0], [1.0], "gaussian", False, False, False)
    loss, *_ = torch.ops.cgm_fast.cgm_loss_fwd(X[0], Y, None, leaf(NOISE), *numbers, "auto")
    with pytest.raises(RuntimeError, match="no derivative in its constants"):
        loss.backward()
    with pytest.raises(NotImplementedError, match="no derivative in its constants"):
        func.jvp(lambda noise: cgm_fast.cgm_loss(X[0], Y, noise=noise).loss, (NOISE,), (NOISE,))


def test_labels_under_vmap_are_checked():
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\), got values from 1 to 5"):
        torch.vmap(lambda labels: cgm_fast.prototype_margin(X[0], Y, labels).loss)(
            torch.stack((LABELS + 1, LABELS + 1))
        )


@pytest.mark.parametrize("op", OPS)
def test_the_latents_and_the_loss_move_together(op):
    if op != "cgm_loss":
        pytest.skip("has no latents")

    def both(r):
        result = cgm_fast.cgm_loss(r, Y, LABELS, noise=NOISE, mmd_weight=1.0)
        return result.loss + (result.z * ALONG).sum()

    expected = func.grad(OPS[op][1])(X[0], Y) + ALONG
    assert_the_same(func.grad(both)(X[0]), expected)
    assert_the_same(func.jacfwd(both)(X[0]), expected)
