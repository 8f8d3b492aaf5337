"""K V by the CUDA C++ kernel (csrc/cuda/kernel_product.cu), each pass in one launch."""

from __future__ import annotations

from typing import NamedTuple

import torch

from cgm_fast.ops.cuda.launch import counters, kernels, stream
from cgm_fast.ops.gpu import constants, multiprocessors, on_device
from cgm_fast.ops.kernel_product.common import room
from cgm_fast.ops.kernel_product.plans import plan_of
from cgm_fast.ops.kernel_product.problem import Problem, Value, Wanted
from cgm_fast.ops.memory import addresses, check_address, compute_like, plain

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
    launch, _workspace = _launch(problem, outputs, wanted.variance)
    kernels().kernel_product_fwd_cuda(
        plan_of(kernels(), problem),
        addresses((x, y, u, v, variance)),
        addresses(value),
        launch,
    )
    return value


def _launch(
    problem: Problem, outputs: list[int], of_variance: bool
) -> tuple[Launch, tuple[torch.Tensor, ...]]:
    """What a launch is given besides; tensors to keep until it is made."""
    x, device, scales = problem.x, problem.x.device, len(problem.kernel_weights)
    dtype, like = compute_like(x)
    items = x.shape[0] if x.dim() == 3 else 1
    row_units = items * -(-x.shape[-2] // ROWS)
    grid = BLOCKS[dtype] * multiprocessors(device)
    splits = _splits(row_units, problem.y.shape[-2], grid, dtype)
    blocks = min(grid, row_units * splits)
    chunks = sum(-(-width // CHUNK[dtype]) for width in outputs)
    sums = like.new_empty((blocks, chunks, 16, 256, 2))  # as in csrc/kernel_product.h
    shares = row_units * splits * ROWS * sum(outputs) if splits > 1 else 0
    partials = x.new_empty(shares, dtype=torch.float64)
    parts = x.new_empty(row_units * splits * scales if of_variance else 0, dtype=torch.float64)
    of_units = counters(items + (row_units if splits > 1 else 0), device)
    variances = constants(problem.variances, dtype, device)
    kernel_weights = constants(problem.kernel_weights, dtype, device)
    launch = Launch(
        variances=variances.data_ptr(), kernel_weights=kernel_weights.data_ptr(), splits=splits,
        blocks=blocks, sums=sums.data_ptr(), partials=partials.data_ptr(), parts=parts.data_ptr(),
        counters=of_units.data_ptr(), stream=stream(device),
    )  # fmt: skip
    return launch, (sums, partials, parts, of_units, variances, kernel_weights)


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
