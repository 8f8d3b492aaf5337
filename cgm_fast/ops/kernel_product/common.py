"""What several implementations of a kernel product share."""

from __future__ import annotations

from torch import Tensor

from cgm_fast.ops.kernel_product.problem import Problem, Value, Wanted


def room(problem: Problem, wanted: Wanted, like: Tensor) -> Value:
    """New tensors for what is wanted, of the dtype and on the device of `like`."""
    *batch, n, d = problem.x.shape
    p, scales = problem.v.shape[-1], len(problem.kernel_weights)
    return Value(
        like.new_empty((*batch, n, p)) if wanted.product else None,
        like.new_empty((*batch, n, d)) if wanted.x else None,
        like.new_empty((*batch, scales)) if wanted.variance else None,
    )
