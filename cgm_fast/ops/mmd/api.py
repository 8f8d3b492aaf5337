"""The public function `mmd`: checks its arguments, resolves the bandwidth, calls the op."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops.backends import AUTO, check_name
from cgm_fast.ops.checks import (
    check_all_finite,
    check_choice,
    check_float_tensor,
    check_number,
    compute_dtype,
    match,
)
from cgm_fast.ops.mmd.autograd import MMD
from cgm_fast.ops.mmd.ops import mmd_fwd

Bandwidth = str | float | Sequence[float] | Tensor

BANDWIDTHS = ("paper", "infovae")
ESTIMATORS = ("biased", "unbiased")
KERNEL_AGGS = ("mean", "sum")


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: Bandwidth = "paper",
    estimator: str = "biased",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    kernel_agg: str = "mean",
    check_finite: bool = False,
    backend: str = AUTO,
) -> Tensor:
    """Squared maximum mean discrepancy of two samples, with a Gaussian kernel (eq. 5 and 7).

    L = Σ_ij w_i w_j k(x_i, x_j) − 2 Σ_ij w_i v_j k(x_i, y_j) + Σ_ij v_i v_j k(y_i, y_j) with
    k(a, b) = exp(−|a − b|² / 2σ²), w = 1/n and v = 1/m. Value and gradient come from one pass
    over the pairs of rows; memory is O((n + m) d).

    Args:
        x: [n, d] or [b, n, d], float16, bfloat16, float32 or float64.
        y: [m, d] or [b, m, d], of the same dtype and device (under autocast, dtypes may differ).
        bandwidth: σ, in units of the data: a number, a sequence of numbers or a tensor of shape
            [], [s] or [b, s] (which may require a gradient); several are averaged or added.
            "paper": σ² = d (eq. 7). "infovae": 2σ² = d².
        estimator: "biased" (V-statistic, eq. 5, never negative) or "unbiased" (U-statistic:
            pairs i = j left out, n and m at least 2).
        x_weights: [n] or [b, n], in place of 1/n. Used as they are: a probability sums to one.
        y_weights: [m] or [b, m], in place of 1/m.
        kernel_agg: "mean" or "sum" over several bandwidths.
        check_finite: Raise if an input holds NaN or infinity (synchronises with a GPU).
        backend: "auto", or the name of an implementation, which then runs or raises.

    Returns:
        [] or [b], float32 (float64 for float64 inputs). Differentiable twice in x, y, both
        weights and a tensor bandwidth.

    Raises:
        TypeError: an argument is not a floating-point tensor, or dtypes differ.
        ValueError: shapes or devices do not match, n, m or d is 0, a bandwidth is not positive,
            an option is unknown, an input is not finite (with `check_finite`).
        RuntimeError: the implementation asked for cannot run here.
    """
    x, y = _check_samples(x, y)
    check_choice("estimator", estimator, ESTIMATORS)
    check_choice("kernel_agg", kernel_agg, KERNEL_AGGS)
    check_name(backend)
    if check_finite:
        for name, value in (("x", x), ("y", y), ("x_weights", x_weights), ("y_weights", y_weights)):
            if value is not None:
                check_all_finite(name, value)
    single = x.dim() == 2
    if single:
        x, y = x.unsqueeze(0), y.unsqueeze(0)
    b, n, d = x.shape
    m = y.shape[1]
    if estimator == "unbiased" and (n < 2 or m < 2):
        raise ValueError(f"estimator='unbiased' needs n and m of at least 2, got n={n}, m={m}")

    variance, variances = resolve_variance(bandwidth, b, d, x)
    scales = len(variances) if variance is None else variance.shape[1]
    kernel_weights = [1.0 / scales if kernel_agg == "mean" else 1.0] * scales
    unbiased = estimator == "unbiased"
    wx, x_scale, x_ratio, x_mass = _row_weights("x_weights", x_weights, x, n, unbiased)
    wy, y_scale, y_ratio, y_mass = _row_weights("y_weights", y_weights, y, m, unbiased)
    cross: Tensor | None = None
    cross_scale = 1.0
    for ratio in (x_ratio, y_ratio):
        if isinstance(ratio, Tensor):
            cross = ratio if cross is None else cross * ratio
        else:
            cross_scale *= ratio

    inputs = (x, y, wx, wy, cross, variance)
    constants = (variances, kernel_weights, x_scale, y_scale, cross_scale)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        loss = MMD.apply(*inputs, *constants, backend)
    else:
        loss = mmd_fwd(*inputs, *constants, 0, 0, False, False, backend)[0]
    if x_mass is not None or y_mass is not None:
        # The op sums k - 1; what that leaves out vanishes when both samples have the same mass.
        difference: Any = (1.0 if x_mass is None else x_mass) - (1.0 if y_mass is None else y_mass)
        loss = loss + sum(kernel_weights) * difference * difference
    return loss[0] if single else loss


def _check_samples(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    check_float_tensor("x", x)
    check_float_tensor("y", y)
    if x.dim() not in (2, 3) or x.dim() != y.dim():
        raise ValueError(
            "x and y must be [n, d] and [m, d], or [b, n, d] and [b, m, d], "
            f"got {list(x.shape)} and {list(y.shape)}"
        )
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"x and y must have the same number of features d, got {x.shape[-1]} and {y.shape[-1]}"
        )
    if x.dim() == 3 and x.shape[0] != y.shape[0]:
        raise ValueError(
            f"x and y must have the same batch size b, got {x.shape[0]} and {y.shape[0]}"
        )
    for name, value in (("x", x), ("y", y)):
        if value.numel() == 0:
            raise ValueError(f"{name} must not be empty, got shape {list(value.shape)}")
    return match(("x", "y"), x, y)


def resolve_variance(
    bandwidth: Bandwidth, b: int, d: int, x: Tensor
) -> tuple[Tensor | None, list[float]]:
    """σ² as a tensor [b, s], or as plain numbers where the bandwidth is not a tensor."""
    dtype = compute_dtype(x.dtype)
    if isinstance(bandwidth, Tensor):
        check_float_tensor("bandwidth", bandwidth)
        if bandwidth.device != x.device:
            raise ValueError(
                f"bandwidth must be on the samples' device {x.device}, got {bandwidth.device}"
            )
        fits = bandwidth.dim() < 2 or (bandwidth.dim() == 2 and bandwidth.shape[0] == b)
        if not fits or bandwidth.numel() == 0:
            raise ValueError(
                f"bandwidth must have shape [], [s] or [b, s] with b={b}, got "
                f"{list(bandwidth.shape)}"
            )
        if bandwidth.device.type == "cpu" and not torch.compiler.is_compiling():
            for bound in bandwidth.detach().to(torch.float64).aminmax():
                _variance(float(bound), dtype)
        sigma = bandwidth.to(dtype)
        sigma = sigma if sigma.dim() == 2 else sigma.reshape(1, -1).expand(b, -1)
        return sigma * sigma, []
    if isinstance(bandwidth, str):
        check_choice("bandwidth", bandwidth, BANDWIDTHS)
        return None, [float(d) if bandwidth == "paper" else 0.5 * d * d]
    if isinstance(bandwidth, Sequence):
        if not bandwidth:
            raise ValueError("bandwidth must hold at least one number, got an empty sequence")
        return None, [_variance(sigma, dtype) for sigma in bandwidth]
    return None, [_variance(bandwidth, dtype)]


def _variance(sigma: Any, dtype: torch.dtype) -> float:
    """σ²; raise unless σ is a positive number and σ² one that `dtype` holds."""
    sigma = check_number("bandwidth", sigma, above=0)
    variance = sigma * sigma
    if not torch.finfo(dtype).tiny <= variance <= torch.finfo(dtype).max:
        raise ValueError(f"bandwidth squared must be representable in {dtype}, got {sigma}")
    return variance


def _row_weights(
    name: str, weights: Tensor | None, sample: Tensor, n: int, unbiased: bool
) -> tuple[Tensor | None, float, float | Tensor, Tensor | None]:
    """Weights as the op takes them: tensor [b, n], factor, its inverse for cross terms, total mass.

    The unbiased estimator leaves out i = j and divides by the mass that remains, so within a
    sample weights grow by a factor W/√(W² − Q), W = Σw, Q = Σw²; across samples they do not.
    """
    if weights is None:
        if not unbiased:
            return None, 1.0 / n, 1.0, None
        return None, 1.0 / math.sqrt(n * (n - 1)), math.sqrt((n - 1) / n), None
    check_float_tensor(name, weights)
    b = sample.shape[0]
    if list(weights.shape) not in ([n], [b, n]):
        raise ValueError(f"{name} must have shape [{n}] or [{b}, {n}], got {list(weights.shape)}")
    if weights.device != sample.device:
        raise ValueError(
            f"{name} must be on the samples' device {sample.device}, got {weights.device}"
        )
    weights = weights.to(compute_dtype(sample.dtype))
    weights = weights if weights.dim() == 2 else weights.unsqueeze(0).expand(b, n)
    mass = weights.sum(1)
    if not unbiased:
        return weights, 1.0, 1.0, mass
    ratio = (mass * mass - (weights * weights).sum(1)).sqrt() / mass
    return weights / ratio.unsqueeze(1), 1.0, ratio, mass
