"""What is particular to cgm_loss in one launch of CUDA C++: sizes, layouts, the order of sums."""

import pytest
import torch

import cgm_fast
from cgm_fast.ops import backends
from cgm_fast.testing import (
    assert_gradient_close,
    assert_loss_close,
    derivatives,
    prototypes,
)

if backends.availability()["cuda"] is not None:
    pytest.skip(f"cuda: {backends.availability()['cuda']}", allow_module_level=True)

from cgm_fast.ops.cgm_loss import cuda as cgm_loss

COMMON = cgm_loss.common.fwd
MOST_ROWS = cgm_loss.MOST_ROWS


@pytest.fixture
def device(kernels_device):
    return kernels_device


def case(b, k, d, device, dtype=torch.float32):
    r, g, labels = prototypes(b, k, d, device=device, dtype=dtype)
    noise = torch.randn(2, b, d, generator=torch.Generator().manual_seed(3)).to(device, dtype)
    return r, g, labels, noise


def run(r, g, labels, noise, **options):
    """Loss and both gradients."""

    def call(r, g):
        return cgm_fast.cgm_loss(r, g, labels, noise=noise, backend="cuda", **options).loss

    loss, gradients = derivatives(call, (r, g), order=1)[:2]
    return loss, *gradients


@pytest.fixture
def one_launch(monkeypatch):
    """Nothing is left to the ops that the objective can be composed of."""

    def never(*_):
        raise AssertionError("composed")

    monkeypatch.setattr(cgm_loss.common, "fwd", never)


@pytest.fixture
def by_parts(monkeypatch):
    """The same objective composed of its parts."""

    def call(*inputs, **options):
        with monkeypatch.context() as patch:
            patch.setattr(cgm_loss.common, "fwd", COMMON)
            patch.setattr(cgm_loss, "MOST_ROWS", 0)
            return run(*inputs, **options)

    return call


def assert_close(found, expected):
    assert_loss_close(found[0], expected[0], expected[0])
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert_gradient_close(a, b)


@pytest.mark.parametrize("detach_prior", [False, True])
@pytest.mark.parametrize("rows", [4, 8])
def test_one_launch_is_its_parts(detach_prior, rows, one_launch, by_parts, monkeypatch, device):
    monkeypatch.setattr(cgm_loss, "rows_of_block", lambda *_: rows)
    inputs = case(100, 12, 10, device)
    found = run(*inputs, detach_prior=detach_prior)
    assert_close(found, by_parts(*inputs, detach_prior=detach_prior))


# More samples, or prototypes, than a tile has; blocks of 16 bytes that end anywhere.
@pytest.mark.parametrize(
    ("b", "k", "d"),
    [
        (300, 7, 6),
        (61, 203, 3),
        (59, 130, 11),
        (131, 5, 16),
        (97, 70, 21),
        (75, 40, 61),
        (67, 3, 64),
    ],
)
@pytest.mark.parametrize("labelled", [False, True])
def test_any_size(b, k, d, labelled, one_launch, by_parts, device):
    r, g, labels, noise = case(b, k, d, device)
    inputs = r, g, labels if labelled else None, noise
    assert_close(run(*inputs, margin=2.0), by_parts(*inputs, margin=2.0))


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("rows", [4, 8])
def test_one_prototype_has_all_samples(labelled, rows, one_launch, by_parts, monkeypatch, device):
    monkeypatch.setattr(cgm_loss, "rows_of_block", lambda *_: rows)
    r, g, _, noise = case(203, 9, 5, device)
    if not labelled:
        g[:-1] += 100.0
    labels = torch.full((203,), 8, device=device)
    found = run(r, g, labels if labelled else None, noise)
    assert_close(found, by_parts(r, g, labels, noise))


def test_many_samples_of_a_few_prototypes_in_any_order(one_launch, by_parts, device):
    """A block's rows are one prototype's, or the end of one's, others whole and a third's begin."""
    r, g, _, noise = case(257, 40, 4, device)
    sizes = torch.tensor([0, 1, 200, 2, 0, 3, 1, 50])
    labels = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    labels = labels[torch.randperm(257, generator=torch.Generator().manual_seed(1))].to(device)
    assert_close(run(r, g, labels, noise), by_parts(r, g, labels, noise))


@pytest.mark.parametrize("d", [8, 10])
def test_bits_do_not_depend_on_who_runs_first_nor_on_alignment(d, one_launch, device):
    r, g, _, noise = case(64, 10, d, device)
    found = run(r, g, None, noise)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(run(r, g, None, noise), found, strict=True))

    def shifted(value):
        moved = torch.cat((value.new_zeros(1), value.flatten()))[1:].view(value.shape)
        assert moved.data_ptr() % 16
        return moved

    for r2, g2, noise2 in (
        (shifted(r), g, noise),
        (r, shifted(g), noise),
        (r, g, shifted(noise)),
    ):
        moved = run(r2.detach(), g2.detach(), None, noise2)
        assert all(torch.equal(a, b) for a, b in zip(moved, found, strict=True))
