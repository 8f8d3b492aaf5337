"""The CGM latent objective by Triton kernels: three launches at a batch's size, see README.md."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from cgm_fast.ops.cgm_loss import common
from cgm_fast.ops.cgm_loss import triton_kernels as kernels
from cgm_fast.ops.cgm_loss.problem import Problem, Value, Wanted
from cgm_fast.ops.gpu import constants, on_device
from cgm_fast.ops.memory import plain
from cgm_fast.ops.mmd import problem as of_mmd
from cgm_fast.ops.mmd import triton as mmd
from cgm_fast.ops.prototype_margin import triton as prototype_margin
from cgm_fast.ops.triton.launch import FUSED, Numbers, numbers, round_up
from cgm_fast.ops.triton.pack import Packed, Parts, layout_of
from cgm_fast.ops.triton.tiles import Blocks, choose

# Up to these sizes launches are what takes the time; beyond them each op's own kernels, with their
# transposed copies, larger tiles and splits, are worth more of them. STEPS are blocks of prototypes
# times features: what a program of the first launch does one after another.
MOST_ROWS, MOST_STEPS, MOST_SUMS = 1024, 1024, 1 << 24
# Latents that a block of prototypes adds up at once.
MORE = 64
# Small: a batch has few rows, and all multiprocessors should get some of them.
BLOCKS = Blocks(rows=16, columns=16, features=16, sums=16, warps=8, stages=1)


class _Plan(NamedTuple):
    """Sizes of a call."""

    held: Numbers
    blocks: Blocks  # of the MMD's kernel
    features: int  # d, padded
    n_pad: int  # B, padded for these blocks
    k_pad: int
    row_blocks: int  # of BLOCKS

    @classmethod
    def of(cls, problem: Problem) -> _Plan:
        """By shapes and dtypes."""
        r, (k, d) = problem.r, problem.g.shape
        held = numbers(torch.promote_types(r.dtype, torch.float32))  # noise makes latents float32
        kernel = "mmd_fwd" if problem.kernel_weights == (1.0,) else "mmd_general"
        blocks = choose(kernel, d, held.rows, r.device, held.rounded)
        n_pad = round_up(r.shape[0], max(blocks.rows, blocks.columns))
        features, k_pad = round_up(d, blocks.sums), round_up(k, BLOCKS.columns)
        return cls(held, blocks, features, n_pad, k_pad, n_pad // BLOCKS.rows)

    def is_small(self, rows: int, d: int) -> bool:
        """Whether three launches do it."""
        steps = self.k_pad // BLOCKS.columns * d
        sums = self.row_blocks * self.k_pad * self.features
        return rows <= MOST_ROWS and steps <= MOST_STEPS and sums <= MOST_SUMS

    def packed(self, like: Tensor, b: int, d: int) -> Packed:
        """Room for latents of samples and of prototypes, which the first launch packs."""
        total = 2 * self.n_pad
        rows = like.new_empty((1, total, self.features))
        columns = like.new_empty((1, self.features, total))
        return Packed(
            rows=rows, columns=columns,
            parts=Parts.like(rows, columns) if self.held.in_parts(self.blocks.sums) else Parts(),
            bias=like.new_empty((1, total)),
            weight=like.new_empty((1, total)),
            counter=like.new_empty(1, dtype=torch.int32),
            largest=None,
            layout=layout_of((b, b), self.blocks), d=d,
        )  # fmt: skip


@on_device
def fwd(problem: Problem, wanted: Wanted) -> Value:
    """Loss, terms, assignment, latents and gradients: see `Value`."""
    r, g, noise = problem.r, problem.g, problem.noise
    (b, d), k, plan = r.shape, g.shape[0], _Plan.of(problem)
    if problem.kernel != "gaussian" or not plan.is_small(b, d):
        return common.fwd(mmd, prototype_margin, problem, wanted)

    dtype = plan.held.compute
    like = r.new_empty(0, dtype=dtype)
    value = Value(
        like.new_empty(()),
        like.new_empty(2),
        r.new_empty(b, dtype=torch.int64),
        torch.empty((b, d), dtype=r.dtype, device=r.device),
        like.new_empty((b, d)) if wanted.r else None,
        like.new_empty((k, d)) if wanted.g else None,
    )
    packed = plan.packed(like, b, d)
    variance = constants(tuple(problem.variances), dtype, r.device)
    options = constants(
        (
            problem.sigma, problem.prior_sigma, problem.mmd_weight, problem.margin_weight,
            problem.margin, problem.negative_scale,
        ), dtype, r.device,
    )  # fmt: skip
    shared = {
        "rows": packed.rows, "row_rests": packed.parts.row_rests, "weight": packed.weight,
        "variance": variance, "numbers": options,
        "own": r.new_empty(plan.n_pad, dtype=torch.int32), "counter": packed.counter,
        "losses": r.new_empty(plan.row_blocks, dtype=torch.float64),
        "weighted_differences": like.new_empty((plan.n_pad, plan.features)),
        "prototype_sums": like.new_empty((plan.row_blocks, plan.k_pad, plan.features)),
        "b": b, "k": k, "d": d, "n_pad": plan.n_pad, "total": packed.total,
        "features": plan.features, "k_pad": plan.k_pad,
        "ROWS": BLOCKS.rows, "COLUMNS": BLOCKS.columns, "FEATURES": BLOCKS.features,
        **BLOCKS.options(r.device), **FUSED,
    }  # fmt: skip
    (r_row, r_feature), (g_row, g_feature) = r.stride(), g.stride()
    noise_sample, noise_row, noise_feature = noise.stride()
    kernels.cgm_assign_kernel[(plan.row_blocks,)](
        **shared, r=r, g=g, labels=plain(problem.labels, torch.int64), noise=noise,
        columns=packed.columns, column_heads=packed.parts.column_heads,
        column_rests=packed.parts.column_rests, bias=packed.bias,
        assignment=value.assignment, latents=value.z,
        r_row=r_row, r_feature=r_feature, g_row=g_row, g_feature=g_feature,
        noise_sample=noise_sample, noise_row=noise_row, noise_feature=noise_feature,
        PRECISION=plan.held.precision, TF32=plan.held.rounded,
        SIGMA=kernels.SIGMA, PRIOR_SIGMA=kernels.PRIOR_SIGMA, MARGIN=kernels.MARGIN,
        NEGATIVE_SCALE=kernels.NEGATIVE_SCALE,
    )  # fmt: skip
    of_prior = wanted.g and not problem.detach_prior
    begin, end = 0 if wanted.r else b, 2 * b if of_prior else b
    operands = mmd.Operands.of(packed, variance, problem.kernel_weights, plan.blocks, plan.held)
    sums = mmd.visit(
        common.mmd_problem(problem, packed.rows),
        of_mmd.NOTHING._replace(row_begin=begin, row_end=max(begin, end)), operands,
    )  # fmt: skip
    chunks = plan.features // BLOCKS.features
    # In place of tf32: here sums are short, and nothing is gained.
    precision = "ieee" if plan.held.precision == "ieee" else "tf32x3"
    kernels.cgm_finish_kernel[
        (plan.row_blocks + (chunks * plan.k_pad // BLOCKS.columns if wanted.g else 0),)
    ](
        **shared, kernel_weights=operands.kernel_weights, values=sums.values, nears=sums.nears,
        slopes=sums.slopes, weighted_sums=sums.weighted_sums,
        partials=r.new_empty((plan.row_blocks, 4), dtype=torch.float64),
        loss=value.loss, terms=value.terms, grad_r=value.r, grad_g=value.g,
        splits=operands.splits.total, blocks=plan.row_blocks, chunks=chunks,
        scales=variance.shape[-1], PARTS=plan.held.parts, PRECISION=precision,
        BLOCKS=MOST_ROWS // BLOCKS.rows, MORE=MORE, OF_PRIOR=of_prior,
        MMD_WEIGHT=kernels.MMD_WEIGHT, MARGIN_WEIGHT=kernels.MARGIN_WEIGHT,
    )  # fmt: skip
    return value


# The Hessian-vector product is composed of the two ops' own.
hvp = partial(common.hvp, mmd, prototype_margin)
