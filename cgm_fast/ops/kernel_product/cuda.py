"""K V by the CUDA C++ kernel (csrc/cuda/kernel_product.cu), each pass in one launch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from cgm_fast.ops.cuda.launch import counters, kernels, stream
from cgm_fast.ops.gpu import Known, constants, multiprocessors, on_device
from cgm_fast.ops.kernel_product.common import room
from cgm_fast.ops.kernel_product.plans import plan_of
from cgm_fast.ops.kernel_product.problem import Problem, Value, Wanted
from cgm_fast.ops.memory import addresses, check_address, compute_like, placed, plain

ROWS = 64
"""Of a block."""
CHUNK = {torch.float32: 64, torch.float64: 32}
"""Columns of a tile, and outputs whose sums are in registers together."""
BLOCKS = {torch.float32: 2, torch.float64: 1}
"""That share a multiprocessor."""
LEAST_COLUMNS = 512
"""Of a block's share, which are worth adding shares up; by the instructions. No GPU was asked."""
MOST_SHARE = 4
"""Rounds of the grid that columns are cut for."""


class Launch(NamedTuple):
    """What a launch is given besides, as csrc/kernel_product.h has it."""

    variances: int
    kernel_weights: int
    splits: int
    blocks: int
    sums: int
    partials: int
    parts: int
    counters: int
    stream: int


@on_device
def fwd(problem: Problem, wanted: Wanted) -> Value:
    """The derivatives of Q that are wanted: see `Value`."""
    x, y = problem[:2]
    dtype, like = compute_like(x)
    check_address(x, y, problem.v)
    u, v, variance = (plain(value, dtype) for value in problem[2:5])
    value = room(problem, wanted, like)
    outputs = [problem.v.shape[-1]] * wanted.product + [x.shape[-1]] * wanted.x
    device = x.device
    shapes = x.shape, y.shape, problem.v.shape, x.stride(), y.stride(), x.dtype, device
    key = kernels(), shapes, tuple(outputs), wanted.variance, problem[5:]
    call = _calls.of(key, device, _new_call, problem, outputs, wanted.variance)
    workspace = torch.empty(call.workspace, dtype=torch.uint8, device=device)
    of_units, address = counters(call.counters, device), workspace.data_ptr()
    kernels().kernel_product_fwd_cuda(
        call.plan,
        addresses((x, y, u, v, variance)),
        addresses(value),
        Launch(
            *call.lists, call.splits, call.blocks, address, address + call.partials,
            address + call.parts, of_units.data_ptr(), stream(device),
        ),
    )  # fmt: skip
    return value


class _Call(NamedTuple):
    """What calls have in common that differ in addresses alone."""

    plan: Any
    """What the compiled module is told once."""
    lists: tuple[int, int]
    """Addresses of `kept`."""
    splits: int
    blocks: int
    partials: int
    """Where they begin in the workspace, in bytes; its beginning is for `sums`."""
    parts: int
    workspace: int
    counters: int
    kept: tuple[torch.Tensor, ...]


_calls = Known()


def _new_call(problem: Problem, outputs: list[int], of_variance: bool) -> _Call:
    x, device, scales = problem.x, problem.x.device, len(problem.kernel_weights)
    dtype = compute_like(x)[0]
    items = x.shape[0] if x.dim() == 3 else 1
    row_units = items * -(-x.shape[-2] // ROWS)
    grid = BLOCKS[dtype] * multiprocessors(device)
    splits = _splits(row_units, problem.y.shape[-2], grid, dtype)
    blocks = min(grid, row_units * splits)
    chunks = sum(-(-width // CHUNK[dtype]) for width in outputs)
    _, partials, parts, end = placed(
        (blocks * chunks * 16 * 256 * 2, dtype),  # as in csrc/kernel_product.h
        (row_units * splits * ROWS * sum(outputs) if splits > 1 else 0, torch.float64),
        (row_units * splits * scales if of_variance else 0, torch.float64),
    )
    kept = (
        constants(problem.variances, dtype, device),
        constants(problem.kernel_weights, dtype, device),
    )
    return _Call(
        plan_of(kernels(), problem), (kept[0].data_ptr(), kept[1].data_ptr()), splits, blocks,
        partials, parts, end, items + (row_units if splits > 1 else 0), kept,
    )  # fmt: skip


def _splits(row_units: int, columns: int, grid: int, dtype: torch.dtype) -> int:
    """Shares of the columns, so that all blocks of the grid have as much to do, nearly."""
    most = min(
        columns // LEAST_COLUMNS, MOST_SHARE * grid // row_units, -(-columns // CHUNK[dtype])
    )

    def time(splits: int) -> float:
        return -(-row_units * splits // grid) / splits

    every = range(1, max(most, 1) + 1)
    best = min(map(time, every))
    return next(splits for splits in every if time(splits) <= 1.05 * best)
