"""Registration of `cgm_fast::prototype_margin_fwd` and `_bwd` with torch; imports torch alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops.backends import implementation

torch.library.define(
    "cgm_fast::prototype_margin_fwd",
    "(Tensor r, Tensor g, Tensor? labels, float margin, float negative_scale, float scale, "
    "bool with_r, bool with_g, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "cgm_fast::prototype_margin_bwd",
    "(Tensor r, Tensor g, Tensor assignment, float margin, float negative_scale, float scale, "
    "Tensor? tangent_r, Tensor? tangent_g, str backend) -> (Tensor, Tensor)",
)


@torch.library.impl("cgm_fast::prototype_margin_fwd", "CompositeExplicitAutograd")
def _fwd(r: Tensor, *args: Any) -> tuple[Tensor, ...]:
    module = implementation("prototype_margin", args[-1], r.device)
    return module.prototype_margin_fwd(r, *args[:-1])


@torch.library.impl("cgm_fast::prototype_margin_bwd", "CompositeExplicitAutograd")
def _bwd(r: Tensor, *args: Any) -> tuple[Tensor, ...]:
    module = implementation("prototype_margin", args[-1], r.device)
    return module.prototype_margin_bwd(r, *args[:-1])


@torch.library.register_fake("cgm_fast::prototype_margin_fwd")
def _fwd_fake(r: Tensor, g: Tensor, *args: Any) -> tuple[Tensor, ...]:
    with_r, with_g = args[4:6]
    dtype = torch.promote_types(r.dtype, torch.float32)
    return (
        r.new_empty((), dtype=dtype),
        r.new_empty((r.shape[0],), dtype=torch.int64),
        r.new_empty(r.shape if with_r else (0,), dtype=dtype),
        r.new_empty(g.shape if with_g else (0,), dtype=dtype),
    )


@torch.library.register_fake("cgm_fast::prototype_margin_bwd")
def _bwd_fake(r: Tensor, g: Tensor, *args: Any) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(r.dtype, torch.float32)
    return r.new_empty(r.shape, dtype=dtype), r.new_empty(g.shape, dtype=dtype)


prototype_margin_fwd = torch.ops.cgm_fast.prototype_margin_fwd.default
prototype_margin_bwd = torch.ops.cgm_fast.prototype_margin_bwd.default
