"""MMD² by the compiled CPU kernels (csrc/cpu/mmd.cpp): buffers allocated here, filled there."""

from __future__ import annotations

import functools
from typing import Any

import torch

from cgm_fast import _native
from cgm_fast.ops.memory import DTYPES, address, begin, compute_like, plain
from cgm_fast.ops.mmd.common import room_for_derivatives
from cgm_fast.ops.mmd.problem import Problem, Product, Tangent, Value, Wanted


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: torch.Size,
    strides: tuple[tuple[int, ...], tuple[int, ...]],
    dtype: torch.dtype,
    static: tuple[Any, ...],
    rows: tuple[int, int],
) -> _native.MmdPlan:
    """What does not change from call to call, of x's shape, and of both strides; made once."""
    sizes, relations, variances, kernel_weights, kernel, _ = static
    x_strides, y_strides = (of if len(of) == 3 else (0, *of) for of in strides)
    return _native.MmdPlan(
        batch=shape[0] if len(shape) == 3 else 1, x_rows=shape[-2], d=shape[-1],
        dtype=DTYPES[dtype], x_strides=x_strides, y_strides=y_strides,
        float64=dtype == torch.float64, sizes=sizes, relations=relations, variances=variances,
        kernel_weights=kernel_weights, kernel=kernel, row_begin=rows[0], row_end=rows[1],
    )  # fmt: skip


def fwd(problem: Problem, wanted: Wanted) -> Value:
    """L and its derivatives: see `Value`."""
    x, y, weights, relation, variance = problem[:5]
    dtype, like = compute_like(x)
    if weights is not None or relation is not None or variance is not None:
        weights, variance = plain(weights, dtype), plain(variance, dtype)
        relation = plain(relation, torch.float64)
    value = Value(like.new_empty(x.shape[:-2]), *room_for_derivatives(problem, wanted, like))
    loss, of_z, of_weights, of_relation, of_variance = value
    strides = x.stride(), (0, 0) if y is None else y.stride()
    _native.mmd_fwd(
        _plan(x.shape, strides, x.dtype, problem[5:], wanted[:2]),
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
    product = Product(*room_for_derivatives(problem, wanted, like))
    strides = x.stride(), (0, 0) if y is None else y.stride()
    _native.mmd_hvp(
        _plan(x.shape, strides, x.dtype, problem[5:], wanted[:2]),
        x=begin(x), y=0 if y is None else begin(y), weights=address(weights),
        relation=address(relation), variance=address(variance),
        tangent_z=address(of_z), tangent_weights=address(of_weights),
        tangent_relation=address(of_relation), tangent_variance=address(of_variance),
        product_z=address(product.z), product_weights=address(product.weights),
        product_relation=address(product.relation), product_variance=address(product.variance),
        threads=torch.get_num_threads(),
    )  # fmt: skip
    return product
