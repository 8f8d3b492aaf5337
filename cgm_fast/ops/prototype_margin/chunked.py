"""Nearest prototype and margin loss by chunks of samples, in plain PyTorch.

What implementations share that differ in how distances are taken.

The B x K matrix of distances is never stored whole. Nothing here waits for the device. See
README.md beside this file for the formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cgm_fast.ops.chunks import no_autocast, wide_dtype
from cgm_fast.ops.prototype_margin.problem import Problem, Product, Tangent, Value, Wanted

Chunks = Callable[[Tensor, Tensor, float], Iterator[tuple[slice, Tensor, Tensor, Tensor]]]
"""(r, g, margin) to slices of the samples: the slice, its rows [c, d] and the prototypes [K, d],
both about a centre in the dtype that is computed in, and their squared distances [c, K]. These are
good where they are the least of a sample, or less than the margin; others need only be greater."""


def fwd(problem: Problem, wanted: Wanted, chunks: Chunks) -> Value:
    """Loss, assignment and gradients: see `Value`."""
    r, g, labels, margin, negative_scale, scale = problem
    dtype = torch.promote_types(r.dtype, torch.float32)
    wide = wide_dtype(r.device)
    loss = r.new_zeros((), dtype=wide)
    assignment = torch.empty(r.shape[:1], dtype=torch.int64, device=r.device)
    grad_r = r.new_empty(r.shape if wanted.r else (0,), dtype=dtype)
    grad_g = r.new_zeros(g.shape if wanted.g else (0,), dtype=wide)
    with no_autocast(r.device.type):
        for i, rows, prototypes, distance in chunks(r, g, margin):
            if labels is None:
                nearest = distance.argmin(1)
            else:
                nearest = labels[i].clamp(0, g.shape[0] - 1)
            assignment[i] = nearest if labels is None else labels[i]
            own = _own(nearest, g.shape[0])
            attraction = distance.gather(1, nearest.unsqueeze(1)).squeeze(1)
            # Not `distance < margin`: a NaN distance must reach the loss.
            hinge = (margin - distance).clamp_min(0).masked_fill(own, 0)
            loss += (attraction + negative_scale * hinge.sum(1)).sum(dtype=wide)
            if labels is not None:
                outside = (labels[i] != nearest).any()
                loss += torch.where(outside, float("nan"), 0.0)  # checked before, on the CPU
            a = _slopes(own, distance, margin, negative_scale)
            if wanted.r:
                grad_r[i] = 2 * scale * (a.sum(1, keepdim=True) * rows - a @ prototypes)
            if wanted.g:
                grad_g += 2 * scale * (a.sum(0).unsqueeze(1) * prototypes - a.T @ rows)
    return Value(
        (scale * loss).to(dtype),
        assignment,
        grad_r if wanted.r else None,
        grad_g.to(dtype) if wanted.g else None,
    )


def hvp(problem: Problem, tangent: Tangent, chunks: Chunks) -> Product:
    """The Hessian applied to a tangent, by the gradient's formula; labels are the assignment."""
    r, g, assignment, margin, negative_scale, scale = problem
    assert assignment is not None
    dtype = torch.promote_types(r.dtype, torch.float32)
    out_r = r.new_empty(r.shape, dtype=dtype)
    out_g = r.new_zeros(g.shape, dtype=wide_dtype(r.device))
    zero = r.new_zeros((), dtype=dtype)
    t_r = zero.expand(r.shape) if tangent.r is None else tangent.r.to(dtype)
    t_g = zero.expand(g.shape) if tangent.g is None else tangent.g.to(dtype)
    with no_autocast(r.device.type):
        for i, _, _, distance in chunks(r, g, margin):
            nearest = assignment[i].clamp(0, g.shape[0] - 1)
            a = _slopes(_own(nearest, g.shape[0]), distance, margin, negative_scale)
            out_r[i] = 2 * scale * (a.sum(1, keepdim=True) * t_r[i] - a @ t_g)
            out_g += 2 * scale * (a.sum(0).unsqueeze(1) * t_g - a.T @ t_r[i])
    return Product(out_r, out_g.to(dtype))


def _own(nearest: Tensor, k: int) -> Tensor:
    """Whether a prototype is the assigned one, [B, k]; `one_hot` would look for values beyond k."""
    return nearest.unsqueeze(1) == torch.arange(k, device=nearest.device)


def _slopes(own: Tensor, distance: Tensor, margin: float, negative_scale: float) -> Tensor:
    """dL/dd_ik over `scale`: 1 for the assigned prototype, -negative_scale inside the margin."""
    a = (distance < margin).to(distance.dtype) * -negative_scale
    return a.masked_fill_(own, 1)
