"""What a call costs before any arithmetic: n = m = 2, d = 2, beside an op that does nothing."""

import math
from typing import Any

import pytest
import torch
from torch import library

import cgm_fast
from benchmarks import gpu, measure
from benchmarks.machine import DEVICES
from cgm_fast.ops.backends import BACKENDS, availability
from cgm_fast.testing import samples

_library = library.Library("cgm_fast_benchmarks", "DEF")
_library.define("first(Tensor x, Tensor y) -> (Tensor, Tensor, Tensor)")


def _first(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return x.new_empty(()), torch.empty_like(x), torch.empty_like(y)


for _key in ("CPU", "CUDA"):
    _library.impl("first", _first, _key)


class Trivial(torch.autograd.Function):
    """The least that an op of two inputs needs whose gradient comes with its value."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        value, of_x, of_y = torch.ops.cgm_fast_benchmarks.first.default(x, y)
        ctx.save_for_backward(of_x, of_y)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        of_x, of_y = ctx.saved_tensors
        return of_x * grads[0], of_y * grads[0]


def caller(name):
    """The function measured under a peer's name."""
    if name == "trivial":
        return Trivial.apply
    return lambda x, y: cgm_fast.mmd(x, y, backend=name)


@pytest.mark.parametrize("part", ["forward", "forward and backward"])
@pytest.mark.parametrize(
    ("name", "device"),
    [
        (name, device)
        for device in DEVICES
        for name in [*BACKENDS, "trivial"]
        if name == "trivial" or BACKENDS[name].serves(device)
    ],
)
def test_a_small_call(benchmark, budget, name, part, device):
    if reason := availability().get(name):
        pytest.skip(f"{name}: {reason}")
    call = caller(name)
    x, y = samples(2, 2, 2, device=device)
    if part == "forward":
        step = lambda: call(x, y)  # noqa: E731
    else:
        x.requires_grad_()
        y.requires_grad_()
        step = lambda: torch.autograd.grad(call(x, y), (x, y))  # noqa: E731
    benchmark.group = f"small call, {part}, {device}"
    benchmark.extra_info.update(
        op="small_call", shape={"n": 2, "d": 2}, peer=name, part=part, ours=name != "trivial",
        device=device, dtype="float32", threads=torch.get_num_threads(),
    )  # fmt: skip
    seconds = measure.time_step(benchmark, step, *budget, device)
    if device == "cuda" and not math.isnan(seconds):
        benchmark.extra_info.update(gpu.measure(step, budget[0], None, captures=True))
