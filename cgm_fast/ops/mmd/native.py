"""MMD² by the compiled CPU kernels (csrc/cpu/mmd.cpp): buffers allocated here, filled there."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgm_fast import _native
from cgm_fast.ops.memory import DTYPES, address, begin, compute_like, plain
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
    sizes, relations, variances, kernel_weights, kernel, _ = static
    *batch, n, d = shape
    x_strides, y_strides = (of if batch else (0, *of) for of in (x_stride, y_stride))
    native = _native.MmdPlan(
        batch=batch[0] if batch else 1, x_rows=n, d=d, dtype=DTYPES[dtype], x_strides=x_strides,
        y_strides=y_strides, float64=dtype == torch.float64, sizes=sizes, relations=relations,
        variances=variances, kernel_weights=kernel_weights, kernel=kernel,
        row_begin=wanted.row_begin, row_end=wanted.row_end,
    )  # fmt: skip
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
    loss = like.new_empty(plan.loss)
    of_z, of_weights, of_relation, of_variance = plan.derivatives(like)
    _native.mmd_fwd(
        plan.native,
        x=begin(x),
        y=0 if y is None else begin(y),
        weights=0 if weights is None else weights.data_ptr(),
        relation=0 if relation is None else relation.data_ptr(),
        variance=0 if variance is None else variance.data_ptr(),
        value_loss=loss.data_ptr(),
        value_z=0 if of_z is None else of_z.data_ptr(),
        value_weights=0 if of_weights is None else of_weights.data_ptr(),
        value_relation=0 if of_relation is None else of_relation.data_ptr(),
        value_variance=0 if of_variance is None else of_variance.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return Value(loss, of_z, of_weights, of_relation, of_variance)


def hvp(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    """The Hessian of L applied to a tangent: see `Product`."""
    x, y, weights, relation, variance = problem[:5]
    dtype, like = compute_like(x)
    weights, variance = plain(weights, dtype), plain(variance, dtype)
    relation, of_relation = (plain(v, torch.float64) for v in (relation, tangent.relation))
    of_z, of_weights, of_variance = (
        plain(v, dtype) for v in (tangent.z, tangent.weights, tangent.variance)
    )
    y_stride = x.stride() if y is None else y.stride()
    plan = _plan(x.shape, x.stride(), y_stride, x.dtype, problem[5:], wanted)
    product = Product(*plan.derivatives(like))
    _native.mmd_hvp(
        plan.native,
        x=begin(x), y=0 if y is None else begin(y), weights=address(weights),
        relation=address(relation), variance=address(variance),
        tangent_z=address(of_z), tangent_weights=address(of_weights),
        tangent_relation=address(of_relation), tangent_variance=address(of_variance),
        product_z=address(product.z), product_weights=address(product.weights),
        product_relation=address(product.relation), product_variance=address(product.variance),
        threads=torch.get_num_threads(),
    )  # fmt: skip
    return product
