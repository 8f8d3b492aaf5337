"""Loss and gradients of every op, by every peer, at every shape: first right, then fast.

A shape's peers run one after another, so that their ratios come from the same minute.
"""

import warnings
from typing import Any

import numpy
import pytest
import torch

from benchmarks import gpu, measure
from benchmarks.cases import (
    CGM_LOSS,
    CGM_LOSS_COLLAPSED,
    KERNEL_PRODUCT,
    MMD,
    MMD_BANDWIDTHS,
    MMD_WIDE,
    PROTOTYPE_MARGIN,
    shape_id,
)
from benchmarks.machine import DEVICES
from benchmarks.peers import cgm_loss, kernel_product, mmd, prototype_margin
from cgm_fast.testing import GRADIENT_TOLERANCE, LOSS_TOLERANCE, relative_l2

OUR_TOLERANCE = {"loss": LOSS_TOLERANCE, "gradient": GRADIENT_TOLERANCE}
# Ours where tf32 is allowed, as the ops' READMEs say; cgm_loss has both terms.
MARGIN_TF32_TOLERANCE = {"loss": 1e-3, "gradient": 1e-2}
MMD_TF32_TOLERANCE = {"loss": 2e-5, "gradient": 5e-4}
OUR_TF32_TOLERANCE = {
    MMD.name: MMD_TF32_TOLERANCE,
    MMD_BANDWIDTHS.name: MMD_TF32_TOLERANCE,
    MMD_WIDE.name: MMD_TF32_TOLERANCE,
    KERNEL_PRODUCT.name: {"loss": 1e-3, "gradient": 2e-3},
    PROTOTYPE_MARGIN.name: MARGIN_TF32_TOLERANCE,
    CGM_LOSS.name: MARGIN_TF32_TOLERANCE,
    CGM_LOSS_COLLAPSED.name: MARGIN_TF32_TOLERANCE,
}
# Other people's packages make other promises: what they reach is measured, garbage is refused.
PEER_TOLERANCE = {"loss": 1e-3, "gradient": 1e-2}
# Where tf32 is allowed a prototype counts as the nearest if it is farther by no more than this of
# |r|² + |g|²: both factors of a product lose 2^-10 of themselves at most. Elsewhere none is.
TF32_FARTHER = 2 * 2.0**-10

# Others than ours that compile for each d or shape, or try out tiles, are measured at these d
# among the shapes for GPUs: the rest would take them more minutes than a run has.
COMPILED_FEATURES = (10, 64)

PATIENCE = 10.0
"""How many times longer than others a call at the last shapes may take."""
DEVIATIONS = 5.0
"""What a loss may be off by where the oracle estimates it, besides the tolerance."""

# With --benchmark-disable nothing is measured and the suite should take a minute.
SMOKE_WORK = 1e9


def cases(op, peers):
    """A parameter for each device, shape and peer, a shape's peers side by side."""
    return [
        pytest.param(shape, peer, device, id=f"{shape_id(shape)}-{peer.name}-{device}")
        for device in DEVICES
        for shape in shapes_on(op, device)
        for peer in peers
        if device in peer.devices and takes_part(op, shape, peer)
    ]


def shapes_on(op, device):
    """The shapes of an op for a type of device; conftest.py puts the last ones last."""
    extra = (*op.gpu_shapes, *op.gpu_last) if device == "cuda" else ()
    return (*op.shapes, *op.sweep, *extra)


def takes_part(op, shape, peer):
    """Whether a peer is measured at a shape."""
    if shape in op.sweep:  # only a figure needs it
        return peer.name in op.sweep_peers or (peer.ours and peer.name != "reference")
    if shape in op.gpu_last:
        return peer.ours
    return not (shape in op.gpu_shapes and peer.compiles) or shape.d in COMPILED_FEATURES


def as_tensor(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(numpy.array(value))


def check(op, peer, inputs, result, oracle):
    """Errors of a result against float64; a failure if they are beyond the tolerance."""
    if peer.assigns_only:
        loss, gradients, assignment = None, [], result
    else:
        end = 1 + len(oracle.gradients)
        loss, *gradients = result[:end]
        assignment = result[end] if len(result) > end else None
    tf32 = peer.precision != "highest"
    tolerance = PEER_TOLERANCE
    if peer.ours:
        tolerance = OUR_TF32_TOLERANCE[op.name] if tf32 else OUR_TOLERANCE
    errors = {}
    if loss is not None:
        difference = abs(float(as_tensor(loss).double()) - oracle.loss)
        if oracle.loss_deviation:
            allowed = tolerance["loss"] * oracle.magnitude + DEVIATIONS * oracle.loss_deviation
            assert difference <= allowed, f"loss off by {difference:.2g}, allowed {allowed:.2g}"
        else:
            errors["loss"] = difference / oracle.magnitude
        if oracle.rows is not None:
            gradients = [
                as_tensor(value)[rows] for value, rows in zip(gradients, oracle.rows, strict=True)
            ]
        errors["gradient"] = max(
            relative_l2(as_tensor(value), expected)
            for value, expected in zip(gradients, oracle.gradients, strict=True)
        )
    if assignment is not None and oracle.assignment is not None:
        assignment = as_tensor(assignment).to(oracle.assignment)
        wrong = assignment != oracle.assignment
        if tf32:
            wrong &= farther(*inputs[:2], assignment, oracle.assignment) > TF32_FARTHER
        assert not wrong.any(), f"{int(wrong.sum())} assignments are not the nearest prototype"
    for name, error in errors.items():
        # Not `error > tolerance`: a NaN must fail.
        assert error <= tolerance[name], f"{name} error {error:.2g}, allowed {tolerance[name]:g}"
    return errors, tolerance


def farther(r, g, assignment, nearest):
    """How much farther than the nearest prototypes others are, over |r|² + |g|²; in float64."""
    r, g = r.double(), g.double()
    excess = (r - g[assignment]).square().sum(1) - (r - g[nearest]).square().sum(1)
    return excess / (r.square().sum(1) + g[assignment].square().sum(1))


def run(benchmark, limits, budget, op, shape, peer, device):
    key = (op.name, peer.name, device)
    work = op.work(**shape._asdict())
    size = work.size
    if reason := peer.missing(device):
        pytest.skip(f"{peer.name}: {reason}")
    if benchmark.disabled:
        if shape in op.sweep:
            pytest.skip("a point of a sweep: without measuring, the table's own shapes do")
        if size > SMOKE_WORK:
            pytest.skip(f"{size:.1e} operations; without measuring, at most {SMOKE_WORK:.0e}")
        if peer.compiles and (op, shape) != (MMD, MMD.shapes[0]):
            pytest.skip(f"{peer.name}: compiles, so only one shape without measuring")
    pairs = work.exponentials or shape[0] * shape[1]
    stored = pairs if peer.stores_pairs else 0.0
    patience = PATIENCE if shape in op.gpu_last else 1.0
    if reason := limits.why_skip(key, size, stored, patience):
        pytest.skip(f"{peer.name}: {reason}")

    inputs, oracle = op.case(shape, device)
    if oracle.active:
        work = op.work(**shape._asdict(), active=oracle.active)
    step = peer.prepare(*inputs)
    errors, tolerance = check(op, peer, inputs, step(), oracle)
    peak = None if benchmark.disabled else measure.peak_memory(step, device)
    benchmark.group = f"{op.name} {shape_id(shape)} {device}"
    benchmark.extra_info.update(
        op=op.name,
        shape=shape._asdict(),
        peer=peer.name,
        ours=peer.ours,
        assigns_only=peer.assigns_only,
        precision=peer.precision,
        device=device,
        dtype="float32",
        threads=torch.get_num_threads(),
        work=work._asdict(),
        errors=errors,
        tolerance=tolerance,
        peak_bytes=peak,
    )
    seconds = measure.time_step(benchmark, step, *budget, device)
    limits.note(key, size, stored, seconds, peak)
    if device == "cuda" and not benchmark.disabled:
        benchmark.extra_info.update(gpu.measure(step, budget[0], peak, peer.captures))


def run_as(peer, *args):
    """`run` at the peer's precision; what others' packages warn of is not ours to mend."""
    with measure.matmul_precision(peer.precision), warnings.catch_warnings():
        if not peer.ours:
            warnings.simplefilter("ignore")
        run(*args)


@pytest.mark.parametrize(("shape", "peer", "device"), cases(MMD, mmd.PEERS))
def test_mmd(benchmark, limits, budget, shape, peer, device):
    run_as(peer, benchmark, limits, budget, MMD, shape, peer, device)


@pytest.mark.parametrize(("shape", "peer", "device"), cases(MMD_WIDE, mmd.WIDE_PEERS))
def test_mmd_wide(benchmark, limits, budget, shape, peer, device):
    run_as(peer, benchmark, limits, budget, MMD_WIDE, shape, peer, device)


@pytest.mark.parametrize(
    ("shape", "peer", "device"), cases(PROTOTYPE_MARGIN, prototype_margin.PEERS)
)
def test_prototype_margin(benchmark, limits, budget, shape, peer, device):
    run_as(peer, benchmark, limits, budget, PROTOTYPE_MARGIN, shape, peer, device)


@pytest.mark.parametrize(("shape", "peer", "device"), cases(KERNEL_PRODUCT, kernel_product.PEERS))
def test_kernel_product(benchmark, limits, budget, shape, peer, device):
    run_as(peer, benchmark, limits, budget, KERNEL_PRODUCT, shape, peer, device)


@pytest.mark.parametrize(("shape", "peer", "device"), cases(CGM_LOSS, cgm_loss.PEERS))
def test_cgm_loss(benchmark, limits, budget, shape, peer, device):
    run_as(peer, benchmark, limits, budget, CGM_LOSS, shape, peer, device)


@pytest.mark.parametrize(("shape", "peer", "device"), cases(MMD_BANDWIDTHS, mmd.BANDWIDTHS_PEERS))
def test_mmd_bandwidths(benchmark, limits, budget, shape, peer, device):
    run_as(peer, benchmark, limits, budget, MMD_BANDWIDTHS, shape, peer, device)


@pytest.mark.parametrize(("shape", "peer", "device"), cases(CGM_LOSS_COLLAPSED, cgm_loss.PEERS))
def test_cgm_loss_collapsed(benchmark, limits, budget, shape, peer, device):
    run_as(peer, benchmark, limits, budget, CGM_LOSS_COLLAPSED, shape, peer, device)
