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
from cgm_fast.ops.mmd import cuda as mmd
from cgm_fast.ops.prototype_margin import cuda as margin


@pytest.fixture
def device(kernels_device):
    return kernels_device


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


@pytest.mark.parametrize("d", [9, 16, 17, 32, 40, 64])
@pytest.mark.parametrize(("precision", "allowed"), [("highest", HIGHEST), ("high", HIGH)])
def test_tensor_cores_keep_what_the_precision_promises(
    d, precision, allowed, tensor_cores, allow, device
):
    allow(precision)
    x, y = samples(300, 290, d, device=device)
    assert mmd._workers(1, 300, 290, d, x.dtype, x.device) == 14
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
    assert mmd._workers(x.shape[0] if x.dim() == 3 else 1, 300, 290, 20, x.dtype, x.device)
    loss, gradient = errors(x, y, options.pop("sigmas", [5.0]), **options)
    assert loss <= allowed[0]
    assert gradient <= allowed[1]


def of_op(x, y, sigma):
    """Loss and gradient as the op has them, before the gradient is rounded to the inputs' dtype."""
    n, m = len(x), len(y)
    given = (None, None, None, None, [sigma**2], [1.0], 1 / n, 1 / m, 1.0, 0, n + m, False, False)
    return mmd.mmd_fwd(x, y, *given)[:2]


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_samples_of_any_layout(dtype, tensor_cores, device):
    x, y = samples(300, 290, 24, dtype=dtype, device=device)
    found = of_op(x, y, 5.0)
    strided = [torch.stack((z, z), -1)[..., 0] for z in (x, y)]
    shifted = [torch.cat((z.new_zeros(1), z.flatten()))[1:].view(z.shape) for z in (x, y)]
    for moved in (strided, shifted):
        assert all(torch.equal(a, b) for a, b in zip(found, of_op(*moved, 5.0), strict=True))


def test_half_samples_of_two_dtypes(tensor_cores, device):
    x, y = samples(300, 290, 20, device=device)
    x, y = x.half(), y.bfloat16()
    loss, _ = of_op(x, y, 5.0)
    wide = x.double(), y.double()
    assert_loss_close(loss, mmd_formula(*wide, sigma=[5.0]), mmd_total(*wide, sigma=[5.0]))


@pytest.mark.parametrize("workers", [1, 3, 10, 41, 68])
@pytest.mark.parametrize("batch", [None, 3])
def test_any_number_of_blocks_may_share_the_work(workers, batch, monkeypatch, device):
    x, y = samples(300, 200, 40, batch=batch, device=device)  # four blocks of rows, 17 tiles
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
    given = (None, None, None, None, [9.0], [1.0], 1 / 300, 1 / 290, 1.0)
    for begin, end in ((0, 300), (300, 590), (130, 131)):
        _, part, *_ = mmd.mmd_fwd(x, y, *given, begin, end, False, False)
        assert torch.equal(part, whole[begin:end])


def test_a_row_far_from_the_others_on_tensor_cores(tensor_cores, device):
    x, y = samples(300, 290, 20, device=device)
    x[77] += 40.0  # some 8 bandwidths
    loss, gradient = errors(x, y, [5.0])
    assert loss <= HIGHEST[0]
    assert gradient <= HIGHEST[1]


def test_copies_by_sixteen_bytes_change_nothing(tensor_cores, device):
    x, y = samples(300, 290, 20, device=device)
    found = derivatives(lambda x, y: cgm_fast.mmd(x, y, backend="cuda"), (x, y), order=1)
    for layout in ("strided", "shifted"):
        if layout == "strided":
            moved = [torch.stack((z, z), -1)[..., 0] for z in (x, y)]
        else:
            moved = [torch.cat((z.new_zeros(1), z.flatten()))[1:].view(z.shape) for z in (x, y)]
        again = derivatives(lambda x, y: cgm_fast.mmd(x, y, backend="cuda"), moved, order=1)
        assert torch.equal(found[0], again[0])
        assert all(torch.equal(a, b) for a, b in zip(found[1], again[1], strict=True))


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


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("margin_", [0.5, 50.0])
def test_prototypes_in_one_launch_or_two(labelled, margin_, monkeypatch, device):
    r, g, labels = prototypes(300, 150, 10, device=device)
    labels = labels if labelled else None

    def run():
        return derivatives(
            lambda r, g: cgm_fast.prototype_margin(
                r, g, labels, margin=margin_, backend="cuda"
            ).loss,
            (r, g), order=1,
        )  # fmt: skip

    one = run()
    monkeypatch.setattr(margin, "_MOST_SUMS", 0)
    two = run()
    assert_loss_close(two[0], one[0], one[0])
    for a, b in zip(one[1], two[1], strict=True):
        assert_gradient_close(a, b)


@pytest.mark.parametrize("detach_prior", [False, True])
def test_cgm_loss_in_one_launch_is_its_parts(detach_prior, monkeypatch, device):
    r, g, _ = prototypes(100, 12, 10, device=device)
    noise = torch.randn(2, 100, 10, generator=torch.Generator().manual_seed(3)).to(device)

    def run():
        return derivatives(
            lambda r, g: cgm_fast.cgm_loss(
                r, g, noise=noise, detach_prior=detach_prior, backend="cuda"
            ).loss,
            (r, g), order=1,
        )  # fmt: skip

    one = run()
    monkeypatch.setattr(cgm_loss, "MOST_ROWS", 0)
    parts = run()
    assert_loss_close(one[0], parts[0], parts[0])
    for a, b in zip(one[1], parts[1], strict=True):
        assert_gradient_close(a, b)


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
