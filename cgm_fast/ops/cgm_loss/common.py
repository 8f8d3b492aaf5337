"""The CGM latent objective composed of its two parts, whichever implementation computes them."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor


def cgm_loss_fwd(
    mmd: ModuleType,
    prototype_margin: ModuleType,
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
    b = r.shape[0]
    margin_loss, assignment, margin_r, margin_g = prototype_margin.prototype_margin_fwd(
        r, g, labels, margin, negative_scale, 1.0 / b, with_r, with_g
    )
    z, prior = _latents(r, g, assignment, noise, sigma, prior_sigma)
    rows = _rows(b, with_r, with_g and not detach_prior)
    value, grad_z, *_ = mmd.mmd_fwd(
        z.unsqueeze(0), prior.unsqueeze(0), *_constants(b, variances, kernel_weights),
        *rows, False, False,
    )  # fmt: skip
    loss = mmd_weight * value[0] + margin_weight * margin_loss
    grad_r, grad_g = margin_weight * margin_r, margin_weight * margin_g
    if with_r:
        grad_r += mmd_weight * grad_z[0, :b]
    if with_g and not detach_prior:
        grad_g += mmd_weight * _sum_by_prototype(grad_z[0, -b:], assignment, g.shape[0])
    z = z.to(r.dtype).contiguous()  # as registered: whatever the layout of r
    return loss, torch.stack((value[0], margin_loss)), assignment, z, grad_r, grad_g


def cgm_loss_hvp(
    mmd: ModuleType,
    prototype_margin: ModuleType,
    r: Tensor,
    g: Tensor,
    assignment: Tensor,
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
    tangent_r: Tensor,
    tangent_g: Tensor,
) -> tuple[Tensor, Tensor]:
    """The derivative of the two gradients along (tangent_r [B, d], tangent_g [K, d])."""
    b = r.shape[0]
    out_r, out_g = prototype_margin.prototype_margin_hvp(
        r, g, assignment, margin, negative_scale, 1.0 / b, tangent_r, tangent_g
    )
    out_r, out_g = margin_weight * out_r, margin_weight * out_g
    z, prior = _latents(r, g, assignment, noise, sigma, prior_sigma)
    nearest = assignment.clamp(0, g.shape[0] - 1)
    tangent_prior = tangent_g[nearest]
    if detach_prior:
        tangent_prior = torch.zeros_like(tangent_prior)
    product, *_ = mmd.mmd_hvp(
        z.unsqueeze(0), prior.unsqueeze(0), *_constants(b, variances, kernel_weights),
        0, 2 * b, False, False, torch.cat((tangent_r, tangent_prior)).unsqueeze(0), None, None,
    )  # fmt: skip
    out_r += mmd_weight * product[0, :b]
    if not detach_prior:
        out_g += mmd_weight * _sum_by_prototype(product[0, b:], assignment, g.shape[0])
    return out_r, out_g


def _latents(
    r: Tensor, g: Tensor, assignment: Tensor, noise: Tensor, sigma: float, prior_sigma: float
) -> tuple[Tensor, Tensor]:
    """z_i = r_i + σ e_i and z'_i = g_{k_i} + τ e'_i."""
    dtype = torch.promote_types(r.dtype, torch.float32)
    noise = noise.to(dtype)
    nearest = assignment.clamp(0, g.shape[0] - 1)
    return r.to(dtype) + sigma * noise[0], g.to(dtype)[nearest] + prior_sigma * noise[1]


def _constants(
    b: int, variances: list[float], kernel_weights: list[float]
) -> tuple[None, None, None, None, list[float], list[float], float, float, float]:
    """The op's arguments for two unweighted samples of b rows, biased estimator."""
    return None, None, None, None, variances, kernel_weights, 1 / b, 1 / b, 1.0


def _rows(b: int, with_first: bool, with_second: bool) -> tuple[int, int]:
    """The rows of the stacked samples whose gradient is wanted."""
    begin = 0 if with_first or not with_second else b
    return begin, 2 * b if with_second else (b if with_first else begin)


def _sum_by_prototype(rows: Tensor, assignment: Tensor, k: int) -> Tensor:
    """Row sums by assigned prototype, [k, d], in a fixed order on every device."""
    out = rows.new_zeros(k, rows.shape[1])
    nearest = assignment.clamp(0, k - 1)
    if rows.device.type == "cuda":  # index_add_ would use atomics; this sorts instead
        return out.index_put_((nearest,), rows, accumulate=True)
    return out.index_add_(0, nearest, rows)
