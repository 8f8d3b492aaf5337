"""What is particular to CUDA's prototype_margin: launches, splits, lists of samples, layouts."""

import pytest
import torch

import cgm_fast
from cgm_fast.ops import backends
from cgm_fast.testing import (
    LAYOUTS,
    assert_gradient_close,
    assert_loss_close,
    derivatives,
    prototype_margin_formula,
    prototypes,
)

if backends.availability()["cuda"] is not None:
    pytest.skip(f"cuda: {backends.availability()['cuda']}", allow_module_level=True)

from cgm_fast.ops.cuda import launch
from cgm_fast.ops.prototype_margin import cuda as margin


@pytest.fixture
def device(kernels_device):
    return kernels_device


def run(r, g, labels=None, margin=1.0, order=1):
    """Loss and derivatives."""

    def call(r, g):
        return cgm_fast.prototype_margin(r, g, labels, margin=margin, backend="cuda").loss

    loss, *parts = derivatives(call, (r, g), order=order)
    return loss, *(value for part in parts for value in part)


def formula(r, g, labels=None, margin=1.0, order=1):
    """The same in float64, of the formula."""
    loss, *parts = derivatives(
        lambda r, g: prototype_margin_formula(r, g, labels, margin=margin)[0],
        (r.double(), g.double()), order=order,
    )  # fmt: skip
    return loss, *(value for part in parts for value in part)


def assert_close(found, expected):
    assert_loss_close(found[0], expected[0], expected[0])
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert_gradient_close(a, b)


def assert_same(found, expected):
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.fixture
def two_launches(monkeypatch):
    monkeypatch.setattr(margin, "_MOST_SUMS", 0)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("margin_", [0.5, 50.0])
@pytest.mark.parametrize("d", [10, 40])
def test_one_launch_or_two(labelled, margin_, d, monkeypatch, device):
    r, g, labels = prototypes(300, 30, d, device=device)
    inputs = r, g, labels if labelled else None, margin_
    monkeypatch.setattr(margin, "_MOST_SUMS", 1 << 20)
    one = run(*inputs)
    monkeypatch.setattr(margin, "_MOST_SUMS", 0)
    assert_close(run(*inputs), one)
    assert_close(one, formula(*inputs))


# Nobody inside a margin, some, and all.
@pytest.mark.parametrize("margin_", [0.01, 3.0, 100.0])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("b", "k"), [(40, 300), (1100, 70)])
def test_any_number_of_splits(margin_, several, b, k, monkeypatch, device):
    monkeypatch.setattr(margin, "multiprocessors", lambda device: 1000)
    splits = margin.splits_of(b, k, torch.float32, torch.device("cpu"))
    assert splits.assign > 1
    assert max(splits.rows, splits.samples) > 1
    if not several:
        monkeypatch.setattr(margin, "splits_of", lambda *_: margin.Splits(1, 1, 1))
    r, g, _ = prototypes(b, k, 6, device=device)
    assert_close(run(r, g, None, margin_, order=2), formula(r, g, None, margin_, order=2))
    row_blocks, blocks_of_prototypes = (b + 31) // 32, (k + 31) // 32
    assert not launch.counters(row_blocks + blocks_of_prototypes, r.device).any()


def test_equal_prototypes_of_different_splits_go_to_the_lowest(monkeypatch, device):
    monkeypatch.setattr(margin, "multiprocessors", lambda device: 1000)
    r, g, _ = prototypes(33, 260, 5, device=device)
    g[:] = g[0]
    found = cgm_fast.prototype_margin(r, g, backend="cuda").assignment
    assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize(("of", "inside"), [(0, False), (130, False), (39, True)])
def test_one_prototype_has_all_samples(of, inside, two_launches, device):
    """And some have a few, in a block's list or beyond it."""
    r, g, _ = prototypes(700, 140, 4, device=device)
    labels = torch.full((700,), of, device=device)
    labels[::97] = torch.arange(len(labels[::97]), device=device)
    inputs = r, g, labels, 20.0 if inside else 1e-3
    assert_close(run(*inputs), formula(*inputs))
    assert_same(run(*inputs), run(*inputs))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
@pytest.mark.parametrize("d", [12, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_how_rows_are_copied_changes_nothing(layout, d, dtype, two_launches, device):
    r, g, _ = prototypes(70, 40, d, device=device, dtype=dtype)

    def shifted(value):
        return torch.cat((value.new_zeros(1), value.flatten()))[1:].view(value.shape)

    found = run(r, g, None, 30.0)
    for moved in (LAYOUTS[layout](r), shifted(r)):
        assert_same(run(moved, g, None, 30.0), found)
    for moved in (LAYOUTS[layout](g), shifted(g)):
        assert_same(run(r, moved, None, 30.0), found)
