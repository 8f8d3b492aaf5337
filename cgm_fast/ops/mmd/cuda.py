"""MMD² by the CUDA C++ kernels (csrc/cuda/mmd.cu), each pass in one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from cgm_fast.ops.cuda.launch import (
    MOST_FEATURES,
    ROWS,
    counters,
    function,
    rows_of_block,
    stream,
)
from cgm_fast.ops.gpu import constants, multiprocessors, on_device, tf32_allowed
from cgm_fast.ops.memory import address, compute_like, plain, samples

# Of the kernel on tensor cores (csrc/cuda/mmd_tensor.cuh): rows of a block, from how many features
# on it has fewer instructions than mmd_rows.cuh, and pairs for a multiprocessor that are worth its
# beginning, as in 2000 rows on a hundred of these. By the machine code; no GPU has been asked.
TENSOR_ROWS, LEAST_FEATURES, MOST_TENSOR_FEATURES, LEAST_PAIRS = 128, 9, 64, 1 << 15
WORKERS = 2
"""Blocks of its grid for a multiprocessor: two share one up to 32 features, then take turns."""


@on_device
def mmd_fwd(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    cross: Tensor | None,
    variance: Tensor | None,
    variances: list[float],
    kernel_weights: list[float],
    x_scale: float,
    y_scale: float,
    cross_scale: float,
    row_begin: int,
    row_end: int,
    with_a: bool,
    with_p: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L [b], its gradients in z [b, row_end - row_begin, d], a [b, M], (h, cross) [b, s + 1]."""
    dtype, like = compute_like(x)
    *batch, n, d = x.shape
    m, s = y.shape[-2], len(kernel_weights)
    b = batch[0] if batch else 1
    loss = like.new_empty(batch)
    grad_z = like.new_empty((*batch, row_end - row_begin, d))
    grad_a = like.new_empty((*batch, n + m)) if with_a else like.new_empty(0)
    grad_p = like.new_empty((*batch, s + 1)) if with_p else like.new_empty(0)
    x_weights, y_weights = plain(x_weights, dtype), plain(y_weights, dtype)
    cross = plain(cross, dtype)
    workers = 0 if with_p else _workers(b, n, m, d, dtype, x.device)
    if workers:
        rows = TENSOR_ROWS
    else:
        rows = rows_of_block(b, n + m, x.device) if d <= MOST_FEATURES[dtype] else ROWS
    variance, device, _workspace = _device(
        b,
        n + m,
        d,
        rows,
        workers,
        dtype,
        variance,
        variances,
        kernel_weights,
        x.device,
    )
    function("mmd_fwd", dtype)(
        row_begin, row_end,
        loss.data_ptr(), grad_z.data_ptr(),
        grad_a.data_ptr() if with_a else 0, grad_p.data_ptr() if with_p else 0,
        device,
        b, n, m, d, samples(x), samples(y),
        address(x_weights), address(y_weights), x_scale, y_scale, address(cross), cross_scale,
        variance.data_ptr(), variances, kernel_weights,
    )  # fmt: skip
    return loss, grad_z, grad_a, grad_p


@on_device
def mmd_hvp(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    cross: Tensor | None,
    variance: Tensor | None,
    variances: list[float],
    kernel_weights: list[float],
    x_scale: float,
    y_scale: float,
    cross_scale: float,
    row_begin: int,
    row_end: int,
    with_a: bool,
    with_p: bool,
    tangent_z: Tensor | None,
    tangent_a: Tensor | None,
    tangent_p: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hessian-vector product with (tangent_z, tangent_a, tangent_p): z, a and (h, cross) parts."""
    dtype, like = compute_like(x)
    *batch, n, d = x.shape
    m, s = y.shape[-2], len(kernel_weights)
    b = batch[0] if batch else 1
    out_z = like.new_empty((*batch, row_end - row_begin, d))
    out_a = like.new_empty((*batch, n + m)) if with_a else like.new_empty(0)
    out_p = like.new_empty((*batch, s + 1)) if with_p else like.new_empty(0)
    x_weights, y_weights = plain(x_weights, dtype), plain(y_weights, dtype)
    cross = plain(cross, dtype)
    tangent_z, tangent_a = plain(tangent_z, dtype), plain(tangent_a, dtype)
    tangent_p = plain(tangent_p, dtype)
    variance, device, _workspace = _device(
        b, n + m, d, ROWS, 0, dtype, variance, variances, kernel_weights, x.device
    )
    function("mmd_hvp", dtype)(
        row_begin, row_end, address(tangent_z), address(tangent_a), address(tangent_p),
        out_z.data_ptr(),
        out_a.data_ptr() if with_a else 0, out_p.data_ptr() if with_p else 0,
        device,
        b, n, m, d, samples(x), samples(y),
        address(x_weights), address(y_weights), x_scale, y_scale, address(cross), cross_scale,
        variance.data_ptr(), variances, kernel_weights,
    )  # fmt: skip
    return out_z, out_a, out_p


def _workers(b: int, n: int, m: int, d: int, dtype: torch.dtype, device: torch.device) -> int:
    """The stream-K grid of the kernel on tensor cores (its blocks), or 0 to leave these out."""
    total = n + m
    if dtype != torch.float32 or not LEAST_FEATURES <= d <= MOST_TENSOR_FEATURES:
        return 0
    if b * total * total < LEAST_PAIRS * multiprocessors(device):
        return 0
    columns = 2048 // _padded(d)
    units = b * -(-total // TENSOR_ROWS) * (-(-n // columns) - (-m // columns))
    return min(WORKERS * multiprocessors(device), units)


def _padded(d: int) -> int:
    """Features that the kernel on tensor cores has room for."""
    return next(room for room in (16, 32, 64) if d <= room)


def _device(
    b: int,
    total: int,
    d: int,
    rows: int,
    workers: int,
    dtype: torch.dtype,
    variance: Tensor | None,
    variances: list[float],
    kernel_weights: list[float],
    device: torch.device,
) -> tuple[Tensor, tuple[int, ...], tuple[Tensor, ...]]:
    """Variances [s] or [b, s]; what a launch needs besides; tensors to keep until it is made."""
    if variance is None:
        variance = constants(tuple(variances), dtype, device)
    else:
        variance = variance.to(dtype).contiguous()
    of_kernel, s = constants(tuple(kernel_weights), dtype, device), len(kernel_weights)
    partials = torch.empty((b, -(-total // rows), s + 8), dtype=torch.float64, device=device)
    of_blocks = counters(b + workers, device)
    slots = partials
    if workers:  # as in csrc/mmd.h
        room = (2 * workers, 768 + 128 * (_padded(d) // 2 + 2))
        slots = torch.empty(room, dtype=torch.float64, device=device)
    given = (
        of_kernel.data_ptr(), s if variance.dim() == 2 else 0, rows, workers, tf32_allowed(),
        slots.data_ptr(), partials.data_ptr(), of_blocks.data_ptr(), stream(device),
    )  # fmt: skip
    return variance, given, (partials, of_blocks, slots)
