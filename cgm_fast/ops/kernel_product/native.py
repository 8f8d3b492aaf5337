"""K V by the compiled CPU kernels (csrc/cpu/kernel_product.cpp)."""

from __future__ import annotations

import torch

from cgm_fast import _native
from cgm_fast.ops.kernel_product.common import room
from cgm_fast.ops.kernel_product.plans import plan_of
from cgm_fast.ops.kernel_product.problem import Problem, Value, Wanted
from cgm_fast.ops.memory import addresses, check_address, compute_like, plain


def fwd(problem: Problem, wanted: Wanted) -> Value:
    """The derivatives of Q that are wanted: see `Value`."""
    x, y, u, v, variance = problem[:5]
    dtype, like = compute_like(x)
    check_address(x, y, v)
    value = room(problem, wanted, like)
    held = x, y, *(plain(some, dtype) for some in (u, v, variance))  # until the call is over
    _native.kernel_product_fwd(
        plan_of(_native, problem), addresses(held), addresses(value), torch.get_num_threads()
    )
    return value
