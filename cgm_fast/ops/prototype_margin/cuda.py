"""Prototype margin loss by the CUDA C++ kernels (csrc/cuda/prototype_margin.cu)."""

from __future__ import annotations

import torch
from torch import Tensor

from cgm_fast.ops.cuda.launch import ROWS, counters, function, stream
from cgm_fast.ops.gpu import multiprocessors, on_device
from cgm_fast.ops.memory import address, compute_like, plain, samples

# Up to this many numbers the last block adds every block's sums over its samples for the
# prototypes, in one launch; it is one block only. Beyond, a second launch visits the prototypes.
_MOST_SUMS = 1 << 20


@on_device
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
    (b, d), k = r.shape, g.shape[0]
    labels = None if labels is None else labels.contiguous()
    loss = like.new_empty(())
    assignment = r.new_empty(b, dtype=torch.int64)
    grad_r = like.new_empty(r.shape if with_r else (0,))
    grad_g = like.new_empty(g.shape if with_g else (0,))
    row_blocks = -(-b // ROWS)
    blocks = min(row_blocks, multiprocessors(r.device))
    partial_g = own = None
    if with_g and blocks * k * d <= _MOST_SUMS:
        partial_g = like.new_empty((blocks, k, d))
    else:
        blocks = row_blocks
        own = r.new_empty(b, dtype=torch.int32) if with_g else None
    partials = r.new_empty(blocks, dtype=torch.float64)
    function("prototype_margin_fwd", dtype)(
        b, k, d, samples(r), samples(g), address(labels), margin, negative_scale, scale,
        loss.data_ptr(), assignment.data_ptr(),
        grad_r.data_ptr() if with_r else 0, grad_g.data_ptr() if with_g else 0,
        blocks, partials.data_ptr(), address(partial_g), address(own),
        counters(1, r.device).data_ptr(), stream(r.device),
    )  # fmt: skip
    return loss, assignment, grad_r, grad_g


@on_device
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
    """Hessian-vector product with (tangent_r [B, d], tangent_g [k, d]): the gradient's formula."""
    dtype, like = compute_like(r)
    assignment = assignment.contiguous()
    tangent_r, tangent_g = plain(tangent_r, dtype), plain(tangent_g, dtype)
    out_r, out_g = like.new_empty(r.shape), like.new_empty(g.shape)
    function("prototype_margin_hvp", dtype)(
        r.shape[0], g.shape[0], r.shape[1], samples(r), samples(g), assignment.data_ptr(),
        margin, negative_scale, scale, address(tangent_r), address(tangent_g),
        out_r.data_ptr(), out_g.data_ptr(), stream(r.device),
    )  # fmt: skip
    return out_r, out_g
