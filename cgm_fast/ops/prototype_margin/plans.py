"""What the compiled module is told once of a prototype margin problem: all but addresses."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops.memory import DTYPES


def plan_of(module: ModuleType, r: Tensor, g: Tensor, static: tuple[Any, ...]) -> Any:
    """A plan of a module of kernels, for r and g and the problem's fields behind its tensors."""
    return _plan(module, (r.shape, r.stride(), r.dtype), (g.shape, g.stride(), g.dtype), static)


@functools.lru_cache(maxsize=1024)
def _plan(
    module: ModuleType, r: tuple[Any, ...], g: tuple[Any, ...], static: tuple[Any, ...]
) -> Any:
    (r_shape, r_stride, r_dtype), (g_shape, g_stride, g_dtype) = r, g
    margin, negative_scale, scale = static
    return module.PrototypeMarginPlan(
        rows=r_shape[0], k=g_shape[0], d=r_shape[1], r_dtype=DTYPES[r_dtype],
        g_dtype=DTYPES[g_dtype], r_strides=(0, *r_stride), g_strides=(0, *g_stride),
        float64=r_dtype == torch.float64, margin=margin, negative_scale=negative_scale,
        scale=scale,
    )  # fmt: skip
