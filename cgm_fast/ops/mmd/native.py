"""MMD² by the compiled CPU kernels (csrc/cpu/mmd.cpp): buffers allocated here, filled there."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgm_fast import _native
from cgm_fast.ops.memory import addresses, check_address, compute_like, plain
from cgm_fast.ops.mmd.plans import plan_of
from cgm_fast.ops.mmd.problem import Problem, Product, Tangent, Value, Wanted


class _Plan(NamedTuple):
    """What does not change from call to call: made once for shapes, options and what is wanted."""

    native: _native.MmdPlan
    loss: tuple[int, ...]
    z: tuple[int, ...] | None
    weights: tuple[int, ...] | None
    relation: tuple[int, ...] | None
    variance: tuple[int, ...] | None

    def derivatives(self, like: Tensor) -> tuple[Tensor | None, ...]:
        """Room for derivatives in z, weights, relation and variance."""
        return (
            None if self.z is None else like.new_empty(self.z),
            None if self.weights is None else like.new_empty(self.weights),
            None if self.relation is None else like.new_empty(self.relation, dtype=torch.float64),
            None if self.variance is None else like.new_empty(self.variance),
        )


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: torch.Size,
    x_stride: tuple[int, ...],
    y_stride: tuple[int, ...],
    dtype: torch.dtype,
    static: tuple[Any, ...],
    wanted: Wanted,
) -> _Plan:
    """Of x's shape, and of all that does not change."""
    sizes, kernel_weights = static[0], static[3]
    *batch, _, d = shape
    native = plan_of(_native, shape, (x_stride, y_stride), dtype, static, wanted[:2])
    rows, groups = wanted.row_end - wanted.row_begin, len(sizes)
    return _Plan(
        native,
        tuple(batch),
        (*batch, rows, d) if rows > 0 else None,
        (*batch, sum(sizes)) if wanted.weights else None,
        (*batch, groups, groups) if wanted.relation else None,
        (*batch, len(kernel_weights)) if wanted.variance else None,
    )


def fwd(problem: Problem, wanted: Wanted) -> Value:
    """L and its derivatives: see `Value`."""
    x, y, weights, relation, variance = problem[:5]
    dtype, like = compute_like(x)
    if weights is not None or relation is not None or variance is not None:
        weights, variance = plain(weights, dtype), plain(variance, dtype)
        relation = plain(relation, torch.float64)
    stride = x.stride()
    y_stride = stride if y is None else y.stride()
    plan = _plan(x.shape, stride, y_stride, x.dtype, problem[5:], wanted)
    value = Value(like.new_empty(plan.loss), *plan.derivatives(like))
    given = addresses((x, y, weights, relation, variance))
    if not given[0] or not (given[1] or y is None):
        check_address(x, y)
    _native.mmd_fwd(plan.native, given, addresses(value), torch.get_num_threads())
    return value


def hvp(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    """The Hessian of L applied to a tangent: see `Product`."""
    x, y, weights, relation, variance = problem[:5]
    dtype, like = compute_like(x)
    weights, variance = plain(weights, dtype), plain(variance, dtype)
    relation, of_relation = (plain(v, torch.float64) for v in (relation, tangent.relation))
    of_z, of_weights, of_variance = (
        plain(v, dtype) for v in (tangent.z, tangent.weights, tangent.variance)
    )
    check_address(x, y)
    y_stride = x.stride() if y is None else y.stride()
    plan = _plan(x.shape, x.stride(), y_stride, x.dtype, problem[5:], wanted)
    product = Product(*plan.derivatives(like))
    _native.mmd_hvp(
        plan.native,
        addresses((x, y, weights, relation, variance)),
        addresses((of_z, of_weights, of_relation, of_variance)),
        addresses(product),
        torch.get_num_threads(),
    )
    return product
