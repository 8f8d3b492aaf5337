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
    shape: torch.Size, dtype: torch.dtype, static: tuple[Any, ...], row_begin: int, row_end: int
) -> _native.MmdPlan:
    """What does not change from call to call; made once."""
    sizes, relations, variances, kernel_weights, kernel, _ = static
    return _native.MmdPlan(
        batch=shape[0] if len(shape) == 3 else 1, d=shape[-1], dtype=DTYPES[dtype],
        float64=dtype == torch.float64, sizes=sizes, relations=relations, variances=variances,
        kernel_weights=kernel_weights, kernel=kernel, row_begin=row_begin, row_end=row_end,
    )  # fmt: skip


def fwd(problem: Problem, wanted: Wanted) -> Value:
    """L and its derivatives: see `Value`."""
    z, weights, relation, variance, *static = problem
    z = z.contiguous()
    dtype, like = compute_like(z)
    if weights is not None or relation is not None or variance is not None:
        weights, variance = plain(weights, dtype), plain(variance, dtype)
        relation = plain(relation, torch.float64)
    value = Value(like.new_empty(z.shape[:-2]), *room_for_derivatives(problem, wanted, like))
    _native.mmd_fwd(
        _plan(z.shape, z.dtype, tuple(static), wanted.row_begin, wanted.row_end),
        z=begin(z), weights=address(weights), relation=address(relation),
        variance=address(variance),
        value_loss=value.loss.data_ptr(), value_z=address(value.z),
        value_weights=address(value.weights), value_relation=address(value.relation),
        value_variance=address(value.variance), threads=torch.get_num_threads(),
    )  # fmt: skip
    return value


def hvp(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    """The Hessian of L applied to a tangent: see `Product`."""
    z, weights, relation, variance, *static = problem
    z = z.contiguous()
    dtype, like = compute_like(z)
    weights, variance = plain(weights, dtype), plain(variance, dtype)
    relation, of_relation = (plain(v, torch.float64) for v in (relation, tangent.relation))
    of_z, of_weights, of_variance = (
        plain(v, dtype) for v in (tangent.z, tangent.weights, tangent.variance)
    )
    product = Product(*room_for_derivatives(problem, wanted, like))
    _native.mmd_hvp(
        _plan(z.shape, z.dtype, tuple(static), wanted.row_begin, wanted.row_end),
        z=begin(z), weights=address(weights), relation=address(relation),
        variance=address(variance),
        tangent_z=address(of_z), tangent_weights=address(of_weights),
        tangent_relation=address(of_relation), tangent_variance=address(of_variance),
        product_z=address(product.z), product_weights=address(product.weights),
        product_relation=address(product.relation), product_variance=address(product.variance),
        threads=torch.get_num_threads(),
    )  # fmt: skip
    return product
