"""Registration of `cgm_fast::kernel_product_fwd` with torch."""

from __future__ import annotations

import torch

from cgm_fast.ops.kernel_product.problem import Problem, Value, Wanted
from cgm_fast.ops.registration import Op


def _fake(problem: Problem, wanted: Wanted) -> Value:
    x, v, scales = problem.x, problem.v, len(problem.kernel_weights)
    dtype = torch.promote_types(x.dtype, torch.float32)
    *batch, n, d = x.shape
    return Value(
        x.new_empty((*batch, n, v.shape[-1]), dtype=dtype) if wanted.product else None,
        x.new_empty((*batch, n, d), dtype=dtype) if wanted.x else None,
        x.new_empty((*batch, scales), dtype=dtype) if wanted.variance else None,
    )


kernel_product_fwd = Op("kernel_product_fwd", (Problem, Wanted), Value, _fake, vectors=True)
