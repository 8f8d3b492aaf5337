"""What a call costs before any arithmetic: n = m = 2, d = 2, beside an op that does nothing."""

from typing import Any

import pytest
import torch

import cgm_fast
from benchmarks import measure
from cgm_fast.ops.backends import BACKENDS, availability
from cgm_fast.testing import samples

_library = torch.library.Library("cgm_fast_benchmarks", "DEF")
_library.define("first(Tensor x, Tensor y) -> (Tensor, Tensor, Tensor)")


def _first(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return x.new_empty(()), torch.empty_like(x), torch.empty_like(y)


_library.impl("first", _first, "CPU")


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


@pytest.mark.parametrize("name", [*BACKENDS, "trivial"])
@pytest.mark.parametrize("part", ["forward", "forward and backward"])
def test_a_small_call(benchmark, budget, name, part):
    if name in BACKENDS:
        if not BACKENDS[name].serves("cpu"):
            pytest.skip(f"{name} does not serve cpu")
        if reason := availability()[name]:
            pytest.skip(f"{name}: {reason}")
    call = caller(name)
    x, y = samples(2, 2, 2)
    if part == "forward":
        step = lambda: call(x, y)  # noqa: E731
    else:
        x.requires_grad_()
        y.requires_grad_()
        step = lambda: torch.autograd.grad(call(x, y), (x, y))  # noqa: E731
    benchmark.group = f"small call, {part}"
    benchmark.extra_info.update(
        op="small_call", shape={"n": 2, "d": 2}, peer=name, part=part, ours=name != "trivial",
        device="cpu", dtype="float32", threads=torch.get_num_threads(),
    )  # fmt: skip
    measure.time_step(benchmark, step, *budget)
