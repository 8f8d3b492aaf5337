"""Prototype margin loss by the compiled CPU kernels (csrc/cpu/prototype_margin.cpp)."""

from __future__ import annotations

import torch

from cgm_fast import _native
from cgm_fast.ops.memory import addresses, check_address, compute_like, plain
from cgm_fast.ops.prototype_margin.plans import plan_of
from cgm_fast.ops.prototype_margin.problem import Problem, Product, Tangent, Value, Wanted


def fwd(problem: Problem, wanted: Wanted) -> Value:
    """Loss, assignment and gradients: see `Value`."""
    r, g, labels = problem[:3]
    _, like = compute_like(r)
    labels = None if labels is None else labels.contiguous()
    value = Value(
        like.new_empty(()),
        r.new_empty(r.shape[0], dtype=torch.int64),
        like.new_empty(r.shape) if wanted.r else None,
        like.new_empty(g.shape) if wanted.g else None,
    )
    given = addresses((r, g, labels))
    if not (given[0] and given[1]):
        check_address(r, g)
    plan = plan_of(_native, r, g, problem[3:])
    _native.prototype_margin_fwd(plan, given, addresses(value), torch.get_num_threads())
    return value


def hvp(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    """The Hessian applied to a tangent; the problem's labels are the assignment."""
    r, g, labels = problem[:3]
    dtype, like = compute_like(r)
    assert labels is not None
    check_address(r, g)
    along = plain(tangent.r, dtype), plain(tangent.g, dtype)
    product = Product(like.new_empty(r.shape), like.new_empty(g.shape))
    _native.prototype_margin_hvp(
        plan_of(_native, r, g, problem[3:]),
        addresses((r, g, labels.contiguous())),
        addresses(along),
        addresses(product),
        torch.get_num_threads(),
    )
    return product
