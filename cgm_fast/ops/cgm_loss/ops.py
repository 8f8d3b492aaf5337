"""Registration of `cgm_fast::cgm_loss_fwd` and `_hvp` with torch; imports torch alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops.registration import register

_CONSTANTS = (
    "float sigma, float prior_sigma, float mmd_weight, float margin_weight, float margin, "
    "float negative_scale, float[] variances, float[] kernel_weights, bool detach_prior"
)


def _fwd_fake(r: Tensor, g: Tensor, *args: Any) -> tuple[Tensor, ...]:
    with_r, with_g = args[11:13]
    dtype = torch.promote_types(r.dtype, torch.float32)
    return (
        r.new_empty((), dtype=dtype),
        r.new_empty((2,), dtype=dtype),
        r.new_empty((r.shape[0],), dtype=torch.int64),
        r.new_empty(r.shape),
        r.new_empty(r.shape if with_r else (0,), dtype=dtype),
        r.new_empty(g.shape if with_g else (0,), dtype=dtype),
    )


def _hvp_fake(r: Tensor, g: Tensor, *args: Any) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(r.dtype, torch.float32)
    return r.new_empty(r.shape, dtype=dtype), r.new_empty(g.shape, dtype=dtype)


def _not_negative(results: tuple[Tensor, ...], *args: Any) -> None:
    """MMD² as it is shown; the loss, which it has a gradient in, keeps its rounding."""
    results[1].relu_()


cgm_loss_fwd = register(
    "cgm_loss",
    "fwd",
    f"(Tensor r, Tensor g, Tensor? labels, Tensor noise, {_CONSTANTS}, bool with_r, bool with_g, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fwd_fake,
    _not_negative,
)
cgm_loss_hvp = register(
    "cgm_loss",
    "hvp",
    f"(Tensor r, Tensor g, Tensor assignment, Tensor noise, {_CONSTANTS}, Tensor tangent_r, "
    "Tensor tangent_g, str backend) -> (Tensor, Tensor)",
    _hvp_fake,
)
