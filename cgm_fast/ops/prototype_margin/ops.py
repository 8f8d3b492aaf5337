"""Registration of `cgm_fast::prototype_margin_fwd` and `_hvp` with torch; imports torch alone."""

from __future__ import annotations

import torch

from cgm_fast.ops.prototype_margin.problem import Problem, Product, Tangent, Value, Wanted
from cgm_fast.ops.registration import Op


def _value_fake(problem: Problem, wanted: Wanted) -> Value:
    r, g = problem.r, problem.g
    dtype = torch.promote_types(r.dtype, torch.float32)
    return Value(
        r.new_empty((), dtype=dtype),
        r.new_empty((r.shape[0],), dtype=torch.int64),
        r.new_empty(r.shape, dtype=dtype) if wanted.r else None,
        r.new_empty(g.shape, dtype=dtype) if wanted.g else None,
    )


def _product_fake(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    r, g = problem.r, problem.g
    dtype = torch.promote_types(r.dtype, torch.float32)
    return Product(r.new_empty(r.shape, dtype=dtype), r.new_empty(g.shape, dtype=dtype))


prototype_margin_fwd = Op("prototype_margin_fwd", (Problem, Wanted), Value, _value_fake)
prototype_margin_hvp = Op(
    "prototype_margin_hvp", (Problem, Tangent, Wanted), Product, _product_fake
)
