"""What the compiled module is told once of a kernel product: all that is not an address."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch

from cgm_fast.ops.memory import DTYPES


@functools.lru_cache(maxsize=1024)
def plan_of(
    module: ModuleType,
    shapes: tuple[torch.Size, torch.Size],
    strides: tuple[tuple[int, ...], tuple[int, ...]],
    dtype: torch.dtype,
    static: tuple[Any, ...],
) -> Any:
    """A plan of a module of kernels: of the shapes of x and v, the strides of x and y, and the
    problem's fields behind its tensors."""
    variances, kernel_weights, kernel = static
    (*batch, rows, d), (*_, columns, values) = shapes
    x_strides, y_strides = (of if batch else (0, *of) for of in strides)
    return module.KernelProductPlan(
        batch=batch[0] if batch else 1, rows=rows, columns=columns, d=d, values=values,
        dtype=DTYPES[dtype], x_strides=x_strides, y_strides=y_strides,
        float64=dtype == torch.float64, variances=variances, kernel_weights=kernel_weights,
        kernel=kernel,
    )  # fmt: skip
