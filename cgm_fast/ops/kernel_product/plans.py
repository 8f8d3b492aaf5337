"""What the compiled module is told once of a kernel product: all that is not an address."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch

from cgm_fast.ops.kernel_product.problem import Problem
from cgm_fast.ops.memory import DTYPES


def plan_of(module: ModuleType, problem: Problem) -> Any:
    """A problem's plan of a module of kernels, made once for shapes, strides and options."""
    x, y, _, v = problem[:4]
    return _plan(module, (x.shape, v.shape), (x.stride(), y.stride()), x.dtype, problem[5:])


@functools.lru_cache(maxsize=1024)
def _plan(
    module: ModuleType,
    shapes: tuple[torch.Size, torch.Size],
    strides: tuple[tuple[int, ...], tuple[int, ...]],
    dtype: torch.dtype,
    static: tuple[Any, ...],
) -> Any:
    """Of the shapes of x and v, the strides of x and y, and the fields behind the tensors."""
    variances, kernel_weights, kernel = static
    (*batch, rows, d), (*_, columns, values) = shapes
    x_strides, y_strides = (of if batch else (0, *of) for of in strides)
    return module.KernelProductPlan(
        batch=batch[0] if batch else 1, rows=rows, columns=columns, d=d, values=values,
        dtype=DTYPES[dtype], x_strides=x_strides, y_strides=y_strides,
        float64=dtype == torch.float64, variances=variances, kernel_weights=kernel_weights,
        kernel=kernel,
    )  # fmt: skip
