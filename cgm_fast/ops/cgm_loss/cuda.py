"""The CGM latent objective by CUDA C++ kernels: one launch at a batch's size, see README.md."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from cgm_fast.ops.cgm_loss import common
from cgm_fast.ops.cgm_loss.plans import plan_of
from cgm_fast.ops.cgm_loss.problem import Problem, Value, Wanted
from cgm_fast.ops.cuda.launch import (
    MOST_FEATURES,
    counters,
    kernels,
    rows_of_block,
    stream,
    tiles,
)
from cgm_fast.ops.gpu import constants, on_device
from cgm_fast.ops.memory import addresses, check_address, compute_like
from cgm_fast.ops.mmd import cuda as mmd
from cgm_fast.ops.prototype_margin import cuda as prototype_margin

# Up to these sizes one launch does it all. Every block assigns all samples: WORK multiply-adds.
MOST_ROWS, MOST_PROTOTYPES, MOST_WORK = 1024, 1024, 1 << 21
# Of a block, and numbers that it leaves for the last one: as in csrc/cgm_loss.h.
BLOCK_ROWS, PARTS = 8, 5


class Launch(NamedTuple):
    """What a launch is given besides, as csrc/cgm_loss.h has it."""

    variances: int
    kernel_weights: int
    rows: int
    partials: int
    prior: int
    counter: int
    stream: int


@on_device
def fwd(problem: Problem, wanted: Wanted) -> Value:
    """Loss, terms, assignment, latents and gradients: see `Value`."""
    r, g, labels, noise = problem[:4]
    dtype, like = compute_like(r)
    (b, d), k, device = r.shape, g.shape[0], r.device
    few = b <= MOST_ROWS and k <= MOST_PROTOTYPES and d <= MOST_FEATURES[dtype]
    if not few or b * k * d > MOST_WORK or problem.kernel != "gaussian":
        return common.fwd(mmd, prototype_margin, problem, wanted)

    check_address(r, g, noise)
    of_r, of_g, of_noise = (value.to(dtype).contiguous() for value in (r, g, noise))
    labels = None if labels is None else labels.contiguous()
    value = Value(
        like.new_empty(()),
        like.new_empty(2),
        r.new_empty(b, dtype=torch.int64),
        like.new_empty((b, d)),
        like.new_empty((b, d)) if wanted.r else None,
        like.new_empty((k, d)) if wanted.g else None,
    )
    rows = min(rows_of_block(1, (b, b), device), BLOCK_ROWS)
    blocks = tiles((b, b), rows) + (k if wanted.g else 0)
    partials = r.new_empty((blocks, PARTS), dtype=torch.float64)
    prior, counter = like.new_empty((b, d)), counters(1, device)
    variances = constants(problem.variances, dtype, device)
    kernel_weights = constants(problem.kernel_weights, dtype, device)
    kernels().cgm_loss_fwd_cuda(
        plan_of(kernels(), of_r, of_g, of_noise, problem[4:]),
        addresses((of_r, of_g, labels, of_noise)),
        addresses(value),
        Launch(
            variances=variances.data_ptr(), kernel_weights=kernel_weights.data_ptr(), rows=rows,
            partials=partials.data_ptr(), prior=prior.data_ptr(), counter=counter.data_ptr(),
            stream=stream(device),
        ),
    )  # fmt: skip
    return value if value.z.dtype == r.dtype else value._replace(z=value.z.to(r.dtype))


# The Hessian-vector product is composed of the two ops' own.
hvp = functools.partial(common.hvp, mmd, prototype_margin)
