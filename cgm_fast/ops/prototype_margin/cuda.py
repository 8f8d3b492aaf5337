"""Prototype margin loss by the CUDA C++ kernels (csrc/cuda/prototype_margin.cu)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cgm_fast.ops.cuda.launch import ROWS, counters, kernels, stream
from cgm_fast.ops.gpu import multiprocessors, on_device
from cgm_fast.ops.memory import address, addresses, check_address, compute_like, plain
from cgm_fast.ops.prototype_margin.plans import plan_of
from cgm_fast.ops.prototype_margin.problem import Problem, Product, Tangent, Value, Wanted

# Up to this many numbers the last block adds every block's sums over its samples for the
# prototypes, in one launch; it is one block only. Beyond, a second launch visits the prototypes.
_MOST_SUMS = 1 << 14
# As in csrc/cuda/prototype_tile.cuh: prototypes of a tile, samples of a split.
_COLUMNS, _FEW = {torch.float32: 64, torch.float64: 32}, 32
_BATCH = 512
_BLOCKS = 4  # that share a multiprocessor
_SHARE = 3  # float64 numbers of a PrototypeShare (csrc/prototype_margin.h)


class Launch(NamedTuple):
    """What launches are given besides, as csrc/prototype_margin.h has it."""

    splits: int
    row_splits: int
    sample_splits: int
    shares: int
    partials: int
    partial_g: int
    sums: int
    own: int
    counters: int
    stream: int


class Splits(NamedTuple):
    """Of how many parts what a block is met with consists."""

    assign: int
    rows: int
    samples: int


def splits_of(b: int, k: int, dtype: torch.dtype, device: torch.device) -> Splits:
    """As many as fill the device, where blocks of samples or of prototypes are few.

    Sums of splits take no more memory than samples and prototypes do.
    """
    wanted = _BLOCKS * multiprocessors(device)
    tiles, batches = -(-k // _COLUMNS[dtype]), -(-b // _BATCH)
    for_rows, for_samples = (-(-wanted // blocks) for blocks in (-(-b // ROWS), -(-k // ROWS)))
    return Splits(
        min(tiles, for_rows),
        max(1, min(tiles, for_rows, k // b)),
        max(1, min(batches, for_samples, b // k)),
    )


def _sums(splits: Splits, like: Tensor, b: int, k: int, d: int) -> Tensor | None:
    rows = sum(count * of for count, of in ((splits.rows, b), (splits.samples, k)) if count > 1)
    return like.new_empty((rows, d)) if rows else None


@on_device
def fwd(problem: Problem, wanted: Wanted) -> Value:
    """Loss, assignment and gradients: see `Value`."""
    r, g, labels = problem[:3]
    check_address(r, g)
    dtype, like = compute_like(r)
    (b, d), k = r.shape, g.shape[0]
    labels = None if labels is None else labels.contiguous()
    value = Value(
        like.new_empty(()),
        r.new_empty(b, dtype=torch.int64),
        like.new_empty(r.shape) if wanted.r else None,
        like.new_empty(g.shape) if wanted.g else None,
    )
    row_blocks = -(-b // ROWS)
    splits = splits_of(b, k, dtype, r.device)
    partial_g = sums = own = shares = None
    if k <= _FEW and (not wanted.g or row_blocks * k * d <= _MOST_SUMS):
        partial_g = like.new_empty((row_blocks, k, d)) if wanted.g else None
    else:
        own = r.new_empty(b, dtype=torch.int32)
        sums = _sums(splits, like, b, k, d)
        if splits.assign > 1:
            shares = r.new_empty((splits.assign, b, _SHARE), dtype=torch.float64)
    partials = r.new_empty(row_blocks, dtype=torch.float64)
    kernels().prototype_margin_fwd_cuda(
        plan_of(kernels(), r, g, problem[3:]),
        addresses((r, g, labels)),
        addresses(value),
        Launch(
            splits=splits.assign, row_splits=splits.rows, sample_splits=splits.samples,
            shares=address(shares), partials=partials.data_ptr(), partial_g=address(partial_g),
            sums=address(sums), own=address(own),
            counters=counters(row_blocks + -(-k // ROWS), r.device).data_ptr(),
            stream=stream(r.device),
        ),
    )  # fmt: skip
    return value


@on_device
def hvp(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    """The Hessian applied to a tangent; the problem's labels are the assignment."""
    r, g, labels = problem[:3]
    check_address(r, g)
    dtype, like = compute_like(r)
    assert labels is not None
    labels = labels.contiguous()
    along = plain(tangent.r, dtype), plain(tangent.g, dtype)
    product = Product(like.new_empty(r.shape), like.new_empty(g.shape))
    (b, d), k = r.shape, g.shape[0]
    splits = splits_of(b, k, dtype, r.device)
    sums = _sums(splits, like, b, k, d)
    counts = counters(-(-b // ROWS) + -(-k // ROWS), r.device)
    kernels().prototype_margin_hvp_cuda(
        plan_of(kernels(), r, g, problem[3:]),
        addresses((r, g, labels)),
        addresses(along),
        addresses(product),
        Launch(
            splits=1, row_splits=splits.rows, sample_splits=splits.samples, shares=0, partials=0,
            partial_g=0, sums=address(sums), own=0, counters=counts.data_ptr(),
            stream=stream(r.device),
        ),
    )  # fmt: skip
    return product
