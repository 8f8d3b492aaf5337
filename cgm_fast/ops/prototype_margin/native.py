"""Prototype margin loss by the compiled CPU kernels (csrc/cpu/prototype_margin.cpp)."""

from __future__ import annotations

import functools

import torch

from cgm_fast import _native
from cgm_fast.ops.memory import address, compute_like, plain, samples
from cgm_fast.ops.prototype_margin.problem import Problem, Product, Tangent, Value, Wanted


@functools.lru_cache(maxsize=1024)
def plan_of(
    rows: int, k: int, d: int, dtype: torch.dtype, margin: float, negative_scale: float,
    scale: float,
) -> _native.PrototypeMarginPlan:  # fmt: skip
    """What does not change from call to call; made once."""
    return _native.PrototypeMarginPlan(
        rows=rows, k=k, d=d, float64=dtype == torch.float64,
        margin=margin, negative_scale=negative_scale, scale=scale,
    )  # fmt: skip


def fwd(problem: Problem, wanted: Wanted) -> Value:
    """Loss, assignment and gradients: see `Value`."""
    r, g, labels, *static = problem
    dtype, like = compute_like(r)
    labels = None if labels is None else labels.contiguous()
    value = Value(
        like.new_empty(()),
        r.new_empty(r.shape[:1], dtype=torch.int64),
        like.new_empty(r.shape) if wanted.r else None,
        like.new_empty(g.shape) if wanted.g else None,
    )
    _native.prototype_margin_fwd(
        plan_of(r.shape[0], g.shape[0], r.shape[1], dtype, *static),
        r=samples(r), g=samples(g), labels=address(labels),
        value_loss=value.loss.data_ptr(), value_assignment=value.assignment.data_ptr(),
        value_r=address(value.r), value_g=address(value.g),
        threads=torch.get_num_threads(),
    )  # fmt: skip
    return value


def hvp(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    """The Hessian applied to a tangent; the problem's labels are the assignment."""
    r, g, labels, *static = problem
    dtype, like = compute_like(r)
    assert labels is not None
    labels = labels.contiguous()
    of_r, of_g = plain(tangent.r, dtype), plain(tangent.g, dtype)
    product = Product(like.new_empty(r.shape), like.new_empty(g.shape))
    _native.prototype_margin_hvp(
        plan_of(r.shape[0], g.shape[0], r.shape[1], dtype, *static),
        r=samples(r), g=samples(g), labels=address(labels),
        tangent_r=address(of_r), tangent_g=address(of_g),
        product_r=product.r.data_ptr(), product_g=product.g.data_ptr(),
        threads=torch.get_num_threads(),
    )  # fmt: skip
    return product
