"""The public function `prototype_margin`: checks its arguments and calls the op."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cgm_fast.ops.backends import AUTO, check_name
from cgm_fast.ops.checks import (
    bounds,
    check_all_finite,
    check_choice,
    check_float_tensor,
    check_number,
    match,
)
from cgm_fast.ops.prototype_margin.autograd import PrototypeMargin
from cgm_fast.ops.prototype_margin.ops import prototype_margin_fwd
from cgm_fast.ops.prototype_margin.problem import NOTHING, Problem
from cgm_fast.ops.watching import differentiates_itself, distinct

NEGATIVES = ("sum", "mean")
REDUCTIONS = ("mean", "sum")


class PrototypeMarginResult(NamedTuple):
    """What `prototype_margin` returns."""

    loss: Tensor
    """[], float32 (float64 for float64 inputs)."""
    assignment: Tensor
    """[B] int64: the label where labels were given, the nearest prototype otherwise."""


def prototype_margin(
    r: Tensor,
    g: Tensor,
    labels: Tensor | None = None,
    *,
    margin: float = 1.0,
    negatives: str = "sum",
    reduction: str = "mean",
    check_finite: bool = False,
    backend: str = AUTO,
) -> PrototypeMarginResult:
    """Assign samples to prototypes and pull them there, away from the others (eq. 8).

    With d_ik = |r_i − g_k|² and k_i the label, or the nearest prototype (the lowest of equals):
    L = mean_i [ d_{i,k_i} + Σ_{k ≠ k_i} max(0, margin − d_ik) ]. Assignment, loss and both
    gradients come from one visit to the distances, which are never stored.

    Args:
        r: [B, d] encoded samples, float16, bfloat16, float32 or float64.
        g: [K, d] prototypes, of the same dtype and device; K at least 2.
        labels: [B] integers in [0, K), or None for the nearest prototype. On a GPU the range is
            not checked (that would synchronise): a label outside it makes the loss NaN.
        margin: On the squared distance, in squared units of the data.
        negatives: "sum" over the other prototypes (eq. 8), or their "mean".
        reduction: "mean" or "sum" over the samples.
        check_finite: Raise if an input holds NaN or infinity (synchronises with a GPU).
        backend: "auto", or the name of an implementation, which then runs or raises.

    Returns:
        The loss and the assignment. The loss is differentiable twice in r and g.

    Raises:
        TypeError: r or g is not a floating-point tensor, labels are not integers, dtypes differ.
        ValueError: shapes or devices do not match, B or d is 0, K < 2, margin < 0, a label is
            out of range, an option is unknown, an input is not finite (with `check_finite`).
        RuntimeError: the implementation asked for cannot run here.
    """
    r, g = check_prototypes(r, g)
    labels = check_labels(labels, r, g)
    margin = check_number("margin", margin, at_least=0)
    check_choice("negatives", negatives, NEGATIVES)
    check_choice("reduction", reduction, REDUCTIONS)
    check_name(backend)
    if check_finite:
        check_all_finite("r", r)
        check_all_finite("g", g)
    negative_scale = 1.0 if negatives == "sum" else 1.0 / (g.shape[0] - 1)
    scale = 1.0 / r.shape[0] if reduction == "mean" else 1.0
    inputs, static = (r, g, labels), (margin, negative_scale, scale)
    if torch.is_grad_enabled() and (r.requires_grad or g.requires_grad) and differentiates_itself():
        loss, assignment = PrototypeMargin.apply(static, backend, None, *distinct(inputs))
    else:
        problem = Problem(*inputs, *static)
        loss, assignment, *_ = prototype_margin_fwd(problem, NOTHING, backend)
    return PrototypeMarginResult(loss, assignment)


def check_prototypes(r: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Check samples [B, d] and prototypes [K, d]; under autocast, give them one dtype."""
    check_float_tensor("r", r)
    check_float_tensor("g", g)
    if r.dim() != 2 or g.dim() != 2 or r.shape[1] != g.shape[1]:
        raise ValueError(
            f"r and g must be [B, d] and [K, d], got {list(r.shape)} and {list(g.shape)}"
        )
    if r.numel() == 0:
        raise ValueError(f"r must not be empty, got shape {list(r.shape)}")
    if g.shape[0] < 2:
        raise ValueError(f"g must hold at least 2 prototypes, got K={g.shape[0]}")
    return match(("r", "g"), r, g)


def check_labels(labels: Tensor | None, r: Tensor, g: Tensor) -> Tensor | None:
    """Check labels [B] in [0, K) and return them as int64; None stays None."""
    if labels is None:
        return None
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.layout is not torch.strided or labels.is_nested:
        raise TypeError("labels must be dense, got a nested tensor or another layout")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must have an integer dtype, got {labels.dtype}")
    if list(labels.shape) != [r.shape[0]]:
        raise ValueError(f"labels must have shape [{r.shape[0]}], got {list(labels.shape)}")
    if labels.device != r.device:
        raise ValueError(f"labels must be on the samples' device {r.device}, got {labels.device}")
    labels = labels.to(torch.int64)
    found = bounds(labels)
    if found is not None and (found[0] < 0 or found[1] >= g.shape[0]):
        raise ValueError(
            f"labels must lie in [0, {g.shape[0]}), got values from {found[0]} to {found[1]}"
        )
    return labels
