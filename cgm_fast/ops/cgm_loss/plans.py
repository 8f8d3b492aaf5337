"""What the compiled module is told once of a CGM objective: all but addresses."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops.cgm_loss.problem import Problem
from cgm_fast.ops.memory import DTYPES
from cgm_fast.ops.prototype_margin import plans


def plan_of(
    module: ModuleType, r: Tensor, g: Tensor, noise: Tensor, static: tuple[Any, ...]
) -> Any:
    """A plan of a module of kernels, for r, g and noise and the problem's fields behind them."""
    of = Problem(None, None, None, None, *static)  # type: ignore[arg-type]
    margin = of.margin, of.negative_scale, 1.0 / r.shape[0]
    of_margin = plans.plan_of(module, r, g, margin)
    return _plan(module, of_margin, noise.stride(), noise.dtype, of[4:])


@functools.lru_cache(maxsize=1024)
def _plan(
    module: ModuleType,
    of_margin: Any,
    noise_stride: tuple[int, ...],
    noise_dtype: torch.dtype,
    static: tuple[Any, ...],
) -> Any:
    of = Problem(None, None, None, None, *static)  # type: ignore[arg-type]
    return module.CgmLossPlan(
        of_margin=of_margin, noise_dtype=DTYPES[noise_dtype], noise_strides=noise_stride,
        sigma=of.sigma, prior_sigma=of.prior_sigma, mmd_weight=of.mmd_weight,
        margin_weight=of.margin_weight, variances=of.variances, kernel_weights=of.kernel_weights,
        kernel=of.kernel, detach_prior=of.detach_prior,
    )  # fmt: skip
