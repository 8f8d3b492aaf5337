"""Prototype margin loss by the CUDA C++ kernels (csrc/cuda/prototype_margin.cu)."""

from __future__ import annotations

import functools
from typing import Any

import torch

from cgm_fast.ops.cuda.launch import ROWS, counters, kernels, stream
from cgm_fast.ops.gpu import multiprocessors, on_device
from cgm_fast.ops.memory import address, compute_like, plain, samples
from cgm_fast.ops.prototype_margin.problem import Problem, Product, Tangent, Value, Wanted

# Up to this many numbers the last block adds every block's sums over its samples for the
# prototypes, in one launch; it is one block only. Beyond, a second launch visits the prototypes.
_MOST_SUMS = 1 << 20


@functools.lru_cache(maxsize=1024)
def plan_of(
    rows: int, k: int, d: int, dtype: torch.dtype, margin: float, negative_scale: float,
    scale: float,
) -> Any:  # fmt: skip
    """What does not change from call to call; made once."""
    return kernels().PrototypeMarginPlan(
        rows=rows, k=k, d=d, float64=dtype == torch.float64,
        margin=margin, negative_scale=negative_scale, scale=scale,
    )  # fmt: skip


@on_device
def fwd(problem: Problem, wanted: Wanted) -> Value:
    """Loss, assignment and gradients: see `Value`."""
    r, g, labels, *static = problem
    dtype, like = compute_like(r)
    (b, d), k = r.shape, g.shape[0]
    labels = None if labels is None else labels.contiguous()
    value = Value(
        like.new_empty(()),
        r.new_empty(b, dtype=torch.int64),
        like.new_empty(r.shape) if wanted.r else None,
        like.new_empty(g.shape) if wanted.g else None,
    )
    row_blocks = -(-b // ROWS)
    blocks = min(row_blocks, multiprocessors(r.device))
    partial_g = own = None
    if wanted.g and blocks * k * d <= _MOST_SUMS:
        partial_g = like.new_empty((blocks, k, d))
    else:
        blocks = row_blocks
        own = r.new_empty(b, dtype=torch.int32) if wanted.g else None
    partials = r.new_empty(blocks, dtype=torch.float64)
    kernels().prototype_margin_fwd_cuda(
        plan_of(b, k, d, dtype, *static),
        r=samples(r), g=samples(g), labels=address(labels),
        value_loss=value.loss.data_ptr(), value_assignment=value.assignment.data_ptr(),
        value_r=address(value.r), value_g=address(value.g),
        device=kernels().PrototypeMarginDevice(
            blocks=blocks, partials=partials.data_ptr(), partial_g=address(partial_g),
            own=address(own), counter=counters(1, r.device).data_ptr(), stream=stream(r.device),
        ),
    )  # fmt: skip
    return value


@on_device
def hvp(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    """The Hessian applied to a tangent; the problem's labels are the assignment."""
    r, g, labels, *static = problem
    dtype, like = compute_like(r)
    assert labels is not None
    labels = labels.contiguous()
    of_r, of_g = plain(tangent.r, dtype), plain(tangent.g, dtype)
    product = Product(like.new_empty(r.shape), like.new_empty(g.shape))
    kernels().prototype_margin_hvp_cuda(
        plan_of(r.shape[0], g.shape[0], r.shape[1], dtype, *static),
        r=samples(r), g=samples(g), labels=address(labels),
        tangent_r=address(of_r), tangent_g=address(of_g),
        product_r=product.r.data_ptr(), product_g=product.g.data_ptr(),
        device=kernels().PrototypeMarginDevice(stream=stream(r.device)),
    )  # fmt: skip
    return product
