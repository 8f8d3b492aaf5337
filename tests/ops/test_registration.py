"""Plain calls skip torch's dispatcher; whoever watches it still sees the ops."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import cgm_fast
from cgm_fast import testing
from cgm_fast.ops import registration
from cgm_fast.ops.mmd import ops


@pytest.fixture
def samples():
    return testing.samples(6, 5, 3)


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_the_op(samples):
    plain = cgm_fast.mmd(*samples)
    with Watch() as watch:
        watched = cgm_fast.mmd(*samples)
    assert "cgm_fast::mmd_fwd" in watch.seen
    torch.testing.assert_close(watched, plain, rtol=0, atol=0)


def test_tracing_records_the_op_and_not_its_result(samples):
    traced = make_fx(lambda x, y: cgm_fast.mmd(x, y))(*samples)
    targets = [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]
    assert any("cgm_fast.mmd_fwd" in target for target in targets)
    other = testing.samples(6, 5, 3, seed=1)
    torch.testing.assert_close(traced(*other), cgm_fast.mmd(*other), rtol=0, atol=0)


def test_a_profiler_sees_the_op(samples):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        cgm_fast.mmd(*samples)
    assert any(event.key == "cgm_fast::mmd_fwd" for event in profile.key_averages())


class Dispatched(Exception):
    pass


def test_a_plain_call_skips_the_dispatcher(samples, monkeypatch):
    def refuse(*args):
        raise Dispatched

    call = ops.mmd_fwd
    cell = call.__closure__[call.__code__.co_freevars.index("dispatched")]
    expected = cgm_fast.mmd(*samples)
    monkeypatch.setattr(cell, "cell_contents", refuse)
    torch.testing.assert_close(cgm_fast.mmd(*samples), expected, rtol=0, atol=0)
    monkeypatch.setattr(registration, "_profiler", lambda: True)  # as if one were watching
    with pytest.raises(Dispatched):
        cgm_fast.mmd(*samples)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_results_are_on_the_inputs_device_whatever_the_default_is(samples, backend):
    if backend == "native":
        pytest.importorskip("cgm_fast._native")
    expected = cgm_fast.mmd(*samples, backend=backend)
    with torch.device("meta"):
        value = cgm_fast.mmd(*samples, backend=backend)
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
