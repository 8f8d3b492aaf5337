"""Prototype margin loss by the compiled CPU kernels (csrc/cpu/prototype_margin.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cgm_fast import _native
from cgm_fast.ops.memory import address, compute_like, plain, samples

_FWD = {
    torch.float32: _native.prototype_margin_fwd_float32,
    torch.float64: _native.prototype_margin_fwd_float64,
}
_HVP = {
    torch.float32: _native.prototype_margin_hvp_float32,
    torch.float64: _native.prototype_margin_hvp_float64,
}


def prototype_margin_fwd(
    r: Tensor,
    g: Tensor,
    labels: Tensor | None,
    margin: float,
    negative_scale: float,
    scale: float,
    with_r: bool,
    with_g: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss [], assignment [B], and gradients in r [B, d] and g [k, d] (empty if not wanted)."""
    dtype, like = compute_like(r)
    labels = None if labels is None else labels.contiguous()
    loss = like.new_empty(())
    assignment = r.new_empty(r.shape[:1], dtype=torch.int64)
    grad_r = like.new_empty(r.shape if with_r else (0,))
    grad_g = like.new_empty(g.shape if with_g else (0,))
    _FWD[dtype](
        r.shape[0], g.shape[0], r.shape[1], samples(r), samples(g), address(labels),
        margin, negative_scale, scale, loss.data_ptr(), assignment.data_ptr(),
        grad_r.data_ptr() if with_r else 0, grad_g.data_ptr() if with_g else 0,
        torch.get_num_threads(),
    )  # fmt: skip
    return loss, assignment, grad_r, grad_g


def prototype_margin_hvp(
    r: Tensor,
    g: Tensor,
    assignment: Tensor,
    margin: float,
    negative_scale: float,
    scale: float,
    tangent_r: Tensor | None,
    tangent_g: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Hessian-vector product with (tangent_r [B, d], tangent_g [k, d])."""
    dtype, like = compute_like(r)
    assignment = assignment.contiguous()
    tangent_r, tangent_g = plain(tangent_r, dtype), plain(tangent_g, dtype)
    out_r, out_g = like.new_empty(r.shape), like.new_empty(g.shape)
    _HVP[dtype](
        r.shape[0], g.shape[0], r.shape[1], samples(r), samples(g), assignment.data_ptr(),
        margin, negative_scale, scale, address(tangent_r), address(tangent_g),
        out_r.data_ptr(), out_g.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out_r, out_g
