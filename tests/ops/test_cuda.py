"""What only a CUDA GPU can show, for every implementation that runs there on request."""

import os
import subprocess
import sys
import time

import pytest
import torch

import cgm_fast
from cgm_fast.ops import backends
from cgm_fast.testing import derivatives, prototypes, relative_l2, samples

if not torch.cuda.is_available():
    pytest.skip("torch finds no CUDA GPU", allow_module_level=True)

pytestmark = pytest.mark.gpu
GPU_BACKENDS = [
    name
    for name, backend in backends.BACKENDS.items()
    if backend.devices is not None and "cuda" in backend.devices
]


@pytest.fixture(params=GPU_BACKENDS)
def gpu_backend(request):
    if reason := backends.availability()[request.param]:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


def mmd(x, y, backend):
    return cgm_fast.mmd(x, y, backend=backend)


def margin(r, g, backend):
    return cgm_fast.prototype_margin(r, g, backend=backend).loss


def product(x, y, backend):
    return cgm_fast.kernel_product(x, y, y[:, :3], backend=backend).square().sum()


def latent_loss(r, g, backend):
    noise = torch.randn(2, *r.shape, generator=torch.Generator("cpu").manual_seed(1)).to(r.device)
    return lambda r, g: cgm_fast.cgm_loss(r, g, noise=noise, backend=backend).loss


def inputs(op, device="cuda", seed=0):
    if op in ("mmd", "kernel_product"):
        return samples(500, 300, 10, device=device, seed=seed)
    return prototypes(256, 20, 10, device=device, seed=seed)[:2]


def function(op, backend, device="cuda"):
    if op == "cgm_loss":
        return latent_loss(*inputs(op, device), backend)
    plain = {"mmd": mmd, "prototype_margin": margin, "kernel_product": product}[op]
    return lambda a, b: plain(a, b, backend)


OPS = ("mmd", "prototype_margin", "cgm_loss", "kernel_product")


@pytest.mark.parametrize("op", OPS)
def test_a_cuda_graph_computes_anew_at_every_replay(op, gpu_backend):
    call = function(op, gpu_backend)
    static = [value.clone().requires_grad_() for value in inputs(op)]

    def train():
        loss = call(*static)
        return loss, *torch.autograd.grad(loss, static)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            train()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = train()
    for seed in (1, 2):
        for value, new in zip(static, inputs(op, seed=seed), strict=True):
            value.data.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        for value, wanted in zip(captured, train(), strict=True):
            assert torch.equal(value, wanted)


@pytest.mark.parametrize("op", OPS)
def test_another_stream_waits_for_its_own_work_alone(op, gpu_backend):
    call = function(op, gpu_backend)
    a, b = inputs(op)
    expected = derivatives(call, (a, b), order=1)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late_a = torch.full_like(a, float("nan"))
        torch.cuda._sleep(int(2e8))  # about a tenth of a second
        late_a.copy_(a)
        found = derivatives(call, (late_a, b), order=1)
    torch.cuda.synchronize()
    assert torch.equal(found[0], expected[0])
    for value, wanted in zip(found[1], expected[1], strict=True):
        assert torch.equal(value, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("op", OPS)
def test_the_second_of_two_devices(op, gpu_backend):
    first = derivatives(function(op, gpu_backend), inputs(op), order=2)
    device = torch.device("cuda", 1)
    second = derivatives(function(op, gpu_backend, device), inputs(op, device), order=2)
    assert second[0].device == device
    for value, wanted in zip(second[1] + second[2], first[1] + first[2], strict=True):
        assert relative_l2(value.cpu(), wanted.cpu()) <= 1e-6


@pytest.mark.parametrize("op", OPS)
def test_one_graph_of_torch_compile(op, gpu_backend):
    call = function(op, gpu_backend)
    compiled = torch.compile(call, fullgraph=True)
    expected = derivatives(call, inputs(op), order=1)
    found = derivatives(compiled, inputs(op), order=1)
    for value, wanted in zip(found[1], expected[1], strict=True):
        assert torch.equal(value, wanted)


@pytest.mark.slow
def test_a_million_rows_in_memory_that_grows_with_rows(gpu_backend):
    n = 1_000_000
    x, y = (value.requires_grad_() for value in samples(n, n, 10, device="cuda"))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = cgm_fast.mmd(x, y, backend=gpu_backend)
    loss.backward()
    torch.cuda.synchronize()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()
    copies = 20  # of all rows, padded to 16 features: samples twice, sums by splits, gradients
    assert torch.cuda.max_memory_allocated() - before <= copies * 4 * 2 * n * 16


FIRST_CALL = """
import time, torch, cgm_fast
x = torch.randn(1000, 10, device="cuda", requires_grad=True)
y = torch.randn(900, 10, device="cuda")
torch.cuda.synchronize()
start = time.perf_counter()
cgm_fast.mmd(x, y, backend="{backend}").backward()
torch.cuda.synchronize()
print(time.perf_counter() - start)
"""


@pytest.mark.slow
def test_the_first_call_with_a_warm_cache_takes_less_than_two_seconds(gpu_backend, tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", FIRST_CALL.format(backend=gpu_backend)],
            capture_output=True, text=True, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2.0


@pytest.mark.slow  # by the clock: nothing else may run
def test_a_new_shape_compiles_nothing(gpu_backend):
    """Shapes of one bucket share binaries: the second is no slower than a launch."""
    first = [value.requires_grad_() for value in samples(600, 500, 10, device="cuda")]
    cgm_fast.mmd(*first, backend=gpu_backend).backward()
    second = [value.requires_grad_() for value in samples(777, 333, 13, device="cuda")]
    torch.cuda.synchronize()
    start = time.perf_counter()
    cgm_fast.mmd(*second, backend=gpu_backend).backward()
    torch.cuda.synchronize()
    assert time.perf_counter() - start < 0.2


def test_a_launch_that_fails_says_which_and_how_large():
    if reason := backends.availability()["cuda"]:
        pytest.skip(reason)
    x, y = samples(50, 40, 3, device="cuda")
    many = [1.0 + i for i in range(20000)]  # constants of so many exceed shared memory
    with pytest.raises(RuntimeError, match=r"mmd_rows_kernel <<<\d+x1x1, 256x1x1, \d+>>>: "):
        cgm_fast.mmd(x, y, bandwidth=many, backend="cuda")
    assert cgm_fast.mmd(x, y, backend="cuda").isfinite()
