"""MMD² by the compiled CPU kernels (csrc/cpu/mmd.cpp): buffers allocated here, filled there."""

from __future__ import annotations

import torch
from torch import Tensor

from cgm_fast import _native
from cgm_fast.ops.memory import address, compute_like, plain, samples

_FWD = {torch.float32: _native.mmd_fwd_float32, torch.float64: _native.mmd_fwd_float64}
_HVP = {torch.float32: _native.mmd_hvp_float32, torch.float64: _native.mmd_hvp_float64}


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
    loss = like.new_empty(batch)
    grad_z = like.new_empty((*batch, row_end - row_begin, d))
    grad_a = like.new_empty((*batch, n + m)) if with_a else like.new_empty(0)
    grad_p = like.new_empty((*batch, s + 1)) if with_p else like.new_empty(0)
    x_weights, y_weights = plain(x_weights, dtype), plain(y_weights, dtype)
    cross, variance = plain(cross, dtype), plain(variance, dtype)
    _FWD[dtype](
        row_begin, row_end,
        loss.data_ptr(), grad_z.data_ptr(),
        grad_a.data_ptr() if with_a else 0, grad_p.data_ptr() if with_p else 0,
        torch.get_num_threads(),
        batch[0] if batch else 1, n, m, d, samples(x), samples(y),
        address(x_weights), address(y_weights), x_scale, y_scale, address(cross), cross_scale,
        address(variance), variances, kernel_weights,
    )  # fmt: skip
    return loss, grad_z, grad_a, grad_p


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
    out_z = like.new_empty((*batch, row_end - row_begin, d))
    out_a = like.new_empty((*batch, n + m)) if with_a else like.new_empty(0)
    out_p = like.new_empty((*batch, s + 1)) if with_p else like.new_empty(0)
    x_weights, y_weights = plain(x_weights, dtype), plain(y_weights, dtype)
    cross, variance = plain(cross, dtype), plain(variance, dtype)
    tangent_z, tangent_a = plain(tangent_z, dtype), plain(tangent_a, dtype)
    tangent_p = plain(tangent_p, dtype)
    _HVP[dtype](
        row_begin, row_end, address(tangent_z), address(tangent_a), address(tangent_p),
        out_z.data_ptr(),
        out_a.data_ptr() if with_a else 0, out_p.data_ptr() if with_p else 0,
        torch.get_num_threads(),
        batch[0] if batch else 1, n, m, d, samples(x), samples(y),
        address(x_weights), address(y_weights), x_scale, y_scale, address(cross), cross_scale,
        address(variance), variances, kernel_weights,
    )  # fmt: skip
    return out_z, out_a, out_p
