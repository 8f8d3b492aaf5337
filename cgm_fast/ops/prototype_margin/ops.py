"""Registration of `cgm_fast::prototype_margin_fwd` and `_hvp` with torch; imports torch alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops.registration import register


def _fwd_fake(r: Tensor, g: Tensor, *args: Any) -> tuple[Tensor, ...]:
    with_r, with_g = args[4:6]
    dtype = torch.promote_types(r.dtype, torch.float32)
    return (
        r.new_empty((), dtype=dtype),
        r.new_empty((r.shape[0],), dtype=torch.int64),
        r.new_empty(r.shape if with_r else (0,), dtype=dtype),
        r.new_empty(g.shape if with_g else (0,), dtype=dtype),
    )


def _hvp_fake(r: Tensor, g: Tensor, *args: Any) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(r.dtype, torch.float32)
    return r.new_empty(r.shape, dtype=dtype), r.new_empty(g.shape, dtype=dtype)


prototype_margin_fwd = register(
    "prototype_margin",
    "fwd",
    "(Tensor r, Tensor g, Tensor? labels, float margin, float negative_scale, float scale, "
    "bool with_r, bool with_g, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _fwd_fake,
)
prototype_margin_hvp = register(
    "prototype_margin",
    "hvp",
    "(Tensor r, Tensor g, Tensor assignment, float margin, float negative_scale, float scale, "
    "Tensor? tangent_r, Tensor? tangent_g, str backend) -> (Tensor, Tensor)",
    _hvp_fake,
)
