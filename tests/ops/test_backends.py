"""Which implementation a call gets: chosen, asked for, absent; and what is said about it."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

import cgm_fast
from cgm_fast.ops import backends
from cgm_fast.ops.cuda.launch import EMULATION

OPS = {
    "mmd": lambda r, g, **how: cgm_fast.mmd(r, g, **how),
    "prototype_margin": lambda r, g, **how: cgm_fast.prototype_margin(r, g, **how),
    "cgm_loss": lambda r, g, **how: cgm_fast.cgm_loss(r, g, **how),
    "kernel_product": lambda r, g, **how: cgm_fast.kernel_product(r, g, g, **how),
}
R, G = torch.ones(4, 3), torch.zeros(6, 3)
META = torch.device("meta")


@pytest.fixture(params=list(OPS))
def op(request):
    return request.param


@pytest.fixture
def pretend(monkeypatch):
    """Makes an implementation unavailable for a reason, or available (None) without running it."""

    def make(name, reason="its compiler is on holiday"):
        changed = dataclasses.replace(backends.BACKENDS[name], why_unavailable=lambda: reason)
        monkeypatch.setitem(backends.BACKENDS, name, changed)
        monkeypatch.setattr(backends, "_availability", {})

    return make


def test_the_one_asked_for_runs(op, backend, device):
    OPS[op](R.to(device), G.to(device), backend=backend)
    assert cgm_fast.last_backend(op) == backend


def test_automatic_takes_the_first_that_serves_the_device(op, device):
    OPS[op](R.to(device), G.to(device))
    usable = [
        name
        for name, reason in cgm_fast.availability().items()
        if reason is None
        and backends.BACKENDS[name].serves(device)
        and device not in backends.BACKENDS[name].on_request
        and backends.has_module(op, name)
    ]
    assert cgm_fast.last_backend(op) == usable[0]


def test_automatic_passes_over_what_cannot_run(op, pretend):
    pretend("native")
    pretend("matmul")
    OPS[op](R, G)
    assert cgm_fast.last_backend(op) == "reference"


def test_asking_for_what_cannot_run_raises_and_never_falls_back(op, pretend):
    OPS[op](R, G, backend="reference")
    pretend("native")
    message = r"backend='native' cannot run here: its compiler is on holiday"
    with pytest.raises(RuntimeError, match=message):
        OPS[op](R, G, backend="native")
    assert cgm_fast.last_backend(op) == "reference"


def test_asking_for_what_does_not_serve_the_device_raises(pretend):
    pretend("native", None)
    with pytest.raises(ValueError, match="backend='native' runs on cpu tensors, got meta"):
        backends.choose("native", META)
    pretend("matmul")
    assert backends.choose("auto", META) == "reference"


def test_an_unknown_name_lists_the_valid_ones(op):
    names = ", ".join(repr(name) for name in ("auto", *backends.BACKENDS))
    with pytest.raises(ValueError, match=f"backend must be one of {names}, got 'quick'"):
        OPS[op](R, G, backend="quick")


def test_availability_gives_the_reason(pretend):
    pretend("native", "no such thing")
    assert list(cgm_fast.availability()) == list(backends.BACKENDS)
    assert cgm_fast.availability()["native"] == "no such thing"
    assert cgm_fast.availability()["reference"] is None


def test_availability_is_a_copy():
    cgm_fast.availability()["reference"] = "broken"
    assert cgm_fast.availability()["reference"] is None


def test_the_environment_replaces_auto_and_nothing_else(op, monkeypatch, backend, device):
    r, g = R.to(device), G.to(device)
    monkeypatch.setenv("CGM_FAST_BACKEND", "reference")
    OPS[op](r, g)
    assert cgm_fast.last_backend(op) == "reference"
    OPS[op](r, g, backend=backend)
    assert cgm_fast.last_backend(op) == backend
    monkeypatch.setenv("CGM_FAST_BACKEND", "auto")
    OPS[op](r, g)
    monkeypatch.delenv("CGM_FAST_BACKEND")
    chosen = cgm_fast.last_backend(op)
    OPS[op](r, g)
    assert cgm_fast.last_backend(op) == chosen


def test_the_environment_is_held_to_the_same_rules(op, monkeypatch, pretend):
    monkeypatch.setenv("CGM_FAST_BACKEND", "quick")
    with pytest.raises(ValueError, match=r"CGM_FAST_BACKEND must be one of 'auto'.*got 'quick'"):
        OPS[op](R, G)
    pretend("native")
    monkeypatch.setenv("CGM_FAST_BACKEND", "native")
    with pytest.raises(RuntimeError, match="CGM_FAST_BACKEND='native' cannot run here"):
        OPS[op](R, G)


def test_before_its_first_call_an_op_has_no_last_implementation(monkeypatch):
    monkeypatch.setattr(backends, "_last", {})
    assert cgm_fast.last_backend() is None
    cgm_fast.mmd(R, G)
    assert cgm_fast.last_backend() == cgm_fast.last_backend("mmd") is not None
    assert cgm_fast.last_backend("cgm_loss") is None


@pytest.mark.parametrize(
    ("triton", "numpy", "runs"),
    [
        ("3.6.0", "2.3.5", True),
        ("3.6.0", "2.4.0", False),
        ("3.2.0", "3.0.0", False),
        ("3.7.0", "2.5.2", True),
        ("3.10.0+git1234", "2.4.0rc1", True),
    ],
)
def test_an_interpreter_that_this_numpy_breaks(triton, numpy, runs, monkeypatch):
    monkeypatch.setattr("numpy.__version__", numpy)
    reason = backends._why_not_interpreted(triton)
    assert (reason is None) == runs
    if not runs:
        assert f"Triton {triton} cannot run with numpy {numpy}; pip install 'numpy<2.4'" in reason


FIRST_CALL = """
import sys
import torch

def refuse(*args, **how):
    raise AssertionError("a GPU was asked about")

for name in ("is_available", "device_count", "get_device_capability", "init", "_lazy_init"):
    setattr(torch.cuda, name, refuse)
import cgm_fast

x, y = torch.randn(33, 5, requires_grad=True), torch.randn(31, 5)
cgm_fast.mmd(x, y).backward()
cgm_fast.prototype_margin(x, y).loss.backward()
cgm_fast.cgm_loss(x, y).loss.backward()
cgm_fast.mmd(x, y, backend="reference").backward()
assert "triton" not in sys.modules
"""


def test_a_call_on_the_cpu_asks_no_gpu_and_imports_no_triton():
    # Once CUDA has started, a process cannot fork.
    plain = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", EMULATION)}
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, env=plain
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_of_unlike_gpus_each_is_asked_for_itself(name, pretend, monkeypatch):
    pretend(name, None)
    capability = {0: (9, 0), 1: (7, 5)}
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: capability[torch.device(device).index]
    )
    monkeypatch.setattr(torch.version, "hip", None)
    changed = dataclasses.replace(backends.BACKENDS[name], devices=("cuda",))
    monkeypatch.setitem(backends.BACKENDS, name, changed)
    for other in {"cuda", "triton", "matmul"} - {name}:
        pretend(other)
    new, old = torch.device("cuda:0"), torch.device("cuda:1")
    assert backends.choose(name, new) == backends.choose("auto", new) == name
    assert backends.choose("auto", old) == "reference"
    message = f"backend='{name}' cannot run here: cuda:1 has compute capability 7.5, and 8.0"
    with pytest.raises(RuntimeError, match=message):
        backends.choose(name, old)
