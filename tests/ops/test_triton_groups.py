"""Triton: groups, their relation and the families, against the reference in float64."""

import pytest
import torch

from cgm_fast.ops import backends
from cgm_fast.ops.cgm_loss import problem as of_cgm
from cgm_fast.ops.cgm_loss import reference as cgm_reference
from cgm_fast.ops.mmd import reference
from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.ops.mmd.problem import Problem, Tangent, Wanted, stacked
from cgm_fast.testing import (
    GRADIENT_TOLERANCE,
    LOSS_TOLERANCE,
    assert_gradient_close,
    assert_loss_close,
)

if backends.availability()["triton"] is not None:
    pytest.skip(backends.availability()["triton"], allow_module_level=True)

from cgm_fast.ops.cgm_loss import triton as cgm_loss
from cgm_fast.ops.mmd import triton as mmd
from cgm_fast.ops.triton import pack
from cgm_fast.ops.triton.tiles import Blocks

pytestmark = pytest.mark.usefixtures("tensor_cores")

# Of matern12, which is laplacian by another name, one test is enough.
KERNELS = [name for name in FAMILIES if name != "matern12"]
# All but those that have a kink have second derivatives.
SMOOTH = [name for name in KERNELS if FAMILIES[name].order == 2]
WIDTHS = (torch.float16, torch.float64)


@pytest.fixture
def device(kernels_device):
    return kernels_device


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def symmetric(*shape):
    half = drawn(*shape)
    return half + half.mT


def problem_of(sizes, d=5, *, given=True, batch=1, kernel="gaussian", scales=1, alike=True):
    """In float32, with weights, relation and variance where they are `given`; with a batch."""
    groups, rows = len(sizes), sum(sizes)
    z = drawn(batch, rows, d).float()
    x, y = (z, None) if groups != 2 else z.split(sizes, 1)
    constant = symmetric(groups, groups).flatten().tolist()
    tensors = (None, None, None)
    if given:
        h = d * (0.2 + torch.rand(batch, scales))
        tensors = (torch.rand(batch, rows) + 0.2, symmetric(batch, groups, groups), h)
    weights = [1.0 / scales] * scales if alike else [0.5 + s for s in range(scales)]
    variances = tuple(d * (0.3 + 0.7 * s) for s in range(scales))
    return Problem(
        x, y, *tensors, tuple(sizes), tuple(constant), variances, tuple(weights), kernel, False
    )


def moved(record, device, dtype=None):
    """Its tensors elsewhere."""
    return record._replace(
        **{
            name: value.to(device, dtype)
            for name, value in record._asdict().items()
            if isinstance(value, torch.Tensor)
        }
    )


def magnitudes(problem):
    """Of pairs of groups, sums of |w_i w_j| min(|k - k(0)|, |k| max(1, t)), [b, G, G]; and of the
    loss."""
    z = stacked(problem).double()
    b, rows, _ = z.shape
    w = torch.ones(b, rows) if problem.weights is None else problem.weights
    h = torch.tensor(problem.variances) if problem.variance is None else problem.variance
    h = h.double().expand(b, -1)
    u = (z[:, :, None] - z[:, None]).square().sum(-1)
    family, size = FAMILIES[problem.kernel], 0.0
    for s, weight in enumerate(problem.kernel_weights):
        t = u / (2 * h[:, s, None, None])
        less, whole = family.radial(t, 1)[:2]
        part = less.abs()
        if family.vanishes and len(set(problem.kernel_weights)) == 1:
            part = torch.minimum(part, whole.abs() * t.clamp_min(1))
        size = size + weight * part
    size = size * (w[:, :, None] * w[:, None]).abs().double()
    of_rows = torch.stack([part.sum(1) for part in size.split(problem.sizes, 1)], 1)
    of_groups = torch.stack([part.sum(2) for part in of_rows.split(problem.sizes, 2)], 2)
    groups = len(problem.sizes)
    relation = problem.relation
    if relation is None:
        relation = torch.tensor(problem.relations, dtype=torch.float64).view(1, groups, groups)
    return of_groups, (relation.abs() * of_groups).sum((-2, -1))


def assert_values(problem, wanted, device):
    found = moved(mmd.fwd(moved(problem, device), wanted), "cpu")
    truth = reference.fwd(moved(problem, "cpu", torch.float64), wanted)
    of_groups, of_loss = magnitudes(problem)
    assert_loss_close(found.loss, truth.loss, of_loss, LOSS_TOLERANCE)
    if wanted.relation:
        assert_loss_close(found.relation, truth.relation, of_groups, LOSS_TOLERANCE)
    assert_close(found._replace(relation=None), truth._replace(relation=None))


def assert_close(found, truth):
    """Derivatives, and those that are not wanted."""
    for value, wide in zip(found[-4:], truth[-4:], strict=True):
        assert (value is None) == (wide is None)
        if value is not None:
            assert_gradient_close(value, wide, GRADIENT_TOLERANCE)


def assert_products(problem, wanted, device):
    (b, _, d), rows, groups = problem.x.shape, sum(problem.sizes), len(problem.sizes)
    scales = len(problem.kernel_weights)
    tangent = Tangent(
        drawn(b, rows, d).float(),
        drawn(b, rows).float() if wanted.weights else None,
        symmetric(b, groups, groups),
        drawn(b, scales).float() if wanted.variance else None,
    )
    found = mmd.hvp(moved(problem, device), moved(tangent, device), wanted)
    truth = reference.hvp(
        moved(problem, "cpu", torch.float64), moved(tangent, "cpu", torch.float64), wanted
    )
    assert_close(moved(found, "cpu"), truth)


GROUPS = [(9,), (30, 20), (1, 1), (20, 1, 70), (3, 1, 9, 40, 2, 5, 70)]


@pytest.mark.parametrize("given", [False, True], ids=["constants", "tensors"])
def test_groups_in_splits_and_turns_of_wide_rows(given, device, monkeypatch):
    """What large problems do: several splits a group, sums of each in turns, features in parts."""
    monkeypatch.setattr(mmd, "_TURN", 64)
    monkeypatch.setattr(mmd, "parallel", lambda *_: 5)
    problem = problem_of((150, 1, 90), 70, given=given)
    wanted = Wanted(0, 241, given, True, given)
    assert_values(problem, wanted, device)
    assert_products(problem, wanted, device)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_family_counts_near_pairs(kernel, device):
    """Rows that weigh 1, in clusters: some pairs near, others far."""
    problem = problem_of((20, 31), kernel=kernel, given=False)
    for z in problem[:2]:
        z[:, ::3] += 4
    assert_values(problem, Wanted(0, 51, False, True, False), device)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_that_weigh_unlike(kernel, device):
    problem = problem_of((20, 31), kernel=kernel, scales=2, alike=False)
    assert_values(problem, Wanted(0, 51, True, True, True), device)


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        *((kernel, torch.float32) for kernel in KERNELS),
        *((kernel, dtype) for kernel in ("laplacian", "imq") for dtype in WIDTHS),
    ],
)
def test_rows_that_coincide_have_no_slope(kernel, dtype, device):
    """Off the origin, within a group and across: by products they would be at some distance."""
    problem = problem_of((20, 31), kernel=kernel, given=False)
    x, y = (z + 3 for z in problem[:2])
    y[:, 10:20], x[:, 10:15] = x[:, :10], x[:, :5]
    problem = problem._replace(x=x.to(dtype), y=y.to(dtype))
    assert_values(problem, Wanted(0, 51, False, True, False), device)
    same = problem._replace(x=x[:, :1].expand(x.shape), y=x[:, :1].expand(y.shape))
    value = mmd.fwd(moved(same, device), Wanted(0, 51, False, True, False))
    if kernel not in SMOOTH:
        assert not value.z.any()
        assert not value.loss.any()
    assert value.z.isfinite().all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_very_far_apart_leave_numbers(kernel, device):
    problem = problem_of((20, 31), kernel=kernel, given=False)
    problem.x[:, 0] = 1e12
    problem = problem._replace(variances=(1e-4,))
    value = mmd.fwd(moved(problem, device), Wanted(0, 51, False, True, True))
    assert all(part.isfinite().all() for part in value if part is not None)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_nan_stays_one(kernel, device):
    problem = problem_of((20, 31), kernel=kernel, given=False)
    problem.x[0, 7, 2] = float("nan")
    value = mmd.fwd(moved(problem, device), Wanted(0, 51, False, True, False))
    assert value.loss.isnan().all()
    assert value.z[0, 7].isnan().all()


@pytest.mark.parametrize("sizes", [*GROUPS, (128,), (129, 64, 1)], ids=str)
@pytest.mark.parametrize("wanted", [1, 4, 100])
def test_where_rows_and_splits_lie(sizes, wanted):
    blocks = Blocks(64, 32, 16, 16, 4, 1)
    layout = pack.layout_of(sizes, blocks)
    splits = pack.splits_of(layout, blocks.columns, wanted)
    of_rows = [group for group, size in enumerate(sizes) for _ in range(size)]
    at = [layout.packed(row) for row in range(sum(sizes))]
    assert torch.tensor(at).equal(layout.positions(torch.device("cpu")))
    tiles = torch.tensor(layout.tiles).view(-1, 3)
    for row, place in enumerate(at):
        group, first, count = tiles[place // layout.unit].tolist()
        assert (group, first + place % layout.unit) == (of_rows[row], row)
        assert place % layout.unit < count
    assert int(tiles[:, 2].sum()) == sum(sizes)
    bounds = torch.tensor(splits.bounds).view(-1, 2)
    begins, of_splits = blocks.columns * bounds[:, 0], bounds[:-1, 1]
    assert begins[0] == 0
    assert begins[-1] == layout.total
    for split, group in enumerate(of_splits.tolist()):
        assert layout.begins[group] <= begins[split] < begins[split + 1] <= layout.begins[group + 1]
    assert splits.total == len(of_splits) <= max(wanted, len(sizes)) + len(sizes)
    first = torch.tensor(splits.groups).view(-1, 2)
    assert torch.equal(first[:, 0] * layout.unit, torch.tensor(layout.begins))
    for group, some in enumerate(splits.of_groups()):
        assert (of_splits == group).nonzero().flatten().tolist() == list(
            range(int(first[group, 1]), int(first[group, 1]) + some)
        )


def test_packed_beyond_the_last_row():
    with pytest.raises(IndexError):
        pack.layout_of((3, 4), Blocks(64, 32, 16, 16, 4, 1)).packed(7)


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian"])
def test_cgm_loss_takes_every_family(kernel, device):
    r, g, noise = drawn(40, 5).float(), drawn(6, 5).float(), drawn(2, 40, 5).float()
    problem = of_cgm.Problem(
        r, g, None, noise, 0.1, 0.2, 1000.0, 1.0, 1.0, 1.0, (2.0,), (1.0,), kernel, False
    )
    wanted = of_cgm.Wanted(True, True)
    found = moved(cgm_loss.fwd(moved(problem, device), wanted), "cpu")
    truth = cgm_reference.fwd(moved(problem, "cpu", torch.float64), wanted)
    assert torch.equal(found.assignment, truth.assignment)
    assert torch.allclose(found.terms.double(), truth.terms, rtol=1e-5)
    for value, wide in zip((found.r, found.g), (truth.r, truth.g), strict=True):
        assert_gradient_close(value, wide, GRADIENT_TOLERANCE)
