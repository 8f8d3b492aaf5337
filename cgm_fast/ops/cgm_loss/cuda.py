"""The CGM latent objective by CUDA C++ kernels: one launch at a batch's size, see README.md."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

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
from cgm_fast.ops.gpu import Known, constants, on_device
from cgm_fast.ops.memory import addresses, check_address, compute_like, contiguous, placed
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


class _Call(NamedTuple):
    """What calls have in common that differ in addresses alone."""

    plan: Any
    """What the compiled module is told once."""
    lists: tuple[int, int]
    """Addresses of `kept`."""
    rows: int
    prior: int
    """Where it begins in the workspace, in bytes; its beginning is for `partials`."""
    workspace: int
    kept: tuple[torch.Tensor, ...]


_calls = Known()


def _new_call(problem: Problem, wanted: Wanted) -> _Call:
    (b, d), k, device = problem.r.shape, problem.g.shape[0], problem.r.device
    dtype = compute_like(problem.r)[0]
    rows = min(rows_of_block(1, (b, b), device), BLOCK_ROWS)
    blocks = tiles((b, b), rows) + (k if wanted.g else 0)
    _, prior, end = placed((blocks * PARTS, torch.float64), (b * d, dtype))
    kept = (
        constants(problem.variances, dtype, device),
        constants(problem.kernel_weights, dtype, device),
    )
    lists = kept[0].data_ptr(), kept[1].data_ptr()
    plan = plan_of(kernels(), problem.r, problem.g, problem.noise, problem[4:])
    return _Call(plan, lists, rows, prior, end, kept)


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
    of_r, of_g, of_noise = contiguous(r, dtype), contiguous(g, dtype), contiguous(noise, dtype)
    labels = None if labels is None else labels.contiguous()
    value = Value(
        like.new_empty(()),
        like.new_empty(2),
        r.new_empty(b, dtype=torch.int64),
        like.new_empty((b, d)),
        like.new_empty((b, d)) if wanted.r else None,
        like.new_empty((k, d)) if wanted.g else None,
    )
    shapes = r.shape, g.shape, r.stride(), g.stride(), noise.stride(), noise.dtype, r.dtype, device
    key = kernels(), shapes, problem[4:], wanted.g
    call = _calls.of(
        key, device, _new_call, problem._replace(r=of_r, g=of_g, noise=of_noise), wanted
    )
    workspace = torch.empty(call.workspace, dtype=torch.uint8, device=device)
    counter, address = counters(1, device), workspace.data_ptr()
    kernels().cgm_loss_fwd_cuda(
        call.plan,
        addresses((of_r, of_g, labels, of_noise)),
        addresses(value),
        Launch(
            *call.lists, call.rows, address, address + call.prior, counter.data_ptr(),
            stream(device),
        ),
    )  # fmt: skip
    return value if value.z.dtype == r.dtype else value._replace(z=value.z.to(r.dtype))


# The Hessian-vector product is composed of the two ops' own.
hvp = functools.partial(common.hvp, mmd, prototype_margin)
