"""The public function `cgm_loss`: noise, latents, MMD² and margin loss of one batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgm_fast.ops.backends import AUTO, check_name
from cgm_fast.ops.cgm_loss.autograd import CGMLoss
from cgm_fast.ops.cgm_loss.ops import cgm_loss_fwd
from cgm_fast.ops.cgm_loss.problem import NOTHING, Problem
from cgm_fast.ops.checks import (
    cached,
    check_all_finite,
    check_choice,
    check_float_tensor,
    check_number,
    compute_dtype,
)
from cgm_fast.ops.mmd.api import kernel_weights, resolve_variances, takes_bandwidth
from cgm_fast.ops.prototype_margin.api import NEGATIVES, check_labels, check_prototypes
from cgm_fast.ops.watching import differentiates_itself, distinct


class CGMLossResult(NamedTuple):
    """What `cgm_loss` returns."""

    loss: Tensor
    """[], mmd_weight · MMD² + margin_weight · margin loss; float32, or float64 as the inputs."""
    mmd: Tensor
    """[], MMD² without its weight, detached."""
    margin: Tensor
    """[], the margin loss without its weight, detached."""
    assignment: Tensor
    """[B] int64, each sample's prototype."""
    z: Tensor
    """[B, d], the latents r + σ·noise; gradients through it reach r."""


def cgm_loss(
    r: Tensor,
    g: Tensor,
    labels: Tensor | None = None,
    *,
    sigma2: float = 0.02,
    prior_sigma2: float | None = None,
    mmd_weight: float = 1000.0,
    margin_weight: float = 1.0,
    margin: float = 1.0,
    bandwidth: str | float | Sequence[float] = "paper",
    kernel_agg: str = "mean",
    negatives: str = "sum",
    detach_prior: bool = False,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    check_finite: bool = False,
    backend: str = AUTO,
) -> CGMLossResult:
    """λ·MMD² + β·margin loss of encoded samples and their prototypes (eq. 6 less its first term).

    With k_i the label or the nearest prototype, z_i = r_i + σ e_i and z'_i = g_{k_i} + τ e'_i,
    L = λ MMD²(z, z') + β L_D(r, g): `mmd` (biased) and `prototype_margin` in one op.

    Args:
        r: [B, d] encoder means, float16, bfloat16, float32 or float64.
        g: [K, d] prototypes, of the same dtype and device; K at least 2.
        labels: [B] integers in [0, K), or None for the nearest prototype.
        sigma2: σ², variance of the encoder's noise, in squared units of r.
        prior_sigma2: τ², variance of a prior component; None for σ².
        mmd_weight: λ.
        margin_weight: β.
        margin: m, on the squared distance.
        bandwidth: Of the kernel, as `cgm_fast.mmd` takes it, but not a tensor.
        kernel_agg: "mean" or "sum" over several bandwidths.
        negatives: "sum" or "mean" over the other prototypes in the margin loss.
        detach_prior: Keep the MMD from moving the prototypes.
        noise: [2, B, d], the standard normal e and e'; None to draw it.
        generator: For drawing the noise; None for torch's own.
        check_finite: Raise if an input holds NaN or infinity (synchronises with a GPU).
        backend: "auto", or the name of an implementation, which then runs or raises.

    Returns:
        Loss, its two terms, assignment and latents. `loss` and `z` are differentiable in r and
        g; `loss` twice.

    Raises:
        TypeError: a dtype is not among those named above.
        ValueError: shapes or devices do not match, a number is out of range, an option is
            unknown, `noise` requires a gradient, an input is not finite (with `check_finite`).
        RuntimeError: the implementation asked for cannot run here.
    """
    r, g = check_prototypes(r, g)
    labels = check_labels(labels, r, g)
    check_name(backend)
    if isinstance(bandwidth, Tensor):
        raise TypeError(f"bandwidth must be {takes_bandwidth(tensors=False)} here, got a tensor")
    b, d = r.shape
    variances = resolve_variances(bandwidth, d, r.dtype)
    weights = kernel_weights(kernel_agg, len(variances))
    scalars = cached(
        _scalars, sigma2, prior_sigma2, mmd_weight, margin_weight, margin, negatives, g.shape[0]
    )
    if noise is None:
        # torch.compile takes no generator, not even None, where a size is a symbol.
        source: dict[str, Any] = {} if generator is None else {"generator": generator}
        noise = torch.randn((2, b, d), dtype=compute_dtype(r.dtype), device=r.device, **source)
    else:
        check_float_tensor("noise", noise)
        if list(noise.shape) != [2, b, d]:
            raise ValueError(f"noise must have shape [2, {b}, {d}], got {list(noise.shape)}")
        if noise.device != r.device:
            raise ValueError(f"noise must be on the samples' device {r.device}, got {noise.device}")
        if noise.requires_grad:
            raise ValueError("noise must not require a gradient, which would be lost; detach() it")
    if check_finite:
        for name, value in (("r", r), ("g", g), ("noise", noise)):
            check_all_finite(name, value)
    inputs = (r, g, labels, noise)
    static = (*scalars, variances, weights, "gaussian", detach_prior)
    if torch.is_grad_enabled() and (r.requires_grad or g.requires_grad) and differentiates_itself():
        loss, terms, assignment, z = CGMLoss.apply(static, backend, None, *distinct(inputs))
    else:
        loss, terms, assignment, z, *_ = cgm_loss_fwd(Problem(*inputs, *static), NOTHING, backend)
    of_mmd, of_margin = terms.unbind()
    return CGMLossResult(loss, of_mmd, of_margin, assignment, z)


@functools.lru_cache(maxsize=1024, typed=True)
def _scalars(
    sigma2: float,
    prior_sigma2: float | None,
    mmd_weight: float,
    margin_weight: float,
    margin: float,
    negatives: str,
    k: int,
) -> tuple[float, float, float, float, float, float]:
    """σ, τ, λ, β, m and the weight of a negative of k − 1, checked."""
    sigma2 = check_number("sigma2", sigma2, at_least=0)
    if prior_sigma2 is None:
        prior_sigma2 = sigma2
    prior_sigma2 = check_number("prior_sigma2", prior_sigma2, at_least=0)
    mmd_weight = check_number("mmd_weight", mmd_weight, at_least=0)
    margin_weight = check_number("margin_weight", margin_weight, at_least=0)
    margin = check_number("margin", margin, at_least=0)
    check_choice("negatives", negatives, NEGATIVES)
    negative = 1.0 if negatives == "sum" else 1.0 / (k - 1)
    sigma, prior_sigma = math.sqrt(sigma2), math.sqrt(prior_sigma2)
    return sigma, prior_sigma, mmd_weight, margin_weight, margin, negative
