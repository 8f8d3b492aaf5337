"""The reference, and matrix products without Triton, on other devices: nothing is awaited.

Tensors of the device "meta" stand for a GPU's: they have no values, so that whatever would have to
wait for one raises.
"""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cgm_fast.ops import chunks
from cgm_fast.ops.cgm_loss import matmul as matmul_cgm
from cgm_fast.ops.cgm_loss import problem as of_cgm
from cgm_fast.ops.cgm_loss import reference as cgm_loss
from cgm_fast.ops.kernel_product import chunked as of_products
from cgm_fast.ops.kernel_product import matmul as matmul_product
from cgm_fast.ops.kernel_product import problem as of_product
from cgm_fast.ops.kernel_product import reference as kernel_product
from cgm_fast.ops.mmd import chunked as of_pairs
from cgm_fast.ops.mmd import matmul as matmul_mmd
from cgm_fast.ops.mmd import problem as of_mmd
from cgm_fast.ops.mmd import reference as mmd
from cgm_fast.ops.prototype_margin import matmul as matmul_margin
from cgm_fast.ops.prototype_margin import problem as of_margin
from cgm_fast.ops.prototype_margin import reference as prototype_margin

N = 16384
GPU = torch.device("cuda", 0)

# What waits for the device: values as numbers, sizes that depend on values.
WAITS = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2",
    "repeat_interleave", "bincount", "to_the_host_or_back",
}  # fmt: skip
# Views and allocations, which launch no kernel.
FREE = {
    "view", "expand", "slice", "select", "unsqueeze", "squeeze", "transpose", "diagonal", "detach",
    "t", "split_with_sizes", "split", "alias", "permute", "_unsafe_view", "as_strided", "unbind",
    "empty", "empty_like", "new_empty", "promote_types",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts operations by name, and the copies that change the device."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        out = func(*args, **(kwargs or {}))
        if name == "_to_copy" and out.device != args[0].device:
            name = "to_the_host_or_back"
        self.counts[name] += 1
        return out

    @property
    def kernels(self):
        return sum(count for name, count in self.counts.items() if name not in FREE)


@pytest.fixture
def gpu_memory(monkeypatch):
    """Sets a GPU's memory, in bytes; all chunks are then cut as on that GPU."""

    def set_to(size):
        properties = SimpleNamespace(total_memory=size)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        chunks._budget.cache_clear()

    def on_gpu(device, bytes_per_pair):
        return chunks.pairs_per_chunk(GPU, bytes_per_pair)

    for module in (of_pairs, prototype_margin, of_products, matmul_margin):
        monkeypatch.setattr(module, "pairs_per_chunk", on_gpu)
    set_to(80 << 30)
    yield set_to
    chunks._budget.cache_clear()


def new(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def mmd_problem(n, *, given=False):
    """Two samples of n rows; with weights, relation and bandwidths given as tensors."""
    tensors = (new(2 * n), new(2, 2, dtype=torch.float64), new(2)) if given else (None, None, None)
    scales = 2 if given else 1
    static = ((n, n), (n**-2.0,) * 4, (10.0,), (1.0,) * scales, "gaussian", False)
    return of_mmd.Problem(new(n, 10), new(n, 10), *tensors, *static)


def rows(n, given=False):
    return of_mmd.Wanted(0, 2 * n, given, given, given)


def tangent(n, given=False):
    more = (new(2 * n), new(2, 2, dtype=torch.float64), new(2)) if given else (None, None, None)
    return of_mmd.Tangent(new(2 * n, 10), *more)


def margin_problem(labels=False):
    labels = new(1000, dtype=torch.int64) if labels else None
    return of_margin.Problem(new(1000, 10), new(100, 10), labels, 1.0, 1.0, 0.01)


def cgm_problem(labels=False):
    labels = new(100, dtype=torch.int64) if labels else None
    numbers = (0.1, 0.1, 1000.0, 1.0, 1.0, 1.0, (10.0,), (1.0,), "gaussian", False)
    return of_cgm.Problem(new(100, 10), new(10, 10), labels, new(2, 100, 10), *numbers)


def product_problem(n, given=False):
    """All that a kernel product takes; with the bandwidths as a tensor, or as numbers."""
    tensors = (new(n, 3), new(n, 3), new(2) if given else None)
    numbers = (10.0, 20.0), (0.5, 0.5), "laplacian" if given else "gaussian"
    return of_product.Problem(new(n, 10), new(n, 10), *tensors, *numbers)


def launches(function, *arguments):
    with Launches() as mode:
        function(*arguments)
    return mode


def test_a_large_mmd_takes_few_launches_on_a_gpu(gpu_memory):
    # With chunks for a CPU's cache it took 184,000.
    forward = launches(mmd.fwd, mmd_problem(N), rows(N))
    assert forward.kernels < 4000
    product = launches(mmd.hvp, mmd_problem(N), tangent(N), rows(N))
    assert product.kernels < 16_000


def test_a_chunk_of_the_mmd_takes_forty_launches(gpu_memory):
    counts = []
    for n in (N, 2 * N):
        mode = launches(mmd.fwd, mmd_problem(n), rows(n))
        counts.append((mode.kernels, mode.counts["baddbmm_"]))
    (some, chunks_of_some), (more, chunks_of_more) = counts
    assert (more - some) / (chunks_of_more - chunks_of_some) <= 40


BOTH = of_margin.Wanted(True, True)
ALONG = of_margin.Tangent(new(1000, 10), new(100, 10))
CALLS = {
    "mmd_fwd": lambda: (mmd.fwd, mmd_problem(1000), rows(1000)),
    "mmd_fwd_of_all": lambda: (mmd.fwd, mmd_problem(1000, given=True), rows(1000, True)),
    "mmd_hvp": lambda: (mmd.hvp, mmd_problem(1000), tangent(1000), rows(1000)),
    "mmd_hvp_of_all": lambda: (
        mmd.hvp, mmd_problem(1000, given=True), tangent(1000, True), rows(1000, True),
    ),
    "prototype_margin_fwd": lambda: (prototype_margin.fwd, margin_problem(), BOTH),
    "prototype_margin_fwd_labels": lambda: (prototype_margin.fwd, margin_problem(True), BOTH),
    "prototype_margin_hvp": lambda: (prototype_margin.hvp, margin_problem(True), ALONG, BOTH),
    "cgm_loss_fwd": lambda: (cgm_loss.fwd, cgm_problem(), BOTH),
    "cgm_loss_hvp": lambda: (
        cgm_loss.hvp, cgm_problem(True), of_margin.Tangent(new(100, 10), new(10, 10)), BOTH,
    ),
    "kernel_product_fwd": lambda: (
        kernel_product.fwd, product_problem(1000), of_product.Wanted(True, True, True),
    ),
    "kernel_product_fwd_of_all": lambda: (
        kernel_product.fwd, product_problem(1000, True), of_product.Wanted(True, True, True),
    ),
}  # fmt: skip
PRODUCTS = {
    mmd: matmul_mmd, prototype_margin: matmul_margin, kernel_product: matmul_product,
    cgm_loss: matmul_cgm,
}  # fmt: skip


def refuse(*args, **kwargs):
    raise AssertionError("numbers from the host become a tensor, which waits for the device")


@pytest.mark.parametrize("products", [False, True], ids=["reference", "matmul"])
@pytest.mark.parametrize("call", CALLS)
def test_nothing_waits_for_the_device(call, products, gpu_memory, monkeypatch):
    function, *arguments = CALLS[call]()
    if products:
        functions = {
            getattr(module, step): getattr(other, step)
            for module, other in PRODUCTS.items()
            for step in ("fwd", "hvp")
            if hasattr(module, step)
        }
        function = functions[function]
    function(*arguments)  # constants of a shape are copied once, and kept
    for owner, name in ((torch, "tensor"), (torch, "as_tensor"), (torch.Tensor, "new_tensor")):
        monkeypatch.setattr(owner, name, refuse)
    mode = launches(function, *arguments)
    assert mode.counts.keys() & WAITS == set()
    assert mode.kernels > 10


def test_what_waits_would_be_seen():
    with Launches() as mode:
        torch.ones(2).nonzero()
        torch.ones(2).to("meta")
        torch.ones(()).item()
    assert mode.counts.keys() & WAITS == {"nonzero", "to_the_host_or_back", "_local_scalar_dense"}


@pytest.mark.parametrize("size", [1 << 30, 24 << 30, 192 << 30])
def test_chunks_take_a_modest_share_of_a_gpus_memory(size, gpu_memory):
    gpu_memory(size)
    held = 40 * chunks.pairs_per_chunk(GPU, 40)
    assert 32 << 20 < held <= 2 << 30
    assert held <= max(size // 64, 64 << 20)


def test_chunks_of_a_large_gpu_are_large(gpu_memory):
    assert chunks.pairs_per_chunk(GPU, 16 * 4) > 1 << 24  # mmd_fwd's temporaries, one bandwidth


def test_chunks_stay_in_a_cpus_cache():
    assert chunks.pairs_per_chunk(torch.device("cpu"), 40) == 1 << 18


@pytest.mark.parametrize("kind", ["mps", "xpu", "meta"])
def test_other_devices_get_a_fixed_share(kind):
    assert 1 << 20 < chunks.pairs_per_chunk(torch.device(kind), 40) < 1 << 26
