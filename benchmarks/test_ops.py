"""Loss and gradients of every op, by every peer, at every shape: first right, then fast.

A shape's peers run one after another, so that their ratios come from the same minute.
"""

from typing import Any

import numpy
import pytest
import torch

from benchmarks import measure
from benchmarks.cases import CGM_STEP, MMD, PROTOTYPE_MARGIN, shape_id
from benchmarks.peers import cgm_step, mmd, prototype_margin
from cgm_fast.testing import GRADIENT_TOLERANCE, LOSS_TOLERANCE, relative_l2

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

OUR_TOLERANCE = {"loss": LOSS_TOLERANCE, "gradient": GRADIENT_TOLERANCE}
# Other people's packages make other promises: what they reach is measured, garbage is refused.
PEER_TOLERANCE = {"loss": 1e-3, "gradient": 1e-2}

# With --benchmark-disable nothing is measured and the suite should take a minute.
SMOKE_WORK = 1e9


def cases(op, peers):
    """A parameter for each device, shape and peer, a shape's peers side by side."""
    return [
        pytest.param(shape, peer, device, id=f"{shape_id(shape)}-{peer.name}-{device}")
        for device in DEVICES
        for shape in (*op.shapes, *op.sweep)
        for peer in peers
        if device in peer.devices and (shape in op.shapes or sweeps(op, peer))
    ]


def sweeps(op, peer):
    """Whether a peer is measured at the shapes that only a figure needs."""
    return peer.name in op.sweep_peers or (peer.ours and peer.name != "reference")


def as_tensor(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(numpy.array(value))


def check(peer, result, oracle):
    """Errors of a result against float64; a failure if they are beyond the tolerance."""
    if peer.assigns_only:
        loss, gradients, assignment = None, [], result
    else:
        loss, *gradients = result[:3]
        assignment = result[3] if len(result) > 3 else None
    tolerance = OUR_TOLERANCE if peer.ours else PEER_TOLERANCE
    errors = {}
    if loss is not None:
        difference = abs(float(as_tensor(loss).double()) - oracle.loss)
        errors["loss"] = difference / oracle.magnitude
        errors["gradient"] = max(
            relative_l2(as_tensor(value), expected)
            for value, expected in zip(gradients, oracle.gradients, strict=True)
        )
    if assignment is not None and oracle.assignment is not None:
        wrong = as_tensor(assignment).to(oracle.assignment) != oracle.assignment
        assert not wrong.any(), f"{int(wrong.sum())} assignments are not the nearest prototype"
    for name, error in errors.items():
        # Not `error > tolerance`: a NaN must fail.
        assert error <= tolerance[name], f"{name} error {error:.2g}, allowed {tolerance[name]:g}"
    return errors, tolerance


def run(benchmark, limits, budget, op, shape, peer, device):
    key = (op.name, peer.name, device)
    work = op.work(**shape._asdict())
    size = work.size
    if reason := peer.missing():
        pytest.skip(f"{peer.name}: {reason}")
    if benchmark.disabled:
        if size > SMOKE_WORK or shape in op.sweep:
            pytest.skip(f"{shape_id(shape)} only when measuring")
        if peer.compiles and (op, shape) != (MMD, MMD.shapes[0]):
            pytest.skip(f"{peer.name}: compiles, so only one shape without measuring")
    pairs = work.exponentials or shape[0] * shape[1]
    stored = pairs if peer.stores_pairs else 0.0
    if reason := limits.why_skip(key, size, stored):
        pytest.skip(f"{peer.name}: {reason}")

    inputs, oracle = op.case(shape, device)
    if oracle.active:
        work = op.work(**shape._asdict(), active=oracle.active)
    step = measure.synchronized(peer.prepare(*inputs), device)
    errors, tolerance = check(peer, step(), oracle)
    peak = None if benchmark.disabled else measure.peak_memory(step, device)
    benchmark.group = f"{op.name} {shape_id(shape)} {device}"
    benchmark.extra_info.update(
        op=op.name,
        shape=shape._asdict(),
        peer=peer.name,
        ours=peer.ours,
        assigns_only=peer.assigns_only,
        device=device,
        dtype="float32",
        threads=torch.get_num_threads(),
        work=work._asdict(),
        errors=errors,
        tolerance=tolerance,
        peak_bytes=peak,
    )
    seconds = measure.time_step(benchmark, step, *budget)
    limits.note(key, size, stored, seconds, peak)


@pytest.mark.parametrize(("shape", "peer", "device"), cases(MMD, mmd.PEERS))
def test_mmd(benchmark, limits, budget, shape, peer, device):
    run(benchmark, limits, budget, MMD, shape, peer, device)


@pytest.mark.parametrize(
    ("shape", "peer", "device"), cases(PROTOTYPE_MARGIN, prototype_margin.PEERS)
)
def test_prototype_margin(benchmark, limits, budget, shape, peer, device):
    run(benchmark, limits, budget, PROTOTYPE_MARGIN, shape, peer, device)


@pytest.mark.parametrize(("shape", "peer", "device"), cases(CGM_STEP, cgm_step.PEERS))
def test_cgm_step(benchmark, limits, budget, shape, peer, device):
    run(benchmark, limits, budget, CGM_STEP, shape, peer, device)
