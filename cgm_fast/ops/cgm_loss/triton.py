"""The CGM latent objective by Triton kernels: three launches at a batch's size, see README.md."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from triton import next_power_of_2

from cgm_fast.ops.cgm_loss import common
from cgm_fast.ops.cgm_loss import triton_kernels as kernels
from cgm_fast.ops.gpu import constants, on_device
from cgm_fast.ops.mmd import triton as mmd
from cgm_fast.ops.prototype_margin import triton as prototype_margin
from cgm_fast.ops.triton.launch import FUSED, numbers, round_up
from cgm_fast.ops.triton.pack import Packed
from cgm_fast.ops.triton.tiles import Blocks, choose

# Up to these sizes launches are what takes the time; beyond them each op's own kernels, with their
# transposed copies, larger tiles and splits, are worth more of them. STEPS are blocks of prototypes
# times features: what a program of the first launch does one after another.
MOST_ROWS, MOST_STEPS, MOST_SUMS = 1024, 1024, 1 << 24
# Small: a batch has few rows, and all multiprocessors should get some of them.
BLOCKS = Blocks(rows=16, columns=16, features=16, warps=8, stages=1)


@on_device
def cgm_loss_fwd(
    r: Tensor,
    g: Tensor,
    labels: Tensor | None,
    noise: Tensor,
    sigma: float,
    prior_sigma: float,
    mmd_weight: float,
    margin_weight: float,
    margin: float,
    negative_scale: float,
    variances: list[float],
    kernel_weights: list[float],
    detach_prior: bool,
    with_r: bool,
    with_g: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss [], (mmd, margin) [2], assignment [B], z [B, d], gradients in r [B, d] and g [K, d]."""
    (b, d), k = r.shape, g.shape[0]
    held = numbers(torch.promote_types(r.dtype, torch.float32))  # noise makes latents float32
    blocks = choose("mmd_fwd", d, held.rows, r.device)
    features, n_pad = round_up(d, blocks.features), round_up(b, max(blocks.rows, blocks.columns))
    row_blocks, k_pad = n_pad // BLOCKS.rows, round_up(k, BLOCKS.columns)
    small = b <= MOST_ROWS and k_pad // BLOCKS.columns * d <= MOST_STEPS
    if not small or row_blocks * k_pad * features > MOST_SUMS:
        return common.cgm_loss_fwd(
            mmd, prototype_margin, r, g, labels, noise, sigma, prior_sigma, mmd_weight,
            margin_weight, margin, negative_scale, variances, kernel_weights, detach_prior,
            with_r, with_g,
        )  # fmt: skip

    dtype, total = held.compute, 2 * n_pad
    scalars = mmd.numbers_of(1.0 / b, 1.0 / b, 1.0, kernel_weights, dtype, r.device)
    coefficients = mmd.coefficients_of(
        b, b, None, None, None, 1.0 / b, 1.0 / b, 1.0, device=r.device
    )
    variance = constants(tuple(variances), dtype, r.device)
    options = constants(
        (sigma, prior_sigma, mmd_weight, margin_weight, margin, negative_scale), dtype, r.device
    )
    like = r.new_empty(0, dtype=dtype)
    packed = Packed(
        rows=like.new_empty((1, total, features)),
        columns=like.new_empty((1, features, total)),
        bias=like.new_empty((1, total)),
        weight=like.new_empty((1, total)),
        counter=r.new_empty(1, dtype=torch.int32),
        largest=like.new_empty((1, row_blocks)),
        n=b, m=b, d=d, n_pad=n_pad, total=total,
    )  # fmt: skip
    assignment = r.new_empty(b, dtype=torch.int64)
    z = torch.empty((b, d), dtype=r.dtype, device=r.device)
    own = r.new_empty(n_pad, dtype=torch.int32)
    losses = r.new_empty(row_blocks, dtype=torch.float64)
    partials = r.new_empty((row_blocks, 4), dtype=torch.float64)
    weighted_differences = like.new_empty((n_pad, features))
    prototype_sums = like.new_empty((row_blocks, k_pad, features))
    tile = {
        "ROWS": BLOCKS.rows, "COLUMNS": BLOCKS.columns, "FEATURES": BLOCKS.features,
        "PRECISION": held.precision, "num_warps": BLOCKS.warps, "num_stages": BLOCKS.stages,
        **FUSED,
    }  # fmt: skip
    kernels.cgm_assign_kernel[(row_blocks,)](
        r, g, None if labels is None else labels.contiguous(), noise, variance, scalars, options,
        assignment, z, own, packed.rows, packed.columns, packed.bias, packed.weight,
        packed.largest, packed.counter, losses, weighted_differences, prototype_sums,
        b, k, d, n_pad, total, features, k_pad, *r.stride(), *g.stride(), *noise.stride(),
        TF32=held.rounded, SIGMA=kernels.SIGMA, PRIOR_SIGMA=kernels.PRIOR_SIGMA,
        MARGIN=kernels.MARGIN, NEGATIVE_SCALE=kernels.NEGATIVE_SCALE, **tile,
    )  # fmt: skip
    of_prior = with_g and not detach_prior
    problem = mmd.Problem(packed, variance, scalars, None, None, None, blocks, held)
    begin = 0 if with_r else b
    end = 2 * b if of_prior else b
    sums = mmd.visit(problem, begin, max(begin, end), False, kernel_weights[0] != 1.0)
    loss, terms = like.new_empty(()), like.new_empty(2)
    grad_r = like.new_empty((b, d) if with_r else (0,))
    grad_g = like.new_empty((k, d) if with_g else (0,))
    chunks = features // BLOCKS.features
    programs = row_blocks + (chunks * k_pad // BLOCKS.columns if with_g else 0)
    if held.precision == "tf32":  # here sums are short, and nothing is gained
        tile["PRECISION"] = "tf32x3"
    kernels.cgm_finish_kernel[(programs,)](
        packed.rows, packed.weight, variance, options, problem.kernel_weights, coefficients,
        sums.values, sums.nears, sums.slopes, sums.weighted_sums, own, losses,
        weighted_differences, prototype_sums, partials, packed.counter,
        loss, terms, grad_r if with_r else None, grad_g if with_g else None,
        b, k, d, n_pad, total, features, k_pad, sums.splits, sums.x_splits, row_blocks, chunks,
        problem.scales,
        PARTS=held.parts, BLOCKS=next_power_of_2(row_blocks),
        OF_PRIOR=of_prior, MMD_WEIGHT=kernels.MMD_WEIGHT, MARGIN_WEIGHT=kernels.MARGIN_WEIGHT,
        **tile,
    )  # fmt: skip
    return loss, terms, assignment, z, grad_r, grad_g


# The Hessian-vector product is composed of the two ops' own.
cgm_loss_hvp = partial(common.cgm_loss_hvp, mmd, prototype_margin)
