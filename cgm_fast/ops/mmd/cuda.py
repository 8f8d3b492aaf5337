"""MMD² by the CUDA C++ kernels (csrc/cuda/mmd.cu), each pass in one launch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from cgm_fast.ops.cuda.launch import (
    MOST_FEATURES,
    ROWS,
    counters,
    kernels,
    rows_of_block,
    stream,
    tiles,
)
from cgm_fast.ops.gpu import constants, multiprocessors, on_device, tf32_allowed
from cgm_fast.ops.memory import addresses, check_address, compute_like, plain
from cgm_fast.ops.mmd.common import bounds_of_groups, room_for_derivatives
from cgm_fast.ops.mmd.plans import plan_of
from cgm_fast.ops.mmd.problem import Problem, Product, Tangent, Value, Wanted, stacked

# Of the kernel on tensor cores (csrc/cuda/mmd_tensor.cuh): rows of a block, from how many features
# on it has fewer instructions than mmd_rows.cuh, and pairs for a multiprocessor that are worth its
# beginning, as in 2000 rows on a hundred of these. By the machine code; no GPU has been asked.
TENSOR_ROWS, LEAST_FEATURES, MOST_TENSOR_FEATURES, LEAST_PAIRS = 128, 5, 64, 1 << 15
WORKERS = 2
"""Blocks of its grid for a multiprocessor: two share one up to 32 features, then take turns."""


class Launch(NamedTuple):
    """What a launch is given besides, as csrc/mmd.h has it; `begins` to `kernel_weights` are lists
    that a problem has on the host."""

    begins: int
    relations: int
    variances: int
    kernel_weights: int
    weighted_kernel: bool
    rows: int
    blocks: int
    workers: int
    tiles: int
    tf32: bool
    slots: int
    partials: int
    counters: int
    stream: int


@on_device
def fwd(problem: Problem, wanted: Wanted) -> Value:
    """L and its derivatives: see `Value`."""
    problem = _readable(problem)
    _, like = compute_like(problem.x)
    value = Value(
        like.new_empty(problem.x.shape[:-2]), *room_for_derivatives(problem, wanted, like)
    )
    launch, _workspace = _launch(problem, _shares(problem, wanted))
    kernels().mmd_fwd_cuda(
        _plan_of(problem, wanted), addresses(problem[:5]), addresses(value), launch
    )
    return value


@on_device
def hvp(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    """The Hessian of L applied to a tangent: see `Product`."""
    problem = _readable(problem)
    dtype, like = compute_like(problem.x)
    of_relation = plain(tangent.relation, torch.float64)
    of_z, of_weights, of_variance = (
        plain(v, dtype) for v in (tangent.z, tangent.weights, tangent.variance)
    )
    product = Product(*room_for_derivatives(problem, wanted, like))
    launch, _workspace = _launch(problem, _Shares(ROWS, 0, 0))
    kernels().mmd_hvp_cuda(
        _plan_of(problem, wanted),
        addresses(problem[:5]),
        addresses((of_z, of_weights, of_relation, of_variance)),
        addresses(product),
        launch,
    )
    return product


def _readable(problem: Problem) -> Problem:
    """Its tensors as kernels read them: no group has rows in x and in y."""
    x, y = problem.x, problem.y
    check_address(x, y)
    dtype = compute_like(x)[0]
    if y is not None and x.shape[-2] not in _begins(problem.sizes):
        x, y = stacked(problem), None
    return problem._replace(
        x=x,
        y=y,
        weights=plain(problem.weights, dtype),
        relation=plain(problem.relation, torch.float64),
        variance=plain(problem.variance, dtype),
    )


def _begins(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Rows before each group, and all."""
    return (0, *(end for _, end in bounds_of_groups(sizes)))


def _plan_of(problem: Problem, wanted: Wanted) -> Any:
    x, y = problem[:2]
    strides = x.stride(), x.stride() if y is None else y.stride()
    return plan_of(kernels(), x.shape, strides, x.dtype, problem[5:], wanted[:2])


class _Shares(NamedTuple):
    """How a launch's work is cut."""

    rows: int
    """Of a block."""
    workers: int
    """The stream-K grid of the kernel on tensor cores (its blocks), or 0 to leave these out."""
    tiles: int
    """Of columns that these share for each block of rows."""


def _shares(problem: Problem, wanted: Wanted) -> _Shares:
    x, sizes = problem.x, problem.sizes
    dtype, device, d = compute_like(x)[0], x.device, x.shape[-1]
    b = x.shape[0] if x.dim() == 3 else 1
    if problem.kernel != "gaussian":
        return _Shares(ROWS, 0, 0)
    if not wanted.variance and (workers := _workers(b, sizes, d, x.dtype, device)):
        return _Shares(TENSOR_ROWS, workers, tiles(sizes, _columns(d)))
    rows = rows_of_block(b, sizes, device) if d <= MOST_FEATURES[dtype] else ROWS
    return _Shares(rows, 0, 0)


def _workers(
    b: int, sizes: tuple[int, ...], d: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Blocks of the kernel on tensor cores, or 0 where it is not worth its beginning."""
    total = sum(sizes)
    if dtype == torch.float64 or not LEAST_FEATURES <= d <= MOST_TENSOR_FEATURES:
        return 0
    if b * total * total < LEAST_PAIRS * multiprocessors(device):
        return 0
    units = b * tiles(sizes, TENSOR_ROWS) * tiles(sizes, _columns(d))
    return min(WORKERS * multiprocessors(device), units)


def _padded(d: int) -> int:
    """Features that the kernel on tensor cores has room for."""
    return next(room for room in (16, 32, 64) if d <= room)


def _columns(d: int) -> int:
    """Columns of its tiles."""
    return 64 if d > 32 else 2048 // _padded(d)


def _launch(problem: Problem, shares: _Shares) -> tuple[Launch, tuple[torch.Tensor, ...]]:
    """What a launch is given besides; tensors to keep until it is made."""
    x, sizes, device = problem.x, problem.sizes, problem.x.device
    dtype, b = compute_like(x)[0], x.shape[0] if x.dim() == 3 else 1
    groups, scales = len(sizes), len(problem.kernel_weights)
    rows, workers, columns = shares
    blocks = tiles(sizes, rows)
    partials = torch.empty((b, blocks, 3 * groups + scales), dtype=torch.float64, device=device)
    of_blocks = counters(b + workers, device)
    slots = partials
    if workers:
        room = 3 * groups + TENSOR_ROWS * (1 + _padded(x.shape[-1]) // 2 + 2)
        slots = torch.empty((2 * workers, room), dtype=torch.float64, device=device)
    begins = constants(_begins(sizes), torch.int64, device)
    relations = constants(problem.relations, torch.float64, device)
    variances = constants(problem.variances, dtype, device)
    kernel_weights = constants(problem.kernel_weights, dtype, device)
    launch = Launch(
        begins=begins.data_ptr(), relations=relations.data_ptr(), variances=variances.data_ptr(),
        kernel_weights=kernel_weights.data_ptr(), weighted_kernel=problem.kernel_weights[0] != 1,
        rows=rows, blocks=blocks, workers=workers, tiles=columns, tf32=tf32_allowed(),
        slots=slots.data_ptr(), partials=partials.data_ptr(), counters=of_blocks.data_ptr(),
        stream=stream(device),
    )  # fmt: skip
    return launch, (partials, of_blocks, slots, begins, relations, variances, kernel_weights)
