"""Plain calls skip torch's dispatcher; whoever watches it still sees the ops."""

import subprocess
import sys

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

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

    expected = cgm_fast.mmd(*samples)
    monkeypatch.setattr(ops.mmd_fwd, "dispatched", refuse)
    torch.testing.assert_close(cgm_fast.mmd(*samples), expected, rtol=0, atol=0)
    monkeypatch.setattr(registration, "_profiler", lambda: True)  # as if one were watching
    with pytest.raises(Dispatched):
        cgm_fast.mmd(*samples)


NOISE = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
OPS = {
    "mmd": lambda r, g, **how: cgm_fast.mmd(r, g, **how),
    "weighted_mmd": lambda r, g, **how: cgm_fast.mmd(
        r, g, x_weights=r[:, 0].square(), bandwidth=[1.0, 2.0], **how
    ),
    "prototype_margin": lambda r, g, **how: cgm_fast.prototype_margin(r, g, **how).loss,
    "cgm_loss": lambda r, g, **how: cgm_fast.cgm_loss(r, g, noise=NOISE.to(r), **how).loss,
}


def derivatives_of(call, *inputs):
    """The value, its gradients, and the gradients of their squares."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    value = call(*leaves)
    first = torch.autograd.grad(value, leaves, create_graph=True)
    return value, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.device == other.device
        assert torch.equal(one, other)


@pytest.mark.parametrize("op", OPS)
def test_results_are_on_the_inputs_device_whatever_the_default_is(op, samples, backend, device):
    inputs = [value.to(device) for value in samples]

    def call(r, g):
        return OPS[op](r, g, backend=backend)

    expected = derivatives_of(call, *inputs)
    with torch.device("meta"):
        assert_equal(derivatives_of(call, *inputs), expected)
    try:
        torch.set_default_device("meta")
        assert_equal(derivatives_of(call, *inputs), expected)
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("op", OPS)
def test_meta_tensors_have_shapes(op, samples):
    expected = derivatives_of(OPS[op], *samples)
    for backend in ("auto", "reference", "native"):
        found = derivatives_of(
            lambda r, g, name=backend: OPS[op](r, g, backend=name), *(z.to("meta") for z in samples)
        )
        assert [v.shape for v in found] == [v.shape for v in expected]
        assert {v.device.type for v in found} == {"meta"}


class Wrapped(torch.Tensor):
    """A tensor that holds another and has no memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map(
            lambda value: value.inner if isinstance(value, cls) else value, (args, kwargs or {})
        )
        return func(*args, **kwargs)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("op", OPS)
def test_any_tensor_of_another_type_is_dispatched(op, which, samples):
    inputs = list(samples)
    inputs[which] = Wrapped(inputs[which])
    assert inputs[which].data_ptr() == 0
    torch.testing.assert_close(OPS[op](*inputs), OPS[op](*samples), rtol=0, atol=0)


@pytest.mark.parametrize("op", OPS)
def test_a_parameter_is_plain(op, samples, monkeypatch):
    expected = OPS[op](*samples)
    monkeypatch.setattr(torch._ops.OpOverload, "__call__", lambda *args, **how: 1 / 0)
    with torch.no_grad():
        value = OPS[op](*map(torch.nn.Parameter, samples))
    monkeypatch.undo()
    torch.testing.assert_close(value, expected, rtol=0, atol=0)


@pytest.mark.parametrize("op", OPS)
def test_negated_views_are_the_numbers_they_stand_for(op, samples, backend, device):
    def call(r, g):
        return OPS[op](r, g, backend=backend)

    inputs = [value.to(device) for value in samples]
    views = [torch.complex(torch.zeros_like(z), -z).conj().imag for z in inputs]
    assert all(view.is_neg() for view in views)
    assert_equal(derivatives_of(call, *views), derivatives_of(call, *inputs))
    assert torch.equal(call(views[0], inputs[1]), call(*inputs))
    assert torch.equal(call(inputs[0], views[1]), call(*inputs))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("op", OPS)
def test_zeros_without_memory_are_zeros(op, which, samples, backend, device):
    inputs = [value.to(device) for value in samples]
    written = list(inputs)
    written[which] = torch.zeros_like(inputs[which])
    inputs[which] = torch._efficientzerotensor(inputs[which].shape, device=device)
    if op == "weighted_mmd" and which == 0:
        pytest.skip("weights of zero")
    assert torch.equal(OPS[op](*inputs, backend=backend), OPS[op](*written, backend=backend))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace")
@pytest.mark.parametrize("op", OPS)
def test_a_trace_records_the_op(op, samples):
    traced = torch.jit.trace(OPS[op], samples)
    other = testing.samples(6, 5, 3, seed=1)
    found, expected = (derivatives_of(call, *other) for call in (traced, OPS[op]))
    for one, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(one, wanted)


RELOADED = """
import importlib, sys
import torch
import cgm_fast

x, y = torch.randn(6, 3, requires_grad=True), torch.randn(5, 3)
before = cgm_fast.mmd(x, y)
old = cgm_fast.mmd
import cgm_fast.ops.mmd.ops
importlib.reload(sys.modules["cgm_fast.ops.mmd.ops"])
importlib.reload(sys.modules["cgm_fast.ops.mmd.autograd"])
for name in [name for name in sys.modules if name.split(".")[0] == "cgm_fast"]:
    del sys.modules[name]
import cgm_fast
assert cgm_fast.mmd is not old
for call in (cgm_fast.mmd, old):
    assert torch.equal(call(x, y), before)
    assert torch.equal(torch.vmap(call)(x[None], y[None])[0], before)
    assert torch.func.grad(call)(x.detach(), y).any()
cgm_fast.cgm_loss(x, y).loss.backward()
"""


def test_the_package_can_be_imported_anew():
    done = subprocess.run([sys.executable, "-c", RELOADED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
