"""What implementations for GPUs share, as far as a machine without one can tell."""

import gc
import importlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

import cgm_fast
from cgm_fast.ops import backends, gpu
from cgm_fast.ops.cuda import launch

CPU = torch.device("cpu")


@pytest.fixture
def no_constants(monkeypatch):
    monkeypatch.setattr(gpu, "_constants", {})
    monkeypatch.setattr(gpu, "_captured", set())


@pytest.mark.usefixtures("no_constants")
def test_constants_of_new_bandwidths_do_not_pile_up():
    for i in range(5000):
        assert gpu.constants((float(i),), torch.float32, CPU).tolist() == [float(i)]
    assert len(gpu._constants) <= gpu._MOST_CONSTANTS
    assert gpu.constants((4999.0,), torch.float32, CPU) is gpu.constants(
        (4999.0,), torch.float32, CPU
    )


@pytest.mark.usefixtures("no_constants")
def test_constants_that_a_graph_holds_are_kept(monkeypatch):
    gpu.constants((1.0,), torch.float32, CPU)
    monkeypatch.setattr(gpu, "capturing", lambda device: True)
    held = gpu.constants((1.0,), torch.float32, CPU)
    monkeypatch.setattr(gpu, "capturing", lambda device: False)
    for i in range(5000):
        gpu.constants((2.0 + i,), torch.float32, CPU)
    assert gpu.constants((1.0,), torch.float32, CPU) is held


def test_known_calls_do_not_pile_up():
    known = gpu.Known()
    for i in range(5000):
        assert known.of(i, CPU, lambda value: value + 1, i) == i + 1
    assert len(known) <= gpu._MOST_CONSTANTS
    assert known.of(4999, CPU, lambda value: None, 0) == 5000  # what is there is not made again


@pytest.mark.usefixtures("no_constants")
def test_a_captured_call_keeps_its_constants(monkeypatch):
    """Though a call like it has been known: the graph holds their addresses for good."""
    known = gpu.Known()
    make = lambda: gpu.constants((1.0,), torch.float32, CPU)  # noqa: E731
    held = known.of("call", CPU, make)
    assert not gpu._captured
    monkeypatch.setattr(gpu, "capturing", lambda device: True)
    assert known.of("call", CPU, make) is held
    assert len(gpu._captured) == 1


def test_the_raw_stream_is_the_current_one(monkeypatch):
    """With torch's short way to it, and without."""
    device = torch.device("cuda", 1)
    monkeypatch.setattr(gpu, "_raw_stream", lambda index: 100 + index)
    assert gpu.raw_stream(device) == 101
    monkeypatch.setattr(gpu, "_raw_stream", None)
    current = {device: SimpleNamespace(cuda_stream=7)}
    monkeypatch.setattr(torch.cuda, "current_stream", current.__getitem__)
    assert gpu.raw_stream(device) == 7
    assert gpu.raw_stream(CPU) == 0


class Stream:
    """Of torch's, what `outside_graphs` uses."""

    current = threading.local()

    def __init__(self, device):
        self.synchronized = False

    def __enter__(self):
        Stream.current.value = self

    def __exit__(self, *_):
        del Stream.current.value

    def synchronize(self):
        Stream.last = self


def test_what_lasts_is_made_outside_of_a_graph(monkeypatch):
    """A graph's memory serves the thread, or the stream, that it is captured from."""
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    modes = []
    driver = SimpleNamespace(
        cuThreadExchangeStreamCaptureMode=lambda mode: modes.append(
            (threading.get_ident(), mode._obj.value)
        )
    )
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: driver)
    made = []

    def make():
        made.append((threading.get_ident(), Stream.current.value))
        return torch.zeros(1)

    assert gpu.outside_graphs(make, torch.device("cuda", 0)) == 0
    ((thread, stream),) = made
    assert thread != threading.get_ident()
    # CU_STREAM_CAPTURE_MODE_RELAXED: another thread's capture does not forbid this one to allocate.
    assert modes == [(thread, 2)]
    assert Stream.last is stream  # zeros are there for every stream


@pytest.mark.parametrize("captured", [True, False])
def test_threads_have_counters_of_their_own(captured, monkeypatch):
    """Each captured call, and each stream: here every thread's identity."""
    for name in ("_pools", "_next", "_of_stream"):
        monkeypatch.setattr(launch, name, {})
    monkeypatch.setattr(launch, "capturing", lambda device: captured)
    streams = iter(range(1 << 20))
    monkeypatch.setattr(launch, "stream", lambda device: next(streams))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: launch.counters(2, CPU), range(20000)))
    finally:
        sys.setswitchinterval(interval)
    assert len({value.data_ptr() for value in found}) == len(found)


SAMPLES = {
    "mmd": lambda name: cgm_fast.mmd(*(random(n, 5, grad=True) for n in (9, 7)), backend=name),
    "prototype_margin": lambda name: (
        (
            cgm_fast.prototype_margin(
                random(9, 5, grad=True), random(3, 5, grad=True), backend=name
            )
        ).loss
    ),
    "cgm_loss": lambda name: (
        (cgm_fast.cgm_loss(random(9, 5, grad=True), random(3, 5, grad=True), backend=name)).loss
    ),
    "kernel_product": lambda name: cgm_fast.kernel_product(
        *(random(n, 5, grad=True) for n in (9, 7)), random(7, 2), backend=name
    ).sum(),
}


def random(*shape, grad=False):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), requires_grad=grad)


def live_tensors():
    gc.collect()
    return {id(each): each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)}


@pytest.mark.usefixtures("no_constants")
@pytest.mark.parametrize("op", SAMPLES)
@pytest.mark.parametrize("name", ["cuda", "triton", "reference", "matmul"])
def test_a_first_call_leaves_nothing_in_a_pool(op, name, monkeypatch):
    """As in `torch.compile(mode="reduce-overhead")`, where a first call may allocate in a pool that
    the graph writes over: what outlives the call is made outside of it (`outside_graphs`).
    """
    if backends.availability()[name] is not None or not backends.has_module(op, name):
        pytest.skip(f"no {op} by {name} here")
    for cache in ("_pools", "_next", "_of_stream"):
        monkeypatch.setattr(launch, cache, {})
    for module in ("mmd", "cgm_loss"):
        importlib.import_module(f"cgm_fast.ops.{module}.cuda")._calls.clear()
    made = []

    def outside(make, device):
        value = make()
        made.append(value)
        return value

    for module in (gpu, launch):
        monkeypatch.setattr(module, "outside_graphs", outside)
    before = live_tensors()
    SAMPLES[op](name).backward()
    left = [each for key, each in live_tensors().items() if key not in before]
    outside_of_pool = {each.untyped_storage().data_ptr() for each in made}
    assert made or name in ("reference", "matmul")
    assert [each for each in left if each.untyped_storage().data_ptr() not in outside_of_pool] == []
