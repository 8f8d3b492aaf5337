"""The promise on memory: O(M d). Of many rows less than 100 MB beyond the inputs; of many features
less than twice what these take, and a little more: a copy, and the gradients."""

import math

import pytest
import torch

from benchmarks import measure
from benchmarks.cases import MMDShape, shape_id
from benchmarks.machine import DEVICES
from benchmarks.peers.mmd import PEERS
from cgm_fast.testing import samples

# The reference keeps this promise too, but takes minutes.
ALLOWED = {MMDShape(65536, 10): 100e6, MMDShape(16384, 2048): 600e6}


OURS = [p for p in PEERS if p.ours and p.name != "reference" and p.precision == "highest"]


@pytest.mark.parametrize(
    ("shape", "peer", "device"),
    [
        pytest.param(shape, peer, device, id=f"{shape_id(shape)}-{peer.name}-{device}")
        for device in DEVICES
        for shape in ALLOWED
        for peer in OURS
        if device in peer.devices
    ],
)
def test_a_large_mmd_fits(benchmark, shape, peer, device):
    if reason := peer.missing(device):
        pytest.skip(f"{peer.name}: {reason}")
    if benchmark.disabled and shape.d > 10:
        pytest.skip("without measuring, the shape with little arithmetic does")
    inputs = samples(shape.n, shape.n, shape.d, device=device)
    step = measure.synchronized(peer.prepare(*inputs), device)
    peaks, results = [], []

    def call():
        peaks.append(measure.peak_memory(lambda: results.append(step()), device))

    benchmark.group = f"memory {shape_id(shape)}"
    benchmark.pedantic(call, rounds=1)
    (peak,), (loss, *gradients, _) = peaks, results[0]
    if peak is None:
        pytest.skip("no /proc/self/clear_refs: a process's peak memory cannot be told from before")
    # Too many pairs for an oracle: there are tests for the values, here they must only be there.
    assert math.isfinite(float(loss))
    assert all(bool(part.isfinite().all()) for part in gradients)
    benchmark.extra_info.update(
        op="memory", shape=shape._asdict(), peer=peer.name, ours=True, device=device,
        dtype="float32", threads=torch.get_num_threads(), peak_bytes=peak,
    )  # fmt: skip
    assert peak < ALLOWED[shape], f"peak of {peak / 1e6:.0f} MB beyond the inputs"
