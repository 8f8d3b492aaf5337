"""The CGM latent objective by one call of the compiled CPU kernels (csrc/cpu/cgm_loss.cpp)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from cgm_fast import _native
from cgm_fast.ops.cgm_loss import common
from cgm_fast.ops.memory import address, compute_like, samples
from cgm_fast.ops.mmd import native as mmd
from cgm_fast.ops.prototype_margin import native as prototype_margin

_FWD = {torch.float32: _native.cgm_loss_fwd_float32, torch.float64: _native.cgm_loss_fwd_float64}


def cgm_loss_fwd(
    r: Tensor,
    g: Tensor,
    labels: Tensor | None,
    noise: Tensor,
    sigma: float,
    prior_sigma: float,
    mmd_weight: float,
    margin_weight: float,
    margin: float,
    negative_scale: float,
    variances: list[float],
    kernel_weights: list[float],
    detach_prior: bool,
    with_r: bool,
    with_g: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss [], (mmd, margin) [2], assignment [B], z [B, d], gradients in r [B, d] and g [K, d]."""
    dtype, like = compute_like(r)
    labels = None if labels is None else labels.contiguous()
    loss, terms = like.new_empty(()), like.new_empty(2)
    assignment = r.new_empty(r.shape[:1], dtype=torch.int64)
    z = like.new_empty(r.shape)
    grad_r = like.new_empty(r.shape if with_r else (0,))
    grad_g = like.new_empty(g.shape if with_g else (0,))
    _FWD[dtype](
        r.shape[0], g.shape[0], r.shape[1], samples(r), samples(g), address(labels),
        samples(noise), sigma, prior_sigma, mmd_weight, margin_weight, margin, negative_scale,
        variances, kernel_weights, detach_prior,
        loss.data_ptr(), terms.data_ptr(), assignment.data_ptr(), z.data_ptr(),
        grad_r.data_ptr() if with_r else 0, grad_g.data_ptr() if with_g else 0,
        torch.get_num_threads(),
    )  # fmt: skip
    return loss, terms, assignment, z if z.dtype == r.dtype else z.to(r.dtype), grad_r, grad_g


# The Hessian-vector product is composed of the two ops' own.
cgm_loss_hvp = partial(common.cgm_loss_hvp, mmd, prototype_margin)
