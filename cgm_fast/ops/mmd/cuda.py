"""MMD² by the CUDA C++ kernels (csrc/cuda/mmd.cu), each pass in one launch."""

from __future__ import annotations

import functools
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
from cgm_fast.ops.gpu import Known, constants, multiprocessors, on_device, tf32_allowed
from cgm_fast.ops.memory import addresses, check_address, compute_like, placed, plain
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
    call = _call_of("fwd", problem, wanted)
    launch, _workspace = _launch(call, problem.x.device)
    kernels().mmd_fwd_cuda(call.plan, addresses(problem[:5]), addresses(value), launch)
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
    call = _call_of("hvp", problem, wanted)
    launch, _workspace = _launch(call, problem.x.device)
    kernels().mmd_hvp_cuda(
        call.plan,
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
    if y is not None and x.shape[-2] not in _begins(problem.sizes):
        problem = problem._replace(x=stacked(problem), y=None)
    if problem.weights is problem.relation is problem.variance is None:
        return problem
    dtype = compute_like(x)[0]
    return problem._replace(
        weights=plain(problem.weights, dtype),
        relation=plain(problem.relation, torch.float64),
        variance=plain(problem.variance, dtype),
    )


@functools.lru_cache(maxsize=1024)
def _begins(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Rows before each group, and all."""
    return (0, *(end for _, end in bounds_of_groups(sizes)))


class _Call(NamedTuple):
    """What calls have in common that differ in addresses alone."""

    plan: Any
    """What the compiled module is told once."""
    lists: tuple[int, int, int, int]
    """Addresses of `kept`."""
    weighted_kernel: bool
    rows: int
    blocks: int
    workers: int
    tiles: int
    slots: int
    """Where they begin in the workspace, in bytes; its beginning is for `partials`."""
    workspace: int
    counters: int
    kept: tuple[torch.Tensor, ...]


_calls = Known()


def _call_of(step: str, problem: Problem, wanted: Wanted) -> _Call:
    x, y = problem.x, problem.y
    of_y = None if y is None else y.stride()
    key = kernels(), step, x.shape, x.stride(), of_y, x.dtype, x.device, problem[5:], wanted
    return _calls.of(key, x.device, _new_call, step, problem, wanted)


def _new_call(step: str, problem: Problem, wanted: Wanted) -> _Call:
    x, y, sizes, device = problem.x, problem.y, problem.sizes, problem.x.device
    strides = x.stride(), x.stride() if y is None else y.stride()
    plan = plan_of(kernels(), x.shape, strides, x.dtype, problem[5:], wanted[:2])
    shares = _Shares(ROWS, 0, 0) if step == "hvp" else _shares(problem, wanted)
    dtype, b = compute_like(x)[0], x.shape[0] if x.dim() == 3 else 1
    groups, scales = len(sizes), len(problem.kernel_weights)
    rows, workers, columns = shares
    blocks, of_slot = tiles(sizes, rows), 0
    if workers:
        of_slot = 3 * groups + TENSOR_ROWS * (1 + _padded(x.shape[-1]) // 2 + 2)
    _, slots, end = placed(
        (b * blocks * (3 * groups + scales), torch.float64),
        (2 * workers * of_slot, torch.float64),
    )
    kept = (
        constants(_begins(sizes), torch.int64, device),
        constants(problem.relations, torch.float64, device),
        constants(problem.variances, dtype, device),
        constants(problem.kernel_weights, dtype, device),
    )
    begins, relations, variances, kernel_weights = (value.data_ptr() for value in kept)
    return _Call(
        plan, (begins, relations, variances, kernel_weights), problem.kernel_weights[0] != 1,
        rows, blocks, workers, columns, slots, end, b + workers, kept,
    )  # fmt: skip


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


def _launch(call: _Call, device: torch.device) -> tuple[Launch, tuple[torch.Tensor, torch.Tensor]]:
    """What a launch is given besides; tensors to keep until it is made."""
    workspace = torch.empty(call.workspace, dtype=torch.uint8, device=device)
    of_blocks = counters(call.counters, device)
    address = workspace.data_ptr()
    launch = Launch(
        *call.lists, call.weighted_kernel, call.rows, call.blocks, call.workers, call.tiles,
        call.workers > 0 and tf32_allowed(), address + call.slots, address, of_blocks.data_ptr(),
        stream(device),
    )  # fmt: skip
    return launch, (workspace, of_blocks)
