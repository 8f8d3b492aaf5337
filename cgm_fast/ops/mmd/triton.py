"""MMD² by Triton kernels: workspace allocated and kernels launched here; see triton_kernels.py."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import next_power_of_2

from cgm_fast.ops.gpu import constants, on_device
from cgm_fast.ops.mmd import triton_hvp
from cgm_fast.ops.mmd import triton_kernels as kernels
from cgm_fast.ops.mmd.common import Coefficients, batched
from cgm_fast.ops.triton.launch import (
    FUSED,
    Numbers,
    numbers,
    parallel,
    round_up,
    widened,
    with_bandwidths,
)
from cgm_fast.ops.triton.pack import Packed, item_stride, pack
from cgm_fast.ops.triton.tiles import MOST_FEATURES, ROWS, Blocks, choose, device_key

_TURN = 2048  # columns summed before they join the rest; a multiple of every tile's


class Problem(NamedTuple):
    """One call's samples, packed, and its constants as tensors."""

    packed: Packed
    variance: Tensor  # [s] or [b, s]
    constants: Tensor  # [4 + s]: as `scalars` has them
    x_weights: Tensor | None  # [b, n]
    y_weights: Tensor | None  # [b, m]
    cross: Tensor | None  # [b]
    blocks: Blocks
    numbers: Numbers

    @property
    def scales(self) -> int:
        """How many bandwidths."""
        return self.variance.shape[-1]

    @property
    def kernel_weights(self) -> Tensor:
        """[s], of the constants."""
        return self.constants[kernels.KERNEL_WEIGHTS :]

    def splits(self) -> tuple[int, int, int]:
        """Columns of a split, how many splits there are, and how many of them are of x."""
        p, (rows, columns, *_) = self.packed, self.blocks
        wanted = parallel(p.rows.shape[0] * p.total // rows, p.rows.device)
        span = round_up(-(-p.total // max(2, wanted)), columns)
        x_splits = -(-p.n_pad // span)
        return span, x_splits + -(-(p.total - p.n_pad) // span), x_splits


def _problem(
    kernel: str,
    held: Numbers,
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    cross: Tensor | None,
    variance: Tensor | None,
    variances: list[float],
    kernel_weights: list[float],
    x_scale: float,
    y_scale: float,
    cross_scale: float,
) -> Problem:
    dtype = held.compute
    scalars = numbers_of(x_scale, y_scale, cross_scale, kernel_weights, dtype, x.device)
    if variance is None:
        variance = constants(tuple(variances), dtype, x.device)
    x_weights, y_weights, cross, variance = (
        None if value is None else value.to(dtype).contiguous()
        for value in (x_weights, y_weights, cross, variance)
    )
    assert variance is not None
    blocks = choose(kernel, x.shape[2], held.rows, x.device)
    packed = pack(x, y, x_weights, y_weights, variance, scalars, blocks, held)
    return Problem(packed, variance, scalars, x_weights, y_weights, cross, blocks, held)


def numbers_of(
    x_scale: float,
    y_scale: float,
    cross_scale: float,
    kernel_weights: list[float],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Scales, the exponent from which pairs are near, kernel weights, on the device."""
    # Near pairs are counted for all bandwidths together: if these weigh differently all pairs are.
    near_from = -1.0 if len(set(kernel_weights)) == 1 else -math.inf
    return constants((x_scale, y_scale, cross_scale, near_from, *kernel_weights), dtype, device)


def coefficients_of(*arguments: Any, device: torch.device) -> Tensor:
    """What `near_constant` takes, float64: [8], or [b, 8] where weights or `cross` are given.

    The arguments are those of `Coefficients.of`.
    """
    c = Coefficients.of(*arguments)
    row = (
        c.x_scale**2, c.y_scale**2, c.x_scale * c.y_scale, c.cross, c.x, c.y, c.across, c.all(),
    )  # fmt: skip
    like = next((value for value in row if isinstance(value, Tensor)), None)
    if like is None:
        return constants(tuple(float(value) for value in row), torch.float64, device)
    whole = [v if isinstance(v, Tensor) else torch.full_like(like, v) for v in row]
    return torch.stack(whole, -1)


@on_device
@batched
def mmd_fwd(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    cross: Tensor | None,
    variance: Tensor | None,
    variances: list[float],
    kernel_weights: list[float],
    x_scale: float,
    y_scale: float,
    cross_scale: float,
    row_begin: int,
    row_end: int,
    with_a: bool,
    with_p: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L [b], its gradients in z [b, row_end - row_begin, d], a [b, M], (h, cross) [b, s + 1]."""
    problem = _problem(
        "mmd_fwd", numbers(x.dtype), x, y, x_weights, y_weights, cross, variance, variances,
        kernel_weights, x_scale, y_scale, cross_scale,
    )  # fmt: skip
    p, b, dtype = problem.packed, x.shape[0], problem.numbers.compute
    gradient = row_end > row_begin
    loss = x.new_empty(b, dtype=dtype)
    grad_z = x.new_empty((b, row_end - row_begin, p.d), dtype=dtype)
    grad_a = x.new_empty((b, p.n + p.m) if with_a else (0,), dtype=dtype)
    grad_p = x.new_empty((b, problem.scales + 1) if with_p else (0,), dtype=dtype)
    sums = visit(problem, row_begin, row_end, with_p, kernel_weights[0] != 1.0)
    coefficients = coefficients_of(
        p.n, p.m, problem.x_weights, problem.y_weights, problem.cross, x_scale, y_scale,
        cross_scale, device=x.device,
    )  # fmt: skip
    partials = x.new_empty((b, p.total // ROWS, 6), dtype=torch.float64)
    kernels.mmd_finish_kernel[(b * p.total // ROWS,)](
        p.rows, p.weight, problem.variance, problem.constants, coefficients, problem.cross,
        sums.values, sums.nears, sums.fars, sums.slopes, sums.weighted_sums, sums.p_sums, partials,
        p.counter,
        loss, grad_z, grad_a if with_a else None, grad_p if with_p else None,
        p.n, p.m, p.d, p.n_pad, p.total, p.features, sums.splits, sums.x_splits, problem.scales,
        item_stride(problem.variance), item_stride(coefficients), row_begin, row_end,
        p.total // problem.blocks.rows,
        ROWS=ROWS, FEATURES=min(problem.blocks.features, MOST_FEATURES), GRADIENT=gradient,
        BLOCKS=256,
        CROSS_SCALE=kernels.CROSS_SCALE, KERNEL_WEIGHTS=kernels.KERNEL_WEIGHTS,
        PARTS=problem.numbers.parts, **FUSED,
    )  # fmt: skip
    return loss, grad_z, grad_a, grad_p


class Sums(NamedTuple):
    """Sums over the columns of each split; all in order make up a row's."""

    values: Tensor  # [b, splits, total]: of a_j (k - 1), of a_j k for far pairs
    nears: Tensor  # [b, splits, total]: over near pairs, of a_j without its scale
    # The same over far pairs. Without row weights None: then near ones leave them, exactly. Given
    # weights' sums are rounded, and what these leave of all would be that rounding.
    fars: Tensor | None
    slopes: Tensor  # [b, splits, total]: of a_j slope
    weighted_sums: Tensor  # [b, splits, total, features]: of a_j slope z_j
    p_sums: Tensor  # [b, splits, blocks, s] float64: of a_i a_j t k_s
    splits: int
    x_splits: int
    """How many of the splits are of columns of x; they come first."""


def visit(problem: Problem, row_begin: int, row_end: int, with_p: bool, weighted: bool) -> Sums:
    """Every row against all columns, with gradients for the stacked rows [row_begin, row_end).

    Args:
        problem: Samples and constants.
        row_begin: First of the rows that want a gradient.
        row_end: Behind the last of them.
        with_p: Whether the bandwidths want one.
        weighted: Whether a single bandwidth has a weight other than 1.
    """
    p, blocks, held = problem.packed, problem.blocks, problem.numbers
    b, scales = p.rows.shape[0], problem.scales
    span, splits, x_splits = problem.splits()
    gradient = row_end > row_begin
    several = scales > 1 or with_p or weighted
    if several:
        held = with_bandwidths(held, device_key(p.rows.device))
    all_blocks = p.total // blocks.rows
    weighted_rows = problem.x_weights is not None or problem.y_weights is not None
    values, nears = (p.weight.new_empty((b, splits, p.total)) for _ in range(2))
    fars = torch.empty_like(nears) if weighted_rows else None
    slopes = p.weight.new_empty((b, splits, p.total) if gradient else (1,))
    weighted_sums = p.weight.new_empty((b, splits, p.total, p.features) if gradient else (1,))
    p_shape = (b, splits, all_blocks, scales) if with_p else (1,)
    p_sums = p.weight.new_empty(p_shape, dtype=torch.float64)
    parts = p.largest.shape[1]
    for first, some, with_gradient in _block_ranges(p, blocks.rows, row_begin, row_end):
        kernels.mmd_fwd_kernel[b * some, splits](
            p.rows, p.columns, p.bias, p.weight, p.largest, problem.variance, problem.constants,
            values, nears, fars, slopes, weighted_sums, p_sums, p.d, p.n_pad, p.total, p.features,
            span, splits, x_splits, scales, item_stride(problem.variance), first, some, parts,
            ROWS=blocks.rows, COLUMNS=blocks.columns, FEATURES=blocks.features, TURN=_TURN,
            WIDE=p.features > blocks.features, GRADIENT=with_gradient,
            SEVERAL=several, WITH_P=with_p,
            KERNEL_WEIGHTS=kernels.KERNEL_WEIGHTS, PRECISION=held.precision, PARTS=held.parts,
            FAR=held.far, LARGEST=next_power_of_2(parts), NEAR_FROM=kernels.NEAR_FROM,
            num_warps=blocks.warps, num_stages=blocks.stages, **FUSED,
        )  # fmt: skip
    return Sums(values, nears, fars, slopes, weighted_sums, p_sums, splits, x_splits)


def _block_ranges(
    p: Packed, rows: int, row_begin: int, row_end: int
) -> list[tuple[int, int, bool]]:
    """Blocks of rows as (first, how many, with gradient): those of rows that want none are spared
    the second product."""

    def packed(stacked: int) -> int:
        return stacked if stacked < p.n else stacked - p.n + p.n_pad

    everything = p.total // rows
    if row_end <= row_begin:
        return [(0, everything, False)]
    begin = packed(row_begin) // rows
    end = packed(row_end - 1) // rows + 1
    ranges = [(0, begin, False), (begin, end - begin, True), (end, everything - end, False)]
    return [(first, some, gradient) for first, some, gradient in ranges if some > 0]


@on_device
@batched
def mmd_hvp(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    cross: Tensor | None,
    variance: Tensor | None,
    variances: list[float],
    kernel_weights: list[float],
    x_scale: float,
    y_scale: float,
    cross_scale: float,
    row_begin: int,
    row_end: int,
    with_a: bool,
    with_p: bool,
    tangent_z: Tensor | None,
    tangent_a: Tensor | None,
    tangent_p: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hessian-vector product with (tangent_z, tangent_a, tangent_p): z, a and (h, cross) parts."""
    problem = _problem(
        "mmd_hvp", widened(x.dtype), x, y, x_weights, y_weights, cross, variance, variances,
        kernel_weights, x_scale, y_scale, cross_scale,
    )  # fmt: skip
    p, blocks, variance = problem.packed, problem.blocks, problem.variance
    b, scales, dtype = x.shape[0], len(kernel_weights), p.rows.dtype
    span, splits, x_splits = problem.splits()
    scale = (1.4426950408889634 / variance[..., :1]).sqrt().reshape(-1, 1, 1)  # [b or 1, 1, 1]
    tangents = p.rows.new_zeros(p.rows.shape)
    weight_dot = p.weight.new_zeros(p.weight.shape)
    in_x, in_y = slice(0, p.n), slice(p.n_pad, p.n_pad + p.m)
    if tangent_z is not None:
        tangents[:, in_x, : p.d] = scale * tangent_z[:, : p.n]
        tangents[:, in_y, : p.d] = scale * tangent_z[:, p.n :]
    if tangent_a is not None:
        weight_dot[:, in_x] = tangent_a[:, : p.n]
        weight_dot[:, in_y] = tangent_a[:, p.n :]
    along = (p.rows * tangents).sum(-1)
    none = p.weight.new_zeros((b, scales + 1))
    tangent_p = none if tangent_p is None else tangent_p.to(dtype)
    between = problem.constants[kernels.CROSS_SCALE] * (
        none[:, 0] + 1 if problem.cross is None else problem.cross
    )
    insides, z_sums, t_sums = (x.new_empty((b, splits, p.total), dtype=dtype) for _ in range(3))
    weighted_sums = x.new_empty((b, splits, p.total, p.features), dtype=dtype)
    p_shape = (b, splits, p.total // blocks.rows, scales + 1) if with_p else (1,)
    p_sums = x.new_empty(p_shape, dtype=torch.float64)
    triton_hvp.mmd_hvp_kernel[b * p.total // blocks.rows, splits](
        p.rows, p.columns, p.bias, p.weight, tangents, along, weight_dot,
        problem.variance, tangent_p[:, :-1].contiguous(), between, tangent_p[:, -1].contiguous(),
        problem.kernel_weights, insides, z_sums, t_sums, weighted_sums, p_sums,
        p.n_pad, p.total, p.features, span, splits, x_splits, scales, item_stride(problem.variance),
        ROWS=blocks.rows, COLUMNS=blocks.columns, FEATURES=blocks.features,
        WITH_P=with_p, PRECISION=problem.numbers.precision,
        num_warps=blocks.warps, num_stages=blocks.stages, **FUSED,
    )  # fmt: skip

    def stacked(packed: Tensor) -> Tensor:
        return torch.cat((packed[:, in_x], packed[:, in_y]), 1)

    wide = torch.float64
    z_sum, t_sum = z_sums.sum(1, dtype=wide).unsqueeze(-1), t_sums.sum(1, dtype=wide).unsqueeze(-1)
    out = z_sum * p.rows + t_sum * tangents - weighted_sums.sum(1, dtype=wide)
    out = stacked(out[..., : p.d])[:, row_begin:row_end]
    out_z = -2 / (variance[..., :1].reshape(-1, 1, 1) * scale) * out
    out_a = 2 * stacked(insides.sum(1, dtype=wide)) if with_a else x.new_empty(0)
    out_p = p_sums.sum((1, 2)) if with_p else x.new_empty(0)
    return out_z.to(dtype), out_a.to(dtype), out_p.to(dtype)
