"""Any number of groups of rows and a relation of them: L, the block sums, and all derivatives."""

import importlib

import pytest
import torch

from cgm_fast.ops.mmd.problem import Problem, Tangent, Wanted

wide = torch.float64
SIZES = {
    "one": (7,),
    "two": (20, 33),
    "three": (1, 40, 5),
    "seven": (3, 1, 17, 30, 2, 2, 9),
}  # fmt: skip


def problem_of(sizes, *, given, split, batch=(), d=5, seed=0):
    """Groups with a relation; `given`: weights, relation and bandwidths as tensors."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*batch, *shape, generator=generator, dtype=wide)

    rows, groups = sum(sizes), len(sizes)
    z = random(rows, d)
    z, y = z.split((split, rows - split), -2) if split else (z, None)
    table = random(groups, groups)
    table = (table + table.mT) / 2
    numbers = tuple((table if not batch else table[0]).flatten().tolist())
    weights = random(rows).square() + 0.1 if given else None
    variance = random(2).square() + 1 if given else None
    kernel_weights = (0.5, 0.5) if given else (1.0,)
    return Problem(
        z, y, weights, table if given else None, variance,
        sizes, numbers, (2.0,), kernel_weights, "gaussian", False,
    )  # fmt: skip


def inputs_of(problem):
    return [v for v in problem[:5] if v is not None]


def exact(problem, *tensors):
    """L of one item, from all pairs in float64; the block sums."""
    x, y, weights, relation, variance = _filled(problem, tensors)
    z = x if y is None else torch.cat((x, y), -2)
    groups = torch.repeat_interleave(torch.arange(len(problem.sizes)), torch.tensor(problem.sizes))
    if relation is None:
        relation = torch.tensor(problem.relations, dtype=wide).view(len(problem.sizes), -1)
    squares = (z[:, None] - z).square().sum(-1)
    variances = torch.tensor(problem.variances, dtype=wide) if variance is None else variance
    of_scales = zip(variances, problem.kernel_weights, strict=True)
    less = sum(weight * torch.expm1(-squares / (2 * h)) for h, weight in of_scales)
    w = torch.ones(len(z), dtype=wide) if weights is None else weights
    pairs = w[:, None] * w * less
    blocks = torch.zeros(len(z), len(problem.sizes), dtype=wide)
    member = blocks.scatter(1, groups[:, None], 1.0)
    sums = member.T @ pairs @ member
    return (relation * sums).sum(), sums


def _filled(problem, tensors):
    given = iter(tensors)
    return [None if v is None else next(given) for v in problem[:5]]


def close(found, truth, tolerance=2e-5):
    error = torch.linalg.vector_norm(found.cpu().double() - truth)
    assert error <= tolerance * torch.linalg.vector_norm(truth) + 1e-12


def on(problem, device, dtype=torch.float32):
    """As an implementation gets it."""
    x, y, weights, relation, variance = problem[:5]
    tensors = [None if v is None else v.to(device, dtype) for v in (x, y, weights)]
    relation = None if relation is None else relation.to(device)
    variance = None if variance is None else variance.to(device, dtype)
    return Problem(*tensors, relation, variance, *problem[5:])


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("given", [False, True], ids=["numbers", "tensors"])
@pytest.mark.parametrize("sizes", SIZES)
def test_value_and_derivatives(sizes, given, backend, device):
    sizes = SIZES[sizes]
    rows = sum(sizes)
    problem = problem_of(sizes, given=given, split=rows // 3)
    leaves = [v.clone().requires_grad_() for v in inputs_of(problem)]
    loss, sums = exact(problem, *leaves)
    gradient = torch.autograd.grad(loss, leaves)
    of_z = torch.cat(gradient[:2])
    implementation = importlib.import_module(f"cgm_fast.ops.mmd.{backend}")
    value = implementation.fwd(on(problem, device), Wanted(0, rows, given, True, given))
    scale = (sums.detach().abs() * (problem.relation if given else 1)).abs().sum()
    assert abs(value.loss.item() - loss.item()) <= 1e-5 * scale
    assert value.relation.dtype == wide
    close(value.relation, sums.detach())
    close(value.z, of_z)
    if given:
        of_weights, of_relation, of_variance = gradient[2:]
        close(value.weights, of_weights)
        close(value.relation, of_relation)
        close(value.variance, of_variance)
    else:
        assert value.weights is None
        assert value.variance is None


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("sizes", SIZES)
def test_the_hessian_vector_product(sizes, backend, device):
    sizes = SIZES[sizes]
    rows, groups = sum(sizes), len(sizes)
    problem = problem_of(sizes, given=True, split=0)
    leaves = [v.clone().requires_grad_() for v in inputs_of(problem)]
    gradient = torch.autograd.grad(exact(problem, *leaves)[0], leaves, create_graph=True)
    generator = torch.Generator().manual_seed(9)
    tangent = [torch.randn(v.shape, generator=generator, dtype=wide) for v in leaves]
    tangent[2] = (tangent[2] + tangent[2].mT) / 2
    along = sum((g * t).sum() for g, t in zip(gradient, tangent, strict=True))
    truth = torch.autograd.grad(along, leaves)
    implementation = importlib.import_module(f"cgm_fast.ops.mmd.{backend}")
    z, weights, relation, variance = (
        t.to(device, wide if t.shape == (groups, groups) else torch.float32) for t in tangent
    )
    product = implementation.hvp(
        on(problem, device),
        Tangent(z, weights, relation, variance),
        Wanted(0, rows, True, True, True),
    )
    for found, exact_one in zip(product, truth, strict=True):
        close(found, exact_one, 1e-4)


@pytest.mark.slow_interpreted
def test_items_of_a_batch_have_relations_of_their_own(backend, device):
    sizes = (11, 6, 20)
    problem = problem_of(sizes, given=True, split=9, batch=(3,))
    implementation = importlib.import_module(f"cgm_fast.ops.mmd.{backend}")
    wanted = Wanted(9, 37, True, True, True)
    value = implementation.fwd(on(problem, device), wanted)
    for i in range(3):
        one = Problem(*(v[i] for v in problem[:5]), *problem[5:])
        expected = importlib.import_module("cgm_fast.ops.mmd.reference").fwd(one, wanted)
        for found, truth in zip(value, expected, strict=True):
            close(found[i], truth.double())


@pytest.mark.parametrize(("begin", "end"), [(0, 20), (20, 53), (13, 40)])
def test_only_some_rows_are_wanted(begin, end, backend, device):
    problem = problem_of((20, 33), given=False, split=20)
    implementation = importlib.import_module(f"cgm_fast.ops.mmd.{backend}")
    whole = implementation.fwd(on(problem, device), Wanted(0, 53, False, False, False))
    some = implementation.fwd(on(problem, device), Wanted(begin, end, False, False, False))
    close(some.z, whole.z[begin:end].cpu().double(), 1e-6)
    none = implementation.fwd(on(problem, device), Wanted(0, 0, False, False, False))
    assert none.z is None
    close(none.loss, whole.loss.cpu().double(), 1e-6)
