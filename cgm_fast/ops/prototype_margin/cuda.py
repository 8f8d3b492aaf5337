"""Prototype margin loss by the CUDA C++ kernels (csrc/cuda/prototype_margin.cu)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from cgm_fast.ops.cuda.launch import ROWS, counters, kernels, stream
from cgm_fast.ops.gpu import multiprocessors, on_device
from cgm_fast.ops.memory import address, addresses, check_address, compute_like, plain
from cgm_fast.ops.prototype_margin.plans import plan_of
from cgm_fast.ops.prototype_margin.problem import Problem, Product, Tangent, Value, Wanted

# Up to this many numbers the last block adds every block's sums over its samples for the
# prototypes, in one launch; it is one block only. Beyond, a second launch visits the prototypes.
_MOST_SUMS = 1 << 20


class Launch(NamedTuple):
    """What launches are given besides, as csrc/prototype_margin.h has it."""

    blocks: int
    partials: int
    partial_g: int
    own: int
    counter: int
    stream: int


@on_device
def fwd(problem: Problem, wanted: Wanted) -> Value:
    """Loss, assignment and gradients: see `Value`."""
    r, g, labels = problem[:3]
    check_address(r, g)
    _, like = compute_like(r)
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
    partials, counter = r.new_empty(blocks, dtype=torch.float64), counters(1, r.device)
    kernels().prototype_margin_fwd_cuda(
        plan_of(kernels(), r, g, problem[3:]),
        addresses((r, g, labels)),
        addresses(value),
        Launch(
            blocks=blocks, partials=partials.data_ptr(), partial_g=address(partial_g),
            own=address(own), counter=counter.data_ptr(), stream=stream(r.device),
        ),
    )  # fmt: skip
    return value


@on_device
def hvp(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    """The Hessian applied to a tangent; the problem's labels are the assignment."""
    r, g, labels = problem[:3]
    check_address(r, g)
    dtype, like = compute_like(r)
    assert labels is not None
    labels = labels.contiguous()
    along = plain(tangent.r, dtype), plain(tangent.g, dtype)
    product = Product(like.new_empty(r.shape), like.new_empty(g.shape))
    kernels().prototype_margin_hvp_cuda(
        plan_of(kernels(), r, g, problem[3:]),
        addresses((r, g, labels)),
        addresses(along),
        addresses(product),
        Launch(0, 0, 0, 0, 0, stream(r.device)),
    )
    return product
