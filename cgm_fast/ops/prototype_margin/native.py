"""Prototype margin loss by the compiled CPU kernels (csrc/cpu/prototype_margin.cpp)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from cgm_fast import _native
from cgm_fast.ops.memory import DTYPES, addresses, check_address, compute_like, plain
from cgm_fast.ops.prototype_margin.problem import Problem, Product, Tangent, Value, Wanted


def plan_of(r: Tensor, g: Tensor, static: tuple[Any, ...]) -> _native.PrototypeMarginPlan:
    """What does not change from call to call; made once."""
    return _plan(r.shape, g.shape, r.stride(), g.stride(), (r.dtype, g.dtype), static)


@functools.lru_cache(maxsize=1024)
def _plan(
    r_shape: torch.Size,
    g_shape: torch.Size,
    r_stride: tuple[int, ...],
    g_stride: tuple[int, ...],
    dtypes: tuple[torch.dtype, torch.dtype],
    static: tuple[Any, ...],
) -> _native.PrototypeMarginPlan:
    margin, negative_scale, scale = static
    return _native.PrototypeMarginPlan(
        rows=r_shape[0], k=g_shape[0], d=r_shape[1], r_dtype=DTYPES[dtypes[0]],
        g_dtype=DTYPES[dtypes[1]], r_strides=(0, *r_stride), g_strides=(0, *g_stride),
        float64=dtypes[0] == torch.float64, margin=margin, negative_scale=negative_scale,
        scale=scale,
    )  # fmt: skip


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
    plan = plan_of(r, g, problem[3:])
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
        plan_of(r, g, problem[3:]),
        addresses((r, g, labels.contiguous())),
        addresses(along),
        addresses(product),
        torch.get_num_threads(),
    )
    return product
