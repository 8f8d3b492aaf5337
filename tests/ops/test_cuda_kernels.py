"""What is particular to the CUDA C++ kernels: tensor cores, blocks' sizes, launches, workspace."""

import math

import pytest
import torch

import cgm_fast
from cgm_fast.ops import backends
from cgm_fast.testing import (
    assert_gradient_close,
    assert_loss_close,
    derivatives,
    mmd_formula,
    mmd_total,
    prototypes,
    relative_l2,
    sample_weights,
    samples,
)

if backends.availability()["cuda"] is not None:
    pytest.skip(f"cuda: {backends.availability()['cuda']}", allow_module_level=True)

from cgm_fast.ops.cgm_loss import cuda as cgm_loss
from cgm_fast.ops.cuda import launch
from cgm_fast.ops.kernel_product import cuda as product
from cgm_fast.ops.mmd import cuda as mmd
from cgm_fast.ops.mmd import reference
from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.ops.mmd.problem import NOTHING, Problem, Tangent, Wanted
from cgm_fast.ops.prototype_margin import cuda as margin


@pytest.fixture
def device(kernels_device):
    return kernels_device


@pytest.mark.parametrize(("op", "module"), [("mmd", mmd), ("prototype_margin", margin),
                                            ("cgm_loss", cgm_loss),
                                            ("kernel_product", product)])  # fmt: skip
def test_the_compiled_module_has_the_same_launches(op, module):
    assert tuple(launch.kernels().launches[op]["Launch"]) == module.Launch._fields


@pytest.fixture
def tensor_cores(monkeypatch):
    """They are used from 512 rows on, by 14 blocks that share the work."""
    monkeypatch.setattr(mmd, "multiprocessors", lambda device: 7)


@pytest.fixture
def allow(request):
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def errors(x, y, sigmas, **options):
    """Of the loss, over its terms' magnitudes, and of the gradient."""
    found = derivatives(
        lambda x, y: cgm_fast.mmd(x, y, bandwidth=list(sigmas), backend="cuda", **options),
        (x, y), order=1,
    )  # fmt: skip
    wide = [value.double() for value in (x, y)]
    options = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    wanted = derivatives(
        lambda x, y: mmd_formula(x, y, sigma=list(sigmas), **options), wide, order=1
    )
    magnitude = mmd_total(*wide, sigma=list(sigmas), **options)
    loss = float(((found[0].double() - wanted[0]).abs() / magnitude).max())
    return loss, relative_l2(torch.cat(found[1], -2), torch.cat(wanted[1], -2))


HIGHEST, HIGH = (1e-6, 1e-5), (2e-5, 5e-4)  # as in the op's README


@pytest.mark.parametrize("d", [5, 9, 16, 17, 32, 40, 64])
@pytest.mark.parametrize(("precision", "allowed"), [("highest", HIGHEST), ("high", HIGH)])
def test_tensor_cores_keep_what_the_precision_promises(
    d, precision, allowed, tensor_cores, allow, device
):
    allow(precision)
    x, y = samples(300, 290, d, device=device)
    assert mmd._workers(1, (300, 290), d, x.dtype, x.device) == 14
    loss, gradient = errors(x, y, [math.sqrt(d)])
    assert loss <= allowed[0]
    assert gradient <= allowed[1]


@pytest.mark.parametrize(
    ("how", "options", "allowed"),
    [
        ({"offset": 1e3}, {}, HIGHEST),
        ({"apart": 300.0}, {}, (1e-4, 1e-3)),
        ({"batch": 2}, {}, HIGHEST),
        ({}, {"estimator": "unbiased"}, HIGHEST),
        ({}, {"sigmas": [3.0, 6.0, 12.0]}, HIGHEST),
        ({}, {"x_weights": True}, HIGHEST),
    ],
    ids=["offset", "far_clusters", "batch", "unbiased", "bandwidths", "weights"],
)
def test_tensor_cores_with_every_option(how, options, allowed, tensor_cores, device):
    x, y = samples(300, 290, 20, device=device, **how)
    options = dict(options)
    if options.get("x_weights"):
        options["x_weights"] = sample_weights(300, device=device)
    assert mmd._workers(x.shape[0] if x.dim() == 3 else 1, (300, 290), 20, x.dtype, x.device)
    loss, gradient = errors(x, y, options.pop("sigmas", [5.0]), **options)
    assert loss <= allowed[0]
    assert gradient <= allowed[1]


def problem_of(x, sizes, sigma, **options):
    """The biased MMD² of the first two groups, or what the options make of it."""
    scales = [1 / size for size in sizes]
    relations = [a * b * (1 if i == j else -1) for i, a in enumerate(scales)
                 for j, b in enumerate(scales)]  # fmt: skip
    plain = Problem(x, None, None, None, None, tuple(sizes), tuple(relations), (sigma**2,), (1.0,),
                    "gaussian", False)  # fmt: skip
    return plain._replace(**options)


def of_op(x, y, sigma, begin=0, end=None):
    """Loss and gradient as the op has them, before the gradient is rounded to the inputs' dtype."""
    rows = len(x) + len(y)
    wanted = NOTHING._replace(row_begin=begin, row_end=rows if end is None else end)
    value = mmd.fwd(problem_of(x, (len(x), len(y)), sigma, y=y), wanted)
    return value.loss, value.z


@pytest.mark.parametrize("d", [9, 16, 27, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("offset", "allowed"), [(0.0, 1e-5), (3.0, 1e-5), (30.0, 5e-5)], ids=["0", "3", "30"]
)
def test_half_samples_on_tensor_cores(d, dtype, offset, allowed, tensor_cores, device):
    x, y = samples(300, 290, d, dtype=dtype, device=device, offset=offset)
    sigma = math.sqrt(d)
    loss, gradient = of_op(x, y, sigma)
    wide = x.double(), y.double()
    wanted = derivatives(lambda x, y: mmd_formula(x, y, sigma=[sigma]), wide, order=1)
    assert_loss_close(loss, wanted[0], mmd_total(*wide, sigma=[sigma]))
    assert_gradient_close(gradient, torch.cat(wanted[1]), allowed)


def _padded(z, numbers):
    """Rows that lie so many numbers farther apart than they are long."""
    return torch.nn.functional.pad(z, (0, numbers))[:, : z.shape[1]]


STORAGE = {
    "strided": lambda z: torch.stack((z, z), -1)[..., 0],
    "shifted": lambda z: torch.cat((z.new_zeros(1), z.flatten()))[1:].view(z.shape),
    "by features": lambda z: z.T.contiguous().T,
    "padded by 1": lambda z: _padded(z, 1),
    "padded by 8": lambda z: _padded(z, 8 - z.shape[1] % 8),
}
"""The same samples elsewhere: kernels copy them by 16 bytes, by 4, or number by number."""


def assert_storage_does_not_matter(x, y, of):
    found = of(x, y)
    for name, move in STORAGE.items():
        there = of(move(x), move(y))
        assert all(torch.equal(a, b) for a, b in zip(found, there, strict=True)), name


@pytest.mark.parametrize("d", [10, *(pytest.param(d, marks=pytest.mark.slow) for d in (24, 64))])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_storage_of_samples_on_tensor_cores(d, dtype, tensor_cores, device):
    x, y = samples(300, 290, d, dtype=dtype, device=device)
    assert_storage_does_not_matter(x, y, lambda x, y: of_op(x, y, 5.0))
    stacked = mmd.fwd(problem_of(torch.cat((x, y)), (300, 290), 5.0),
                      NOTHING._replace(row_end=590))[:2]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(of_op(x, y, 5.0), stacked, strict=True))


@pytest.mark.parametrize(
    ("dtype", "d"),
    [(torch.float32, d) for d in (1, 3, 4, 6, 8, 9, 10, 13, 16, 30, 32, 64, 65, 68)]
    + [(torch.float16, 7), (torch.bfloat16, 10), (torch.float16, 70), (torch.float64, 3),
       (torch.float64, 16), (torch.float64, 33)],
)  # fmt: skip
def test_storage_of_samples(dtype, d, device):
    x, y = samples(45, 38, d, dtype=dtype, device=device)
    assert_storage_does_not_matter(x, y, lambda x, y: of_op(x, y, 2.0))


@pytest.mark.parametrize(("dtype", "d"), [(torch.float32, 10), (torch.float32, 36),
                                          (torch.float16, 34), (torch.float64, 5)])  # fmt: skip
def test_storage_of_samples_for_other_passes(dtype, d, device):
    x, y = samples(35, 33, d, dtype=dtype, device=device)
    tangent = Tangent(torch.ones(68, d, dtype=mmd.compute_like(x)[0], device=device), None, None,
                      None)  # fmt: skip
    v = torch.linspace(-1, 1, 33, device=device, dtype=dtype)

    def of(x, y):
        problem = problem_of(x, (35, 33), 2.0, y=y, kernel="imq")
        wanted = NOTHING._replace(row_end=68)
        return (mmd.fwd(problem, wanted).z, mmd.hvp(problem, tangent, wanted).z,
                cgm_fast.kernel_product(x, y, v, backend="cuda"))  # fmt: skip

    assert_storage_does_not_matter(x, y, of)


@pytest.mark.parametrize("workers", [1, 3, 10, 41, 45])
@pytest.mark.parametrize("batch", [None, 3])
def test_any_number_of_blocks_may_share_the_work(workers, batch, monkeypatch, device):
    x, y = samples(300, 200, 40, batch=batch, device=device)  # five blocks of rows, 9 tiles
    monkeypatch.setattr(mmd, "_workers", lambda *_: workers)
    found = derivatives(lambda x, y: cgm_fast.mmd(x, y, bandwidth=6.0, backend="cuda").sum(),
                        (x, y), order=1)  # fmt: skip
    wide = x.double(), y.double()
    wanted = derivatives(lambda x, y: mmd_formula(x, y, sigma=[6.0]).sum(), wide, order=1)
    assert_loss_close(found[0], wanted[0], mmd_total(*wide, sigma=[6.0]).sum())
    assert_gradient_close(torch.cat(found[1], -2), torch.cat(wanted[1], -2))
    counted = launch.counters((batch or 1) + workers, x.device)
    assert not counted.any()


def test_rows_whose_gradient_nobody_wants(tensor_cores, device):
    x, y = samples(300, 290, 12, device=device)
    whole = of_op(x, y, 3.0)[1]
    for begin, end in ((0, 300), (300, 590), (130, 131)):
        assert torch.equal(of_op(x, y, 3.0, begin, end)[1], whole[begin:end])


def test_a_row_far_from_the_others_on_tensor_cores(tensor_cores, device):
    x, y = samples(300, 290, 20, device=device)
    x[77] += 40.0  # some 8 bandwidths
    loss, gradient = errors(x, y, [5.0])
    assert loss <= HIGHEST[0]
    assert gradient <= HIGHEST[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number_reaches_the_loss(bad, tensor_cores, device):
    x, y = samples(300, 290, 20, device=device)
    x[5, 3] = bad
    assert cgm_fast.mmd(x, y, backend="cuda").isnan()


def test_identical_samples_on_tensor_cores(tensor_cores, device):
    x, _ = samples(300, 1, 20, device=device)
    x.requires_grad_()
    loss = cgm_fast.mmd(x, x.detach().clone(), bandwidth=5.0, backend="cuda")
    magnitude = mmd_total(x.detach(), x.detach(), sigma=[5.0])
    assert_loss_close(loss.detach(), torch.zeros_like(magnitude), magnitude)


@pytest.mark.parametrize("rows", [4, 8, 16, 32])
@pytest.mark.parametrize("d", [3, 10, 64])
def test_blocks_of_any_number_of_rows_agree(rows, d, monkeypatch, device):
    x, y = samples(150, 120, d, device=device)
    sigma = math.sqrt(d)
    wanted = derivatives(lambda x, y: mmd_formula(x, y, sigma=[sigma]),
                         (x.double(), y.double()), order=1)  # fmt: skip
    monkeypatch.setattr(mmd, "rows_of_block", lambda *_: rows)
    found = derivatives(lambda x, y: cgm_fast.mmd(x, y, backend="cuda"), (x, y), order=1)
    assert_loss_close(found[0], wanted[0], mmd_total(x, y, sigma=[sigma]))
    assert_gradient_close(torch.cat(found[1]), torch.cat(wanted[1]))


def symmetric(*shape, device):
    """A relation of groups, of either sign."""
    values = torch.randn(*shape, shape[-1], dtype=torch.float64).to(device)
    return values + values.mT


def problem_with(sizes, d, batch=None, dtype=torch.float32, options=True, device="cpu", **others):
    """Rows in groups with a relation of their own; options: weights, and bandwidths as tensors."""
    shape = (batch,) if batch else ()
    z = torch.randn(*shape, sum(sizes), d, dtype=dtype).to(device)
    variances = (0.5 * d, 2.0 * d)
    problem = problem_of(z, sizes, 1.0, relation=symmetric(*shape, len(sizes), device=device),
                         variances=variances[:1])  # fmt: skip
    if options:
        weights = torch.rand(*shape, sum(sizes), dtype=dtype).to(device) + 0.5
        variance = torch.tensor(variances, dtype=dtype, device=device).expand(*shape, 2)
        problem = problem._replace(
            weights=weights, variance=variance.contiguous(), variances=variances,
            kernel_weights=(0.5, 0.5),
        )  # fmt: skip
    return problem._replace(**others)


def wide(record):
    """The same in float64."""
    return type(record)(*(v.double() if isinstance(v, torch.Tensor) else v for v in record))


def assert_value_close(problem, allowed, wanted=None):
    """Value, block sums and gradients, against the reference in float64."""
    if wanted is None:
        given = problem.weights is not None
        wanted = Wanted(0, problem.x.shape[-2], given, True, given)
    found, expected = mmd.fwd(problem, wanted), reference.fwd(wide(problem), wanted)
    # Nothing is to be lost but what terms of either sign lose.
    sizes = reference.fwd(wide(problem._replace(relation=problem.relation.abs())), wanted).loss
    assert ((found.loss - expected.loss).abs() <= allowed * sizes.abs()).all()
    assert ((found.relation - expected.relation).abs() <= allowed * expected.relation.abs()).all()
    assert torch.equal(found.relation, found.relation.mT)
    for name in ("z", "weights", "variance"):
        got, right = getattr(found, name), getattr(expected, name)
        assert (got is None) == (right is None)
        if got is not None:
            assert relative_l2(got, right) <= 10 * allowed, name


GROUPS = [(45,), (30, 21), (40, 1, 33), (9, 1, 2, 33, 4, 1, 17)]
ALLOWED = {torch.float32: 1e-6, torch.float64: 1e-14}


@pytest.mark.parametrize("sizes", GROUPS, ids=len)
@pytest.mark.parametrize("d", [3, 10, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [False, True])
def test_any_number_of_groups(sizes, d, dtype, options, device):
    problem = problem_with(sizes, d, dtype=dtype, options=options, device=device)
    assert_value_close(problem, ALLOWED[dtype])


@pytest.mark.parametrize("d", [10, 70])
def test_groups_of_a_batch_with_relations_of_their_own(d, device):
    assert_value_close(problem_with((17, 1, 20), d, batch=3, device=device), 1e-6)


@pytest.mark.parametrize(
    "sizes", [(600,), (300, 290), (130, 1, 261, 128), (9, 1, 2, 333, 4, 70, 1)], ids=len
)
@pytest.mark.parametrize("workers", [1, 5, 14, 23])
@pytest.mark.parametrize("options", [False, True])
def test_groups_on_tensor_cores(sizes, workers, options, monkeypatch, device):
    monkeypatch.setattr(mmd, "_workers", lambda *_: workers)
    problem = problem_with(sizes, 24, options=options, device=device)
    wanted = Wanted(0, sum(sizes), options, True, False)
    assert_value_close(problem, 1e-6, wanted)
    assert not launch.counters(1 + workers, problem.x.device).any()


def test_groups_of_a_batch_on_tensor_cores(monkeypatch, device):
    monkeypatch.setattr(mmd, "_workers", lambda *_: 7)
    problem = problem_with((130, 1, 50), 40, batch=2, device=device)
    assert_value_close(problem, 1e-6, Wanted(0, 181, True, True, False))


@pytest.mark.parametrize("d", [5, 70])
@pytest.mark.parametrize("n", [20, 30, 31])
def test_groups_in_two_tensors(n, d, device):
    """Whether or not a group has rows in both."""
    problem = problem_with((30, 1, 20), d, batch=2, device=device)
    z = problem.x
    two = problem._replace(x=z[:, :n], y=z[:, n:].transpose(0, 1).contiguous().transpose(0, 1))
    wanted = Wanted(0, 51, True, True, True)
    for found, right in zip(mmd.fwd(two, wanted), mmd.fwd(problem, wanted), strict=True):
        assert torch.equal(found, right)


def test_more_pairs_of_groups_than_threads(device):
    sizes = tuple(1 + i % 3 for i in range(24))
    assert_value_close(problem_with(sizes, 5, device=device), 1e-6)


@pytest.mark.parametrize("d", [5, 20, 70])
def test_block_sums_of_a_narrow_kernel(d, monkeypatch, device):
    """Far pairs alone: each sum has the accuracy of k, and no rounding of k - 1."""
    sizes = (60, 70)
    if d == 20:
        monkeypatch.setattr(mmd, "_workers", lambda *_: 3)
    problem = problem_with(sizes, d, options=False, device=device, variances=(0.02 * d,))
    found = mmd.fwd(problem, NOTHING._replace(relation=True)).relation
    expected = reference.fwd(wide(problem), NOTHING._replace(relation=True)).relation
    pairs = torch.tensor([[60 * 59, 60 * 70], [60 * 70, 70 * 69]], device=found.device)
    assert relative_l2(found + pairs, expected + pairs) <= 1e-4


@pytest.mark.parametrize("sizes", GROUPS, ids=len)
@pytest.mark.parametrize("options", [False, True])
def test_products_with_the_hessian_of_groups(sizes, options, device):
    problem = problem_with(sizes, 10, options=options, device=device)
    direction = Tangent(
        torch.randn_like(problem.x),
        torch.randn_like(problem.weights) if options else None,
        symmetric(len(sizes), device=device) if options else None,
        torch.randn_like(problem.variance) if options else None,
    )
    wanted = Wanted(0, sum(sizes), True, True, True)
    found = mmd.hvp(problem, direction, wanted)
    expected = reference.hvp(wide(problem), wide(direction), wanted)
    for name, got, right in zip(found._fields, found, expected, strict=True):
        assert relative_l2(got, right) <= 1e-5, name


OTHERS = [name for name in FAMILIES if name != "gaussian"]
SMOOTH = [name for name in OTHERS if FAMILIES[name].order == 2]


@pytest.mark.parametrize("kernel", OTHERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [False, True])
def test_families_of_kernels(kernel, dtype, options, device):
    problem = problem_with((30, 1, 20), 4, dtype=dtype, options=options, device=device,
                           kernel=kernel)  # fmt: skip
    problem.x[5] = problem.x[3]  # rows that coincide, of one group and of two
    problem.x[40] = problem.x[3]
    assert_value_close(problem, ALLOWED[dtype])


@pytest.mark.parametrize("kernel", OTHERS)
@pytest.mark.parametrize("size", [1e-4, 0.05, 30.0, 1e6])
def test_families_near_and_far(kernel, size, device):
    """Where terms of φ - φ(0) cancel, and where φ has vanished."""
    problem = problem_with((30, 20), 4, options=False, device=device, kernel=kernel)
    problem = problem._replace(x=problem.x * size, relation=problem.relation.abs())
    assert_value_close(problem, 1e-6)


@pytest.mark.parametrize("kernel", SMOOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_with_the_hessian_of_families(kernel, dtype, device):
    problem = problem_with((30, 1, 20), 4, dtype=dtype, device=device, kernel=kernel)
    problem.x[40] = problem.x[3]
    direction = Tangent(
        torch.randn_like(problem.x), torch.randn_like(problem.weights),
        symmetric(3, device=device), torch.randn_like(problem.variance),
    )  # fmt: skip
    wanted = Wanted(0, 51, True, True, True)
    found = mmd.hvp(problem, direction, wanted)
    expected = reference.hvp(wide(problem), wide(direction), wanted)
    for name, got, right in zip(found._fields, found, expected, strict=True):
        assert relative_l2(got, right) <= 10 * ALLOWED[dtype], name


@pytest.mark.parametrize("kernel", [name for name in OTHERS if name not in SMOOTH])
def test_a_kernel_with_a_kink_has_no_hessian(kernel, device):
    problem = problem_with((3, 2), 4, device=device, kernel=kernel)
    direction = Tangent(torch.randn_like(problem.x), None, None, None)
    with pytest.raises(ValueError, match="no second derivative"):
        mmd.hvp(problem, direction, Wanted(0, 5, False, False, False))


@pytest.mark.parametrize("kernel", ["gaussian", "energy"])
def test_what_is_not_a_number_reaches_the_block_sums(kernel, device):
    problem = problem_with((20, 10, 15), 4, device=device, kernel=kernel)
    problem.x[22, 1] = math.nan
    value = mmd.fwd(problem, NOTHING._replace(relation=True))
    met = torch.tensor([False, True, False], device=value.loss.device)
    assert value.loss.isnan()
    assert torch.equal(value.relation.isnan(), met[:, None] | met)


@pytest.mark.parametrize("d", [3, 7, 30, 70])
@pytest.mark.parametrize("kernel", ["gaussian", "imq"])
def test_rows_that_a_block_has_room_for_count_for_nothing(d, kernel, device):
    """Wherever the others are: places hold zeros, or what comes of these far from a centre."""
    wanted = Wanted(0, 3, False, True, False)
    for seed in range(60):
        rows = torch.cat(samples(2, 1, d, device=device, seed=seed)) + 100.0
        problem = problem_of(rows, (2, 1), 2.0, kernel=kernel)
        found, expected = mmd.fwd(problem, wanted), reference.fwd(wide(problem), wanted)
        assert relative_l2(found.relation, expected.relation) <= 1e-4, seed
        assert relative_l2(found.z, expected.z) <= 1e-3, seed


def test_counters_are_left_at_zero(device):
    x, y = samples(60, 50, 3, batch=3, device=device)
    cgm_fast.mmd(x, y, backend="cuda")
    r, g, _ = prototypes(60, 5, 3, device=device)
    cgm_fast.prototype_margin(r, g, backend="cuda")
    cgm_fast.cgm_loss(r, g, backend="cuda")
    found = launch.counters(3, r.device)
    assert found.shape[0] >= 3
    assert not found.any()


def test_captured_calls_have_counters_of_their_own(monkeypatch):
    device = torch.device("cpu")
    eager = launch.counters(2, device)
    assert launch.counters(1, device).data_ptr() == eager.data_ptr()
    monkeypatch.setattr(launch, "capturing", lambda device: True)
    captured = [launch.counters(2, device) for _ in range(3)]
    addresses = {value.data_ptr() for value in (eager, *captured)}
    assert len(addresses) == 4
    assert not any(value.any() for value in captured)
    monkeypatch.setitem(launch._next, device, launch._POOL - 1)
    assert not launch.counters(2, device).any()  # a fresh one where none are left
