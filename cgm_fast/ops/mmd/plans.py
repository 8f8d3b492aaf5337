"""What the compiled module is told once of an MMD² problem: all that is not an address."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch

from cgm_fast.ops.memory import DTYPES


@functools.lru_cache(maxsize=1024)
def plan_of(
    module: ModuleType,
    shape: torch.Size,
    strides: tuple[tuple[int, ...], tuple[int, ...]],
    dtype: torch.dtype,
    static: tuple[Any, ...],
    rows: tuple[int, int],
) -> Any:
    """A plan of a module of kernels: of x's shape, the strides of x and y, the problem's fields
    behind its tensors, and the rows whose derivatives are wanted."""
    sizes, relations, variances, kernel_weights, kernel, _ = static
    *batch, n, d = shape
    x_strides, y_strides = (of if batch else (0, *of) for of in strides)
    return module.MmdPlan(
        batch=batch[0] if batch else 1, x_rows=n, d=d, dtype=DTYPES[dtype], x_strides=x_strides,
        y_strides=y_strides, float64=dtype == torch.float64, sizes=sizes, relations=relations,
        variances=variances, kernel_weights=kernel_weights, kernel=kernel,
        row_begin=rows[0], row_end=rows[1],
    )  # fmt: skip
