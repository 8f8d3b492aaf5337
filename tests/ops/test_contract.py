"""What every op promises, whichever implementation computes it, beyond being right."""

import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from torch import library
from torch.utils._python_dispatch import TorchDispatchMode

import cgm_fast
from cgm_fast.testing import LAYOUTS, derivatives, prototypes, sample_weights, samples


class Case(NamedTuple):
    """An op's inputs and a function of them."""

    inputs: tuple[torch.Tensor, ...]
    call: callable


def some(rows, backend, device):
    """Rows of a case; a fifth in Triton's interpreter, which is slow."""
    return rows // 5 if backend == "triton" and device == "cpu" else rows


def mmd_case(backend, device, dtype=torch.float32, **option):
    x, y = samples(some(333, backend, device), 100, 10, dtype=dtype, device=device)
    return Case((x, y), lambda x, y: cgm_fast.mmd(x, y, backend=backend, **option))


def weighted_mmd_case(backend, device, dtype=torch.float32):
    x, y = samples(33, 31, 10, batch=2, dtype=dtype, device=device)
    w = sample_weights(33, batch=2, dtype=dtype, device=device)
    sigma = torch.tensor([1.0, 2.0], dtype=dtype, device=device)

    def call(x, y, w, sigma):
        return cgm_fast.mmd(
            x, y, bandwidth=sigma, estimator="unbiased", x_weights=w, backend=backend
        )

    return Case((x, y, w, sigma), call)


def prototype_margin_case(backend, device, dtype=torch.float32):
    r, g, labels = prototypes(some(300, backend, device), 100, 10, dtype=dtype, device=device)
    return Case((r, g), lambda r, g: cgm_fast.prototype_margin(r, g, labels, backend=backend).loss)


def cgm_loss_case(backend, device, dtype=torch.float32):
    rows = some(300, backend, device)
    r, g, _ = prototypes(rows, 10, 10, dtype=dtype, device=device)
    noise = torch.randn(2, rows, 10, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    return Case((r, g), lambda r, g: cgm_fast.cgm_loss(r, g, noise=noise, backend=backend).loss)


CASES = {
    "mmd": mmd_case,
    "weighted_mmd": weighted_mmd_case,
    "prototype_margin": prototype_margin_case,
    "cgm_loss": cgm_loss_case,
}


@pytest.fixture(params=list(CASES))
def make(request):
    return CASES[request.param]


def leaves(inputs):
    return [value.detach().requires_grad_() for value in inputs]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow_interpreted
def test_bitwise_the_same_from_run_to_run(make, backend, device):
    case = make(backend, device)
    first = derivatives(case.call, case.inputs)
    for _ in range(3):
        again = derivatives(case.call, case.inputs)
        assert torch.equal(first[0], again[0])
        assert_same(first[1], again[1])
        assert_same(first[2], again[2])


@pytest.mark.slow_interpreted
def test_without_gradients_the_value_is_the_same(make, backend, device):
    case = make(backend, device)
    value = case.call(*leaves(case.inputs)).detach()
    assert torch.equal(case.call(*case.inputs), value)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            inside = case.call(*leaves(case.inputs))
            assert torch.equal(inside, value)
            assert not inside.requires_grad


@pytest.mark.slow_interpreted
def test_autocast_changes_nothing(make, backend, device):
    case = make(backend, device)
    inputs = leaves(case.inputs)
    value = case.call(*inputs)
    gradient = torch.autograd.grad(value.sum(), inputs)
    with torch.autocast(device, torch.bfloat16):
        inside = case.call(*inputs)
        assert torch.equal(inside, value)
        assert_same(torch.autograd.grad(inside.sum(), inputs), gradient)


@pytest.mark.slow_interpreted
def test_autocast_promotes_mixed_dtypes(make, backend, device):
    case = make(backend, device)
    mixed = (case.inputs[0].bfloat16(), *case.inputs[1:])
    promoted = (mixed[0].float(), *mixed[1:])
    inputs = leaves(mixed)
    with torch.autocast(device, torch.bfloat16):
        value = case.call(*inputs)
    assert torch.equal(value.detach(), case.call(*promoted))
    gradient = torch.autograd.grad(value.sum(), inputs)
    assert [part.dtype for part in gradient] == [part.dtype for part in inputs]


@pytest.mark.slow_interpreted
def test_a_third_derivative_raises(make, backend, device):
    case = make(backend, device)
    inputs = leaves(case.inputs)
    first = torch.autograd.grad(case.call(*inputs).sum(), inputs, create_graph=True)
    scalar = sum(part.square().sum() for part in first)
    second = torch.autograd.grad(scalar, inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivatives"):
        torch.autograd.grad(sum(part.sum() for part in second), inputs)


def test_backward_scales_with_what_comes_from_above(make, backend, device):
    case = make(backend, device)
    inputs = leaves(case.inputs)
    value = case.call(*inputs).sum()
    plain = torch.autograd.grad(value, inputs, retain_graph=True)
    # Doubling is exact.
    assert_same(torch.autograd.grad(2 * value, inputs), [2 * part for part in plain])


def compiled(call, **option):
    torch.compiler.reset()
    return torch.compile(call, fullgraph=True, **option)


@pytest.mark.slow_interpreted
def test_compiles_whole_forward_and_backward(make, backend, device):
    case = make(backend, device)
    inputs = leaves(case.inputs)
    eager = case.call(*inputs)
    call = compiled(case.call, backend="aot_eager")
    value = call(*inputs)
    assert torch.equal(value, eager)
    expected = torch.autograd.grad(eager.sum(), inputs)
    assert_same(torch.autograd.grad(value.sum(), inputs), expected)
    assert torch.equal(call(*case.inputs), eager.detach())


RESHAPED = {
    "mmd": lambda r, g: cgm_fast.mmd(r, g),
    "unbiased": lambda r, g: cgm_fast.mmd(r, g, estimator="unbiased"),
    "prototype_margin": lambda r, g: cgm_fast.prototype_margin(r, g).loss,
    "cgm_loss": lambda r, g: cgm_fast.cgm_loss(r, g, sigma2=0.0).loss,
    "kernel_product": lambda r, g: cgm_fast.kernel_product(r, g, g).square().sum(),
}


@pytest.mark.parametrize("op", RESHAPED)
def test_compiles_for_a_second_shape(op, device):
    # The second shape makes torch.compile take sizes for symbols.
    call = compiled(RESHAPED[op], backend="aot_eager")
    for rows in (33, 31, 17):
        r, g, _ = prototypes(rows, rows + 1, 5, device=device)
        inputs = leaves((r, g))
        value, eager = call(*inputs), RESHAPED[op](*inputs)
        assert torch.equal(value, eager)
        assert_same(torch.autograd.grad(value, inputs), torch.autograd.grad(eager, inputs))


@pytest.mark.parametrize("op", RESHAPED)
def test_compiles_where_a_tensor_is_given_twice(op, device):
    (x,) = leaves((torch.randn(6, 3, device=device),))
    torch.manual_seed(1)  # cgm_loss draws
    value = compiled(lambda x: RESHAPED[op](x, x), backend="aot_eager")(x)
    eager = RESHAPED[op](x, x)
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (value, eager)))


def test_compiles_with_inductor(device):
    case = mmd_case("auto", device)
    inputs = leaves(case.inputs)
    eager = case.call(*inputs)
    value = compiled(case.call)(*inputs)
    assert torch.equal(value, eager)
    expected = torch.autograd.grad(eager, inputs)
    assert_same(torch.autograd.grad(value, inputs), expected)


class Recorder(TorchDispatchMode):
    """The arguments of every call of one of our registered ops."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "cgm_fast":
            # Copies that keep their strides, without a graph.
            kept = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
            self.calls.append((func, tuple(kept)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
def test_opcheck_of_every_registered_op(make, layout, backend, device, interpreted):
    if interpreted:
        pytest.skip("a minute in the interpreter; ops are registered once for all implementations")
    case = make(backend, device)
    inputs = [LAYOUTS[layout](z) if z.dim() > 1 else z for z in case.inputs]
    with Recorder() as recorder:
        derivatives(case.call, inputs)
    assert len({func for func, _ in recorder.calls}) == 2  # forward and backward
    for func, args in recorder.calls:
        library.opcheck(func, args)


MEMORY = """
import re
import torch
import cgm_fast

def resident(which):  # bytes; VmRSS now or VmHWM at its highest
    # Not getrusage: its maximum survives exec, so it starts with the parent's.
    text = open("/proc/self/status").read()
    return 1024 * int(re.search(which + r":\\s+(\\d+) kB", text).group(1))

def step(n):
    # Every op makes n * n pairs: mmd those of the rows of x and y together.
    sizes = n // 2, n // 2, n, n
    x, y, r, g = (torch.randn(k, 2, device={device!r}, requires_grad=True) for k in sizes)
    cgm_fast.prototype_margin(r, g, backend={backend!r}).loss.backward()
    cgm_fast.cgm_loss(x, y, backend={backend!r}).loss.backward()
    # The second derivative has a score of values for each pair; a quarter of the pairs will do.
    loss = cgm_fast.mmd(x[: n // 4], y[: n // 4], backend={backend!r})
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    grad.square().sum().backward()

step(1000)  # loads and allocates what is wanted once
if {device!r} == "cpu":
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # the highest so far is forgotten
    before = resident("VmRSS")
    step({n})
    print(resident("VmHWM") - before)
else:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step({n})
    print(torch.cuda.max_memory_allocated() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")
def test_nothing_of_the_size_of_all_pairs_is_stored(backend, device, interpreted):
    if interpreted:
        pytest.skip("the interpreter's own memory is not the kernels'")
    n = 4000
    script = MEMORY.format(backend=backend, device=device, n=n)
    grown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert grown.returncode == 0, grown.stderr
    # One float32 matrix of all pairs is 64 MB.
    assert int(grown.stdout) < n * n * 4
