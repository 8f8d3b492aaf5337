"""Registration of `cgm_fast::mmd_fwd` and `cgm_fast::mmd_hvp` with torch.

Only torch is imported here. The implementation is chosen on real tensors, inside the op, so that
torch.compile sees one opaque op whatever runs it.
"""

from __future__ import annotations

import torch

from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.ops.mmd.problem import Problem, Product, Tangent, Value, Wanted
from cgm_fast.ops.registration import Op


def _product_fake(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    x, rows, groups = problem.x, sum(problem.sizes), len(problem.sizes)
    *batch, _, d = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    scales, count = len(problem.kernel_weights), wanted.row_end - wanted.row_begin
    return Product(
        x.new_empty((*batch, count, d), dtype=dtype) if count > 0 else None,
        x.new_empty((*batch, rows), dtype=dtype) if wanted.weights else None,
        x.new_empty((*batch, groups, groups), dtype=sums_dtype(x)) if wanted.relation else None,
        x.new_empty((*batch, scales), dtype=dtype) if wanted.variance else None,
    )


def _value_fake(problem: Problem, wanted: Wanted) -> Value:
    gradient = _product_fake(problem, Tangent(None, None, None, None), wanted)
    dtype = torch.promote_types(problem.x.dtype, torch.float32)
    return Value(problem.x.new_empty(problem.x.shape[:-2], dtype=dtype), *gradient)


def sums_dtype(x: torch.Tensor) -> torch.dtype:
    """Of the block sums: float64, or float32 where the device has none (MPS)."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _not_negative(value: Value, problem: Problem) -> None:
    """What L loses to rounding where the samples agree, and it is known not to be negative."""
    if problem.nonnegative:
        loss = value.loss
        if loss.is_cpu and not loss.dim():  # cheaper than an op
            if loss.item() < 0:
                loss.zero_()
        else:
            loss.relu_()


def _twice_differentiable(problem: Problem) -> None:
    if FAMILIES[problem.kernel].order < 2:
        smooth = (name for name, family in FAMILIES.items() if family.order == 2)
        raise RuntimeError(
            f"kernel={problem.kernel!r} has no second derivative where rows coincide; "
            f"{', '.join(map(repr, smooth))} have"
        )


mmd_fwd = Op("mmd_fwd", (Problem, Wanted), Value, _value_fake, _not_negative)
mmd_hvp = Op(
    "mmd_hvp", (Problem, Tangent, Wanted), Product, _product_fake, check=_twice_differentiable
)
