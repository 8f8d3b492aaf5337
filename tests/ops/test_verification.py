"""The automatic choice on a GPU: only what has passed a check on the device is chosen.

Here the CPU is the GPU, and stand-ins that count and falsify are the implementations on it.
"""

import dataclasses
import re
import sys
import threading
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch

import cgm_fast
from cgm_fast import doctor
from cgm_fast.cgm.cli import main
from cgm_fast.ops import backends, crossovers, verification
from cgm_fast.testing import derivatives, prototypes, relative_l2, samples

CPU = torch.device("cpu")


class StandIn:
    """Implementations `name` of all ops: the reference, `falsify`ed; counts their calls."""

    def __init__(self, name, monkeypatch):
        self.calls, self.falsify, self.lock = {}, lambda results, problem: results, threading.Lock()
        for op in backends.OPS:
            module = types.ModuleType(f"cgm_fast.ops.{op}.{name}")
            reference = import_module(f"cgm_fast.ops.{op}.reference")
            for step in ("fwd", "hvp"):
                if hasattr(reference, step):
                    setattr(module, step, self.wrapped(op, step, getattr(reference, step)))
            # A spec of its own, for whoever asks whether it is there.
            module.__spec__ = find_spec(f"cgm_fast.ops.{op}.reference")
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def wrapped(self, op, step, function):
        def counting(problem, *rest):
            with self.lock:
                self.calls[op, step] = self.calls.get((op, step), 0) + 1
            return self.falsify(function(problem, *rest), problem)

        return counting


@pytest.fixture
def gpu(monkeypatch):
    """The CPU as a GPU with two checked implementations, neither native nor by products."""
    for name, backend in list(backends.BACKENDS.items()):
        served = dataclasses.replace(
            backend, devices=None if name == "reference" else (), on_request=()
        )
        if name in ("cuda", "triton"):
            served = dataclasses.replace(served, devices=("cpu",), why_unavailable=lambda: None)
        monkeypatch.setitem(backends.BACKENDS, name, served)
    for owner, name in (
        (backends, "_availability"), (backends, "_found"), (backends, "_picked"),
        (backends, "_last"), (verification, "_outcomes"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, {})
    monkeypatch.setattr(backends, "_warned", set())
    monkeypatch.setattr(crossovers, "TABLE", ())
    crossovers.first.cache_clear()
    yield types.SimpleNamespace(
        cuda=StandIn("cuda", monkeypatch), triton=StandIn("triton", monkeypatch)
    )
    crossovers.first.cache_clear()


def call(d=3, n=20, **how):
    x, y = samples(n, 10, d)
    return cgm_fast.mmd(x.requires_grad_(), y, **how)


@pytest.fixture
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("silent")
def test_what_passes_is_chosen_and_checked_once(gpu):
    for _ in range(3):
        call()
    assert cgm_fast.last_backend("mmd") == "cuda"
    assert gpu.cuda.calls["mmd", "fwd"] == 1 + 3
    call(n=21)  # of the same regime
    assert gpu.cuda.calls["mmd", "fwd"] == 1 + 4
    call(d=4)  # of another
    assert gpu.cuda.calls["mmd", "fwd"] == 2 + 5
    assert not gpu.triton.calls


@pytest.mark.usefixtures("silent")
def test_every_step_of_every_op_is_checked(gpu):
    r, g, labels = prototypes(20, 3, 4)
    noise = torch.randn(2, 20, 4)
    calls = (
        lambda r, g: cgm_fast.mmd(r, g),
        lambda r, g: cgm_fast.prototype_margin(r, g, labels).loss,
        lambda r, g: cgm_fast.cgm_loss(r, g, noise=noise).loss,
        lambda r, g: cgm_fast.kernel_product(r, g, g[:, :2]).square().sum(),
    )
    for function in calls:
        derivatives(function, (r, g))
    for op in backends.OPS:
        assert cgm_fast.last_backend(op) == "cuda"
        assert gpu.cuda.calls[op, "fwd"] >= 2
    assert all(gpu.cuda.calls[op, "hvp"] >= 2 for op in backends.OPS[:3])
    assert {key[0] for key in verification._outcomes} == set(backends.OPS)


def raises(error):
    def falsify(results, problem):
        raise error

    return falsify


WRONG = {
    "loss is off by 1.0e-02, allowed": lambda v, _: v._replace(loss=v.loss * 1.01),
    "z is off by": lambda v, _: v._replace(z=v.z.flip(0)),
    "loss is off by nan": lambda v, _: v._replace(loss=v.loss * float("nan")),
    "z has shape None, not": lambda v, _: v._replace(z=None),
    "loss has shape [1], not []": lambda v, _: v._replace(loss=v.loss[None]),
    "RuntimeError: no kernel image": raises(RuntimeError("no kernel image\nis available")),
}
WRONG["z is off by 1.0e-02"] = lambda v, _: v._replace(z=None if v.z is None else v.z * 1.01)


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_pass_is_not_chosen(what, gpu):
    gpu.cuda.falsify = WRONG[what]
    told = r"mmd: backend 'cuda' is not used on cpu: .*" + re.escape(what)
    with pytest.warns(backends.BackendWarning, match=told + ".*'triton' runs instead") as seen:
        value = call()
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
    assert cgm_fast.last_backend("mmd") == "triton"
    assert gpu.cuda.calls["mmd", "fwd"] == 1
    assert relative_l2(value.detach(), call(backend="reference").detach()) < 1e-6


def test_the_reference_is_what_remains(gpu):
    gpu.cuda.falsify = gpu.triton.falsify = raises(RuntimeError("broken"))
    with pytest.warns(backends.BackendWarning) as seen:
        call()
    assert cgm_fast.last_backend("mmd") == "reference"
    assert [("'reference' runs instead" in str(one.message)) for one in seen] == [True, True]


@pytest.mark.usefixtures("silent")
def test_what_an_implementation_does_not_take_is_no_failure(gpu):
    gpu.cuda.falsify = raises(NotImplementedError("no float64"))
    call()
    assert cgm_fast.last_backend("mmd") == "triton"


def test_one_regime_that_fails_leaves_the_others(gpu):
    def wide_is_wrong(value, problem):
        return value._replace(loss=value.loss + 1) if problem.x.shape[-1] > 64 else value

    gpu.cuda.falsify = wide_is_wrong
    call()
    assert cgm_fast.last_backend("mmd") == "cuda"
    with pytest.warns(backends.BackendWarning, match="'cuda' is not used"):
        call(d=70)
    assert cgm_fast.last_backend("mmd") == "triton"
    call()
    assert cgm_fast.last_backend("mmd") == "cuda"


@pytest.mark.usefixtures("silent")
def test_an_explicit_request_is_not_checked(gpu):
    gpu.cuda.falsify = lambda value, _: value._replace(loss=value.loss * 2)
    wrong, right = call(backend="cuda"), call(backend="reference")
    assert wrong.item() == pytest.approx(2 * right.item())
    assert gpu.cuda.calls["mmd", "fwd"] == 1


def test_nothing_is_checked_while_a_graph_is_captured(gpu, monkeypatch):
    monkeypatch.setattr(verification, "capturing", lambda device: True)
    with pytest.warns(backends.BackendWarning, match="make such a call before the capture"):
        call()
    assert cgm_fast.last_backend("mmd") == "reference"
    assert not gpu.cuda.calls
    monkeypatch.setattr(verification, "capturing", lambda device: False)
    call()
    assert cgm_fast.last_backend("mmd") == "cuda"
    monkeypatch.setattr(verification, "capturing", lambda device: True)
    call(n=19)  # what has passed before is captured
    assert cgm_fast.last_backend("mmd") == "cuda"


def test_out_of_memory_is_the_callers(gpu):
    gpu.cuda.falsify = raises(torch.OutOfMemoryError("all of it"))
    with pytest.raises(torch.OutOfMemoryError):
        call()
    gpu.cuda.falsify = lambda value, _: value
    call()
    assert cgm_fast.last_backend("mmd") == "cuda"


def test_threads_share_one_check(gpu):
    start = threading.Barrier(8)

    def first(i):
        start.wait()
        return call().item()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(first, range(8)))) == 1
    assert gpu.cuda.calls["mmd", "fwd"] == 1 + 8


def test_a_check_leaves_the_random_numbers_alone(gpu):
    before = torch.get_rng_state()
    call()
    assert torch.equal(torch.get_rng_state(), before)


def test_crossovers_come_before_the_usual_order(gpu, monkeypatch):
    row = crossovers.Row("cpu", "mmd", 8, 100, ("triton",), "predicted")
    monkeypatch.setattr(crossovers, "TABLE", (row,))
    for d, n, name in ((3, 200, "cuda"), (8, 99, "cuda"), (8, 100, "triton"), (9, 101, "triton")):
        call(d=d, n=n)
        assert cgm_fast.last_backend("mmd") == name, (d, n)
    r, g, _ = prototypes(200, 3, 10)
    cgm_fast.prototype_margin(r, g)
    assert cgm_fast.last_backend("prototype_margin") == "cuda"


def test_a_crossover_to_what_does_not_pass(gpu, monkeypatch):
    monkeypatch.setattr(
        crossovers, "TABLE", (crossovers.Row("cpu", "mmd", 8, 0, ("triton",), "predicted"),)
    )
    gpu.triton.falsify = raises(RuntimeError("broken"))
    with pytest.warns(backends.BackendWarning, match="'triton' is not used.*'cuda' runs instead"):
        call(d=10)


def test_products_of_matrices_come_before_the_reference(gpu, monkeypatch):
    """On devices of any type, where an op has them."""
    products = StandIn("matmul", monkeypatch)
    served = dataclasses.replace(backends.BACKENDS["matmul"], devices=None)
    monkeypatch.setitem(backends.BACKENDS, "matmul", served)
    for name in ("cuda", "triton"):
        away = dataclasses.replace(backends.BACKENDS[name], devices=("cuda",))
        monkeypatch.setitem(backends.BACKENDS, name, away)
    assert backends.choose("auto", torch.device("mps")) == "matmul"
    call()
    assert cgm_fast.last_backend("mmd") == "matmul"
    assert products.calls["mmd", "fwd"] == 1  # not checked
    monkeypatch.setattr(backends, "has_module", lambda op, name: (op, name) != ("mmd", "matmul"))
    monkeypatch.setattr(backends, "_found", {})
    call()
    assert cgm_fast.last_backend("mmd") == "reference"
    with pytest.raises(RuntimeError, match="backend='matmul' cannot run here: it has no mmd"):
        call(backend="matmul")


def test_rows_of_the_table_name_what_there_is():
    for row in crossovers.TABLE:
        assert row.op in backends.OPS
        assert set(row.first) <= set(backends.BACKENDS)
        assert row.basis.startswith(("measured", "predicted"))


FLOAT32 = [
    (op, regime)
    for op in backends.OPS
    for regime in verification.regimes(op).every()
    if regime.dtype == torch.float32 and regime.rows < 1000
]


def test_an_example_is_of_its_regime():
    for op, regime in FLOAT32:
        module = verification.regimes(op)
        assert module.regime_of(regime.step, *module.example(regime)) == regime, (op, regime)


def test_a_regime_has_a_line_of_its_own():
    for op in backends.OPS:
        every = list(verification.regimes(op).every())
        assert len(set(every)) <= len(every) < 200
        assert len(set(map(str, every))) == len(set(every))


def test_the_compiled_module_passes():
    if backends.availability()["native"] is not None:
        pytest.skip("no compiled module")
    for op, regime in FLOAT32[::7]:
        assert verification.check(op, regime.step, "native", CPU, regime).reason is None, regime


def test_matrix_products_pass():
    for op, regime in FLOAT32[::5]:
        assert verification.check(op, regime.step, "matmul", CPU, regime).reason is None, regime


def test_matrix_products_are_checked_where_nobody_has_measured_them():
    products = backends.BACKENDS["matmul"]
    assert not products.checked_on("cpu")
    assert all(map(products.checked_on, ("cuda", "mps", "xpu")))


@pytest.mark.parametrize("op", backends.OPS)
def test_emulated_kernels_pass_and_are_chosen(op, monkeypatch):
    """As on a GPU: the CUDA C++ kernels, compiled for the CPU."""
    if backends.availability()["cuda"] is not None or not backends.BACKENDS["cuda"].serves("cpu"):
        pytest.skip("no emulated kernels")
    served = dataclasses.replace(backends.BACKENDS["cuda"], on_request=())
    monkeypatch.setitem(backends.BACKENDS, "cuda", served)
    native = dataclasses.replace(backends.BACKENDS["native"], devices=())
    monkeypatch.setitem(backends.BACKENDS, "native", native)
    for name in ("_found", "_picked"):
        monkeypatch.setattr(backends, name, {})
    for regime in verification.regimes(op).every():
        if regime.dtype == torch.float32 and regime.rows <= 60 and regime.features <= 10:
            outcome = verification.check(op, regime.step, "cuda", CPU, regime)
            assert outcome.reason is None, (regime, outcome)
    r, g, _ = prototypes(20, 3, 4)
    call = {"kernel_product": lambda r, g: cgm_fast.kernel_product(r, g, g).sum()}.get(op)
    call = call or (lambda r, g: getattr(cgm_fast, op)(r, g))
    with warnings.catch_warnings():
        warnings.simplefilter("error", backends.BackendWarning)
        call(r, g)
    assert cgm_fast.last_backend(op) == "cuda"


@pytest.fixture
def few(monkeypatch):
    """Of each op a few regimes, and its reference alone."""
    for op in backends.OPS:
        module = verification.regimes(op)
        some = [regime for of, regime in FLOAT32 if of == op][:2]
        monkeypatch.setattr(module, "every", lambda some=some: iter(some))
    monkeypatch.setattr(doctor, "usable", lambda device: iter(["reference"]))
    monkeypatch.setattr(doctor, "_devices", lambda: [CPU])


@pytest.mark.usefixtures("few")
def test_doctor_verifies(capsys):
    assert main(["doctor", "--verify"]) == 0
    shown = capsys.readouterr().out
    for op in backends.OPS:
        assert re.search(rf"cpu +reference +{op} +fwd +float32 +2 ", shown)
    assert "all passed" in shown


@pytest.mark.usefixtures("few")
def test_doctor_tells_what_is_wrong(capsys, monkeypatch):
    reference = import_module("cgm_fast.ops.mmd.reference")
    right = reference.fwd

    def wrong(problem, wanted):
        value = right(problem, wanted)
        off = problem.x.dtype == torch.float32
        return value._replace(loss=value.loss * 1.5) if off else value

    monkeypatch.setattr(reference, "fwd", wrong)
    assert main(["doctor", "--verify"]) == 1
    shown = capsys.readouterr().out
    assert "FAILED reference on cpu, mmd: fwd float32 d=2 rows=60: loss is off by 5.0e-01" in shown
    assert "4 failed" in shown  # cgm_loss has it too
