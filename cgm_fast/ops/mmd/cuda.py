"""MMD² by the CUDA C++ kernels (csrc/cuda/mmd.cu), each pass in one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from cgm_fast.ops.cuda_launch import (
    MOST_FEATURES,
    ROWS,
    counters,
    function,
    rows_of_block,
    stream,
)
from cgm_fast.ops.gpu import constants, multiprocessors, on_device, tf32_allowed
from cgm_fast.ops.memory import address, compute_like, plain, samples

# Of the kernel on tensor cores (csrc/cuda/mmd_tensor.cuh). By instructions it would be ahead from
# fewer features on; a GPU must say from how many.
TENSOR_ROWS, LEAST_FEATURES = 128, 17


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
    rows = rows_of_block(b, n + m, x.device) if d <= MOST_FEATURES[dtype] else ROWS
    products = 0 if with_p else _products(b, n + m, d, dtype, x.device)
    variance, device, _workspace = _device(
        b,
        n + m,
        TENSOR_ROWS if products else rows,
        products,
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
def mmd_bwd(
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
    """The Hessian of L applied to (tangent_z, tangent_a, tangent_p): z, a and (h, cross) parts."""
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
        b, n + m, ROWS, 0, dtype, variance, variances, kernel_weights, x.device
    )
    function("mmd_bwd", dtype)(
        row_begin, row_end, address(tangent_z), address(tangent_a), address(tangent_p),
        out_z.data_ptr(),
        out_a.data_ptr() if with_a else 0, out_p.data_ptr() if with_p else 0,
        device,
        b, n, m, d, samples(x), samples(y),
        address(x_weights), address(y_weights), x_scale, y_scale, address(cross), cross_scale,
        variance.data_ptr(), variances, kernel_weights,
    )  # fmt: skip
    return out_z, out_a, out_p


def _products(b: int, total: int, d: int, dtype: torch.dtype, device: torch.device) -> int:
    """Products of tf32 numbers for one of float32, or 0 to leave tensor cores out.

    These pay where there are more than a few features, and blocks of 128 rows for every
    multiprocessor.
    """
    if dtype != torch.float32 or not LEAST_FEATURES <= d <= MOST_FEATURES[dtype]:
        return 0
    if b * -(-total // TENSOR_ROWS) < multiprocessors(device):
        return 0
    return 1 if tf32_allowed() else 3


def _device(
    b: int,
    total: int,
    rows: int,
    products: int,
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
    partials = torch.empty((b, -(-total // rows), s + 2), dtype=torch.float64, device=device)
    of_blocks = counters(b, device)
    given = (
        of_kernel.data_ptr(), s if variance.dim() == 2 else 0, rows, products, partials.data_ptr(),
        of_blocks.data_ptr(), stream(device),
    )  # fmt: skip
    return variance, given, (partials, of_blocks)
