"""What is particular to the Triton kernels: precision, launches, tiles, who chooses them."""

import dataclasses
import functools

import pytest
import torch

import cgm_fast
from cgm_fast.ops import backends
from cgm_fast.testing import (
    assert_gradient_close,
    derivatives,
    mmd_formula,
    mmd_magnitude,
    prototype_margin_formula,
    prototypes,
    relative_l2,
    samples,
)

if backends.availability()["triton"] is not None:
    pytest.skip(backends.availability()["triton"], allow_module_level=True)

from triton.runtime.interpreter import GridExecutor

from cgm_fast.ops.cgm_loss import triton as cgm_loss
from cgm_fast.ops.mmd import triton as mmd
from cgm_fast.ops.mmd import triton_kernels as kernels
from cgm_fast.ops.prototype_margin import triton as margin
from cgm_fast.ops.triton import launch, tiles

pytestmark = pytest.mark.usefixtures("tensor_cores")

# Of the faster modes, where cgm_fast.testing has those of "highest": what ops/mmd/README.md says.
FAST_LOSS, FAST_GRADIENT = 2e-5, 5e-4


@pytest.fixture
def device(kernels_device):
    return kernels_device


@pytest.mark.parametrize(
    ("allowed", "expected"), [("highest", "tf32x3"), ("high", "tf32"), ("medium", "tf32")]
)
def test_products_are_as_accurate_as_the_user_asks(allowed, expected):
    if torch.version.hip is not None:
        pytest.skip("AMD multiplies float32 as it is")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        assert launch.numbers(torch.float32).precision == expected
        assert launch.numbers(torch.float16).precision == expected
        assert launch.numbers(torch.float64).precision == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


def test_newer_names_of_the_setting_count_too():
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("torch before 2.9")
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:  # torch.get_float32_matmul_precision() raises now
        assert launch.numbers(torch.float32).rounded
    finally:
        matmul.fp32_precision = before


def test_float64_with_an_older_triton_is_an_error_that_says_so(monkeypatch, kernels_device):
    monkeypatch.setattr(launch, "DOUBLES", False)
    x = torch.randn(5, 3, dtype=torch.float64, device=kernels_device)
    for call in (cgm_fast.mmd, cgm_fast.prototype_margin, cgm_fast.cgm_loss):
        with pytest.raises(launch.NoDoubles, match="takes float64 from triton"):
            call(x, x + 1, backend="triton")


def test_half_inputs_stay_half_and_their_weights_do_not(fast):
    held = launch.numbers(torch.float16)
    assert (held.rows, held.compute) == (torch.float16, torch.float32)
    assert launch.widened(torch.float16).rows == torch.float32


def errors(x, y, sigma, backend="triton"):
    """Of loss and gradients against float64, relative to what tolerances are relative to."""
    found = derivatives(
        lambda x, y: cgm_fast.mmd(x, y, bandwidth=sigma, backend=backend), (x, y), order=1
    )
    wide = [value.double() for value in (x, y)]
    wanted = derivatives(lambda x, y: mmd_formula(x, y, sigma=[sigma]), wide, order=1)
    loss = float((found[0].double() - wanted[0]).abs() / mmd_magnitude(*wide, sigma=[sigma]))
    return loss, max(relative_l2(a, b) for a, b in zip(found[1], wanted[1], strict=True))


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("d", [2, 10, 64, 70])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_tf32_has_an_error_budget_of_its_own(d, sigma, offset, fast, device):
    x, y = (value + offset for value in samples(150, 120, d, device=device))
    loss, gradient = errors(x, y, sigma * d**0.5)
    assert loss <= FAST_LOSS
    assert gradient <= FAST_GRADIENT


@pytest.fixture
def differences(monkeypatch):
    """One entry for every tile that is taken by plain differences."""
    if not launch.INTERPRETED:
        pytest.skip("counted in the interpreter")
    tiles_taken = []
    call = kernels.squared_distances

    def counting(*args, **kwargs):
        tiles_taken.append(1)
        return call(*args, **kwargs)

    monkeypatch.setattr(kernels, "squared_distances", counting)
    return tiles_taken


@pytest.mark.parametrize("case", ["outlier", "bandwidths", "narrow", "offset"])
def test_products_serve_where_no_near_pair_loses_by_them(case, differences, device):
    """One row many bandwidths away, several bandwidths, or a narrow one: each has some |z|² beyond
    24 exponents."""
    x, y = samples(90, 70, 10, device=device)
    sigma = [0.5, 1.0, 2.0] if case == "bandwidths" else [0.5] if case == "narrow" else [10**0.5]
    if case == "outlier":
        x[3] += 300.0
    if case == "offset":
        x, y = x + 1e4, y + 1e4
    found = derivatives(
        lambda x, y: cgm_fast.mmd(x, y, bandwidth=sigma, backend="triton"), (x, y), order=1
    )
    assert not differences
    wide = [value.double() for value in (x, y)]
    wanted = derivatives(lambda x, y: mmd_formula(x, y, sigma=sigma), wide, order=1)
    assert abs(float(found[0] - wanted[0])) <= 1e-6 * float(mmd_magnitude(*wide, sigma=sigma))
    for value, truth in zip(found[1], wanted[1], strict=True):
        assert_gradient_close(value, truth, 1e-5)


def test_a_turn_whose_near_pairs_lose_by_products_is_taken_again(differences, device, monkeypatch):
    """A tight cluster far from the centre, and beside it rows for which products do."""
    monkeypatch.setattr(mmd, "_TURN", 64)
    x, y = samples(64, 64, 10, device=device)
    cluster = 1e-3 * x
    cluster[:, 0] += 9.0
    x = torch.cat((x, cluster))  # a block, and a turn, each
    found = derivatives(
        lambda x, y: cgm_fast.mmd(x, y, bandwidth=1.0, backend="triton"), (x, y), order=1
    )
    # Those near each other: a block against a turn, in parts of 32 columns.
    assert len(differences) == 2
    wide = [value.double() for value in (x, y)]
    wanted = derivatives(lambda x, y: mmd_formula(x, y, sigma=[1.0]), wide, order=1)
    assert abs(float(found[0] - wanted[0])) <= 1e-6 * float(mmd_magnitude(*wide, sigma=[1.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_half_products_lose_nothing_but_the_gradients_last_rounding(dtype, sigma, device):
    x, y = samples(150, 120, 20, dtype=dtype, device=device)
    loss, gradient = errors(x, y, sigma * 20**0.5)
    assert loss <= 1e-6
    # The reference computes in float32 and rounds its gradients too.
    assert gradient <= 1.01 * errors(x, y, sigma * 20**0.5, "reference")[1]


@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_cutting_weights_does_not_shrink_gradients(sigma, fast, device):
    x, y = samples(150, 120, 10, device=device)
    option = sigma * 10**0.5
    found = derivatives(
        lambda x, y: cgm_fast.mmd(x, y, bandwidth=option, backend="triton"), (x, y), order=1
    )
    wide = [value.double() for value in (x, y)]
    wanted = derivatives(lambda x, y: mmd_formula(x, y, sigma=[option]), wide, order=1)
    g, g64 = torch.cat(found[1]).double().flatten(), torch.cat(wanted[1]).flatten()
    assert abs(float(g @ g64 / (g64 @ g64)) - 1) <= 1e-4  # 3.5e-4 if nothing were given back


def test_blackwell_gets_no_two_tf32_products_around_bandwidths():
    fast = launch.Numbers(torch.float32, torch.float32, "tf32", True, 1)
    assert launch.with_bandwidths(fast, "10.0").precision == "tf32x3"
    assert launch.with_bandwidths(fast, "9.0") == fast


def test_half_inputs_where_tf32_is_allowed(fast, device):
    x, y = samples(150, 120, 20, dtype=torch.float16, device=device)
    loss, gradient = errors(x, y, 20**0.5)
    assert loss <= FAST_LOSS
    assert gradient <= FAST_GRADIENT + torch.finfo(torch.float16).eps


def test_margin_loss_where_tf32_is_allowed(fast, device):
    r, g, labels = prototypes(100, 40, 10, device=device)
    found = derivatives(
        lambda r, g: cgm_fast.prototype_margin(r, g, labels, backend="triton").loss, (r, g), order=1
    )
    wanted = derivatives(
        lambda r, g: prototype_margin_formula(r, g, labels)[0], (r.double(), g.double()), order=1
    )
    assert abs(float(found[0]) - float(wanted[0])) <= 1e-3 * float(wanted[0])
    for value, expected in zip(found[1], wanted[1], strict=True):
        assert relative_l2(value, expected) <= 1e-2  # a pair at the margin may flip


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("d", [3, 70])
def test_sums_in_turns_and_splits_agree(d, device, monkeypatch):
    """What large samples do: columns in turns and in splits, blocks of prototypes in splits."""
    x, y = samples(100, 130, d, device=device)
    r, g, _ = prototypes(100, 40, d, device=device)

    def both(x, y, r, g):
        found = derivatives(lambda x, y: cgm_fast.mmd(x, y, backend="triton"), (x, y), order=2)
        loss = derivatives(
            lambda r, g: cgm_fast.prototype_margin(r, g, backend="triton").loss, (r, g), order=1
        )
        return (*found[1], *found[2], *loss[1])

    expected = both(x, y, r, g)
    monkeypatch.setattr(mmd, "_TURN", 64)
    monkeypatch.setattr(mmd, "parallel", lambda *_: 4)
    monkeypatch.setattr(margin, "parallel", lambda *_: 2)
    for value, wanted in zip(both(x, y, r, g), expected, strict=True):
        assert_gradient_close(value, wanted, 1e-5)


@pytest.mark.parametrize("labelled", [False, True])
def test_cgm_loss_in_three_launches_is_its_parts(labelled, device, monkeypatch):
    r, g, labels = prototypes(70, 20, 40, device=device)
    noise = torch.randn(2, 70, 40, generator=torch.Generator().manual_seed(1)).to(device)

    def loss(r, g):
        return cgm_fast.cgm_loss(
            r, g, labels if labelled else None, noise=noise, backend="triton"
        ).loss

    whole = derivatives(loss, (r, g), order=1)
    monkeypatch.setattr(cgm_loss, "MOST_ROWS", 0)
    parts = derivatives(loss, (r, g), order=1)
    assert abs(float(whole[0] - parts[0])) <= 1e-5 * abs(float(parts[0]))
    for value, wanted in zip(whole[1], parts[1], strict=True):
        assert_gradient_close(value, wanted, 1e-5)


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels launched so far."""
    if not launch.INTERPRETED:
        pytest.skip("counted where the interpreter launches; benchmarks count on a GPU")
    names = []
    call = GridExecutor.__call__

    @functools.wraps(call)
    def counting(self, *args, **kwargs):
        names.append(self.fn.__name__)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", counting)
    return names


def test_how_many_launches_loss_and_gradients_take(launches, device):
    x, y = (value.requires_grad_() for value in samples(30, 20, 5, device=device))
    cgm_fast.mmd(x, y, backend="triton").backward()
    assert launches == ["sum_kernel", "pack_kernel", "mmd_fwd_kernel", "mmd_finish_kernel"]
    launches.clear()
    r, g = (value.requires_grad_() for value in prototypes(30, 4, 5, device=device)[:2])
    cgm_fast.prototype_margin(r, g, backend="triton").loss.backward()
    assert len(launches) == 4
    launches.clear()
    cgm_fast.cgm_loss(r, g, backend="triton").loss.backward()
    assert launches == ["cgm_assign_kernel", "mmd_fwd_kernel", "cgm_finish_kernel"]


@pytest.mark.parametrize(
    ("capability", "row"),
    [
        ((8, 0), "8.0"), ((8, 9), "8.0"), ((9, 0), "9.0"), ((10, 0), "10.0"), ((10, 3), "10.0"),
        ((12, 0), "8.0"),
    ],
)  # fmt: skip
def test_every_device_has_a_row_of_tiles(capability, row, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert tiles.device_key(torch.device("cuda")) == row


@pytest.mark.parametrize("device_key", ["8.0", "9.0", "10.0", "amd"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", ["mmd_fwd", "mmd_hvp", "kernel_product", "prototype_margin"])
def test_every_call_finds_a_tile(kernel, dtype, device_key, monkeypatch):
    if kernel != "mmd_fwd" and dtype.itemsize == 2:
        dtype = torch.float32  # what they widen to
    monkeypatch.setattr(tiles, "device_key", lambda device: device_key)
    for d in (1, 16, 17, 33, 64, 65, 4096):
        blocks = tiles.choose(kernel, d, dtype, torch.device("cpu"))
        assert all(size & (size - 1) == 0 for size in blocks[:4])  # powers of two
        assert 2048 % blocks.columns == 0  # a turn is made of whole tiles
        assert blocks.features >= 16


@pytest.mark.parametrize(("type", "chosen"), [("cpu", "native"), ("cuda", "triton")])
def test_it_is_the_automatic_choice_on_gpus_alone(type, chosen, monkeypatch):
    both = dataclasses.replace(backends.BACKENDS["triton"], devices=("cuda", "cpu"))
    monkeypatch.setitem(backends.BACKENDS, "triton", both)
    every = dict.fromkeys(backends.BACKENDS) | {"cuda": "not built"}  # None: usable
    monkeypatch.setattr(backends, "_availability", every)
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    device = torch.device(type)
    assert backends.choose("triton", device) == "triton"
    assert backends.choose("auto", device) == chosen
