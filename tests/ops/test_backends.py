"""Which implementation a call gets: chosen, asked for, absent; and what is said about it."""

import dataclasses

import pytest
import torch

import cgm_fast
from cgm_fast.ops import backends

OPS = {
    "mmd": lambda r, g, **how: cgm_fast.mmd(r, g, **how),
    "prototype_margin": lambda r, g, **how: cgm_fast.prototype_margin(r, g, **how),
    "cgm_step": lambda r, g, **how: cgm_fast.cgm_loss(r, g, **how),
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
    ]
    assert cgm_fast.last_backend(op) == usable[0]


def test_automatic_passes_over_what_cannot_run(op, pretend):
    pretend("native")
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
    assert cgm_fast.last_backend("cgm_step") is None


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
