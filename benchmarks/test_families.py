"""MMD² and both gradients with every radial kernel: what each takes beside the Gaussian."""

import pytest
import torch

import cgm_fast
from benchmarks import measure
from cgm_fast.ops.backends import availability
from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.testing import samples

ROWS = 1024


@pytest.mark.parametrize("kernel", FAMILIES)
@pytest.mark.parametrize("d", [3, 10, 64])
def test_a_kernel(benchmark, budget, d, kernel):
    if reason := availability()["native"]:
        pytest.skip(f"native: {reason}")
    x, y = (value.requires_grad_() for value in samples(ROWS, ROWS, d))

    def step():
        return torch.autograd.grad(cgm_fast.mmd(x, y, kernel=kernel, backend="native"), (x, y))

    benchmark.group = f"kernels, d = {d}"
    benchmark.extra_info.update(
        op="kernels", shape={"n": ROWS, "d": d}, peer=kernel, ours=True, device="cpu",
        dtype="float32", threads=torch.get_num_threads(),
    )  # fmt: skip
    measure.time_step(benchmark, step, *budget, "cpu")
