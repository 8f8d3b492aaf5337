"""The CGM latent objective by one call of the compiled CPU kernels (csrc/cpu/cgm_loss.cpp)."""

from __future__ import annotations

import functools

import torch

from cgm_fast import _native
from cgm_fast.ops.cgm_loss import common
from cgm_fast.ops.cgm_loss.plans import plan_of
from cgm_fast.ops.cgm_loss.problem import Problem, Value, Wanted
from cgm_fast.ops.memory import addresses, check_address, compute_like
from cgm_fast.ops.mmd import native as mmd
from cgm_fast.ops.prototype_margin import native as prototype_margin


def fwd(problem: Problem, wanted: Wanted) -> Value:
    """Loss, terms, assignment, latents and gradients: see `Value`."""
    r, g, labels, noise = problem[:4]
    _, like = compute_like(r)
    labels = None if labels is None else labels.contiguous()
    value = Value(
        like.new_empty(()),
        like.new_empty(2),
        r.new_empty(r.shape[0], dtype=torch.int64),
        like.new_empty(r.shape),
        like.new_empty(r.shape) if wanted.r else None,
        like.new_empty(g.shape) if wanted.g else None,
    )
    given = addresses((r, g, labels, noise))
    if not (given[0] and given[1] and given[3]):
        check_address(r, g, noise)
    plan = plan_of(_native, r, g, noise, problem[4:])
    _native.cgm_loss_fwd(plan, given, addresses(value), torch.get_num_threads())
    return value if value.z.dtype == r.dtype else value._replace(z=value.z.to(r.dtype))


# The Hessian-vector product is composed of the two ops' own.
hvp = functools.partial(common.hvp, mmd, prototype_margin)
