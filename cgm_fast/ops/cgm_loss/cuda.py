"""The CGM latent objective by CUDA C++ kernels: one launch at a batch's size, see README.md."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from cgm_fast.ops.cgm_loss import common
from cgm_fast.ops.cuda.launch import MOST_FEATURES, counters, function, rows_of_block, stream
from cgm_fast.ops.gpu import constants, on_device
from cgm_fast.ops.memory import address, compute_like, samples
from cgm_fast.ops.mmd import cuda as mmd
from cgm_fast.ops.prototype_margin import cuda as prototype_margin

# Up to these sizes one launch does it all. Every block assigns all samples: WORK multiply-adds.
MOST_ROWS, MOST_WORK = 1024, 1 << 21


@on_device
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
    (b, d), k = r.shape, g.shape[0]
    if b > MOST_ROWS or d > MOST_FEATURES[dtype] or b * k * d > MOST_WORK:
        return common.cgm_loss_fwd(
            mmd, prototype_margin, r, g, labels, noise, sigma, prior_sigma, mmd_weight,
            margin_weight, margin, negative_scale, variances, kernel_weights, detach_prior,
            with_r, with_g,
        )  # fmt: skip

    r_dtype, (r, g, noise) = r.dtype, [value.to(dtype).contiguous() for value in (r, g, noise)]
    labels = None if labels is None else labels.contiguous()
    of_scales = constants(tuple(variances), dtype, r.device)
    of_kernel = constants(tuple(kernel_weights), dtype, r.device)
    loss, terms, z = like.new_empty(()), like.new_empty(2), like.new_empty((b, d))
    assignment = r.new_empty(b, dtype=torch.int64)
    grad_r = like.new_empty((b, d) if with_r else (0,))
    grad_g = like.new_empty((k, d) if with_g else (0,))
    rows = rows_of_block(1, 2 * b, r.device)
    blocks = -(-2 * b // rows) + (k if with_g else 0)
    partials = r.new_empty((blocks, 9), dtype=torch.float64)
    prior = like.new_empty((b, d))
    function("cgm_loss_fwd", dtype)(
        b, k, d, samples(r), samples(g), address(labels), samples(noise), sigma, prior_sigma,
        mmd_weight, margin_weight, margin, negative_scale, len(variances), of_scales.data_ptr(),
        of_kernel.data_ptr(), detach_prior, loss.data_ptr(), terms.data_ptr(),
        assignment.data_ptr(), z.data_ptr(),
        grad_r.data_ptr() if with_r else 0, grad_g.data_ptr() if with_g else 0,
        rows, partials.data_ptr(), prior.data_ptr(), counters(1, r.device).data_ptr(),
        stream(r.device),
    )  # fmt: skip
    return loss, terms, assignment, z.to(r_dtype), grad_r, grad_g


# The Hessian-vector product is composed of the two ops' own.
cgm_loss_hvp = partial(common.cgm_loss_hvp, mmd, prototype_margin)
