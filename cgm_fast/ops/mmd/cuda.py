"""MMD² by the CUDA C++ kernels (csrc/cuda/mmd.cu), each pass in one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from cgm_fast.ops.cuda_launch import counters, kernels, stream
from cgm_fast.ops.gpu import constants, multiprocessors, on_device
from cgm_fast.ops.memory import address, compute_like, plain, samples

_NAMES = {torch.float32: "float32", torch.float64: "float64"}
# Features that kernels with a row in a lane's registers serve; see csrc/cuda/mmd.cu.
_MOST_FEATURES = {torch.float32: 64, torch.float64: 16}
_MOST_ROWS, _LEAST_ROWS = 32, 4


def _rows(batch: int, total: int, d: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows of a block: fewer where there are too few for all multiprocessors."""
    rows = _MOST_ROWS
    if d <= _MOST_FEATURES[dtype]:
        while rows > _LEAST_ROWS and batch * -(-total // rows) < multiprocessors(device):
            rows //= 2
    return rows


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
    variance, device, _workspace = _device(b, n + m, d, dtype, variance, variances, kernel_weights, x)
    getattr(kernels(), "mmd_fwd_cuda_" + _NAMES[dtype])(
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
    wide = _MOST_FEATURES[dtype] + 1  # this pass has one kernel, for any number of features
    variance, device, _workspace = _device(
        b, n + m, wide, dtype, variance, variances, kernel_weights, x
    )
    getattr(kernels(), "mmd_bwd_cuda_" + _NAMES[dtype])(
        row_begin, row_end, address(tangent_z), address(tangent_a), address(tangent_p),
        out_z.data_ptr(),
        out_a.data_ptr() if with_a else 0, out_p.data_ptr() if with_p else 0,
        device,
        b, n, m, d, samples(x), samples(y),
        address(x_weights), address(y_weights), x_scale, y_scale, address(cross), cross_scale,
        variance.data_ptr(), variances, kernel_weights,
    )  # fmt: skip
    return out_z, out_a, out_p


def _device(
    b: int,
    total: int,
    d: int,
    dtype: torch.dtype,
    variance: Tensor | None,
    variances: list[float],
    kernel_weights: list[float],
    x: Tensor,
) -> tuple[Tensor, tuple[int, ...], tuple[Tensor, ...]]:
    """Variances [s] or [b, s]; what a launch needs besides; and tensors to keep until it is made."""
    if variance is None:
        variance = constants(tuple(variances), dtype, x.device)
    else:
        variance = variance.to(dtype).contiguous()
    of_kernel = constants(tuple(kernel_weights), dtype, x.device)
    rows, s = _rows(b, total, d, dtype, x.device), len(kernel_weights)
    partials = x.new_empty((b, -(-total // rows), s + 2), dtype=torch.float64)
    of_blocks = counters(b, x.device)
    item = s if variance.dim() == 2 else 0
    device = (
        of_kernel.data_ptr(), item, rows, partials.data_ptr(), of_blocks.data_ptr(),
        stream(x.device),
    )  # fmt: skip
    return variance, device, (of_kernel, partials, of_blocks)
