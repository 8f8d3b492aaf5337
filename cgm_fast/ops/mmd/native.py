"""MMD² by the compiled CPU kernels (csrc/cpu/mmd.cpp): buffers allocated here, filled there."""

from __future__ import annotations

import torch
from torch import Tensor

from cgm_fast import _native

_FWD = {torch.float32: _native.mmd_fwd_float32, torch.float64: _native.mmd_fwd_float64}
_BWD = {torch.float32: _native.mmd_bwd_float32, torch.float64: _native.mmd_bwd_float64}


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
    dtype, like = _compute(x)
    *batch, n, d = x.shape
    m, s = y.shape[-2], len(kernel_weights)
    loss = like.new_empty(batch)
    grad_z = like.new_empty((*batch, row_end - row_begin, d))
    grad_a = like.new_empty((*batch, n + m)) if with_a else like.new_empty(0)
    grad_p = like.new_empty((*batch, s + 1)) if with_p else like.new_empty(0)
    x_weights, y_weights = _plain(x_weights, dtype), _plain(y_weights, dtype)
    cross, variance = _plain(cross, dtype), _plain(variance, dtype)
    _FWD[dtype](
        row_begin, row_end,
        loss.data_ptr(), grad_z.data_ptr(),
        grad_a.data_ptr() if with_a else 0, grad_p.data_ptr() if with_p else 0,
        torch.get_num_threads(),
        batch[0] if batch else 1, n, m, d, _samples(x), _samples(y),
        _address(x_weights), _address(y_weights), x_scale, y_scale, _address(cross), cross_scale,
        _address(variance), variances, kernel_weights,
    )  # fmt: skip
    return loss, grad_z, grad_a, grad_p


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
    dtype, like = _compute(x)
    *batch, n, d = x.shape
    m, s = y.shape[-2], len(kernel_weights)
    out_z = like.new_empty((*batch, row_end - row_begin, d))
    out_a = like.new_empty((*batch, n + m)) if with_a else like.new_empty(0)
    out_p = like.new_empty((*batch, s + 1)) if with_p else like.new_empty(0)
    x_weights, y_weights = _plain(x_weights, dtype), _plain(y_weights, dtype)
    cross, variance = _plain(cross, dtype), _plain(variance, dtype)
    tangent_z, tangent_a = _plain(tangent_z, dtype), _plain(tangent_a, dtype)
    tangent_p = _plain(tangent_p, dtype)
    _BWD[dtype](
        row_begin, row_end, _address(tangent_z), _address(tangent_a), _address(tangent_p),
        out_z.data_ptr(),
        out_a.data_ptr() if with_a else 0, out_p.data_ptr() if with_p else 0,
        torch.get_num_threads(),
        batch[0] if batch else 1, n, m, d, _samples(x), _samples(y),
        _address(x_weights), _address(y_weights), x_scale, y_scale, _address(cross), cross_scale,
        _address(variance), variances, kernel_weights,
    )  # fmt: skip
    return out_z, out_a, out_p


_DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}


def _compute(x: Tensor) -> tuple[torch.dtype, Tensor]:
    """The dtype to compute in, and a tensor of it to make others like."""
    if x.dtype == torch.float32 or x.dtype == torch.float64:
        return x.dtype, x
    return torch.float32, x.new_empty(0, dtype=torch.float32)


def _samples(value: Tensor) -> tuple[int, int, int, int, int]:
    """Where a batch of samples lies: the kernels read any dtype with any strides."""
    *item, row, feature = value.stride()
    return value.data_ptr(), _DTYPES[value.dtype], item[0] if item else 0, row, feature


def _plain(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Weights and tangents as the kernels read them: contiguous, float32 or float64."""
    return None if value is None else value.to(dtype).contiguous()


def _address(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()
