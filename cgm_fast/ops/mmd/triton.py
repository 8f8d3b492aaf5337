"""MMD² by Triton kernels: workspace allocated and kernels launched here; see triton_kernels.py."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import next_power_of_2

from cgm_fast.ops.gpu import constants, on_device
from cgm_fast.ops.memory import plain
from cgm_fast.ops.mmd import triton_finish, triton_hvp
from cgm_fast.ops.mmd import triton_kernels as kernels
from cgm_fast.ops.mmd.common import batched, pair_masses, relation_of, room_for_derivatives
from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.ops.mmd.problem import Problem, Product, Tangent, Value, Wanted
from cgm_fast.ops.triton.launch import FUSED, Numbers, numbers, parallel, widened, with_bandwidths
from cgm_fast.ops.triton.pack import Packed, Splits, item_stride, layout_of, pack, splits_of
from cgm_fast.ops.triton.tiles import MOST_FEATURES, ROWS, Blocks, choose, device_key

_TURN = 2048  # columns summed before they join the rest; a multiple of every tile's


class Operands(NamedTuple):
    """What the launches of one call share: packed rows, and how they are visited."""

    packed: Packed
    variance: Tensor  # [s] or [b, s]
    kernel_weights: Tensor  # [s]
    splits: Splits
    blocks: Blocks
    numbers: Numbers

    @classmethod
    def of(
        cls, packed: Packed, variance: Tensor, kernel_weights: tuple[float, ...], blocks: Blocks,
        numbers: Numbers,
    ) -> Operands:  # fmt: skip
        """With as many splits as keep the device busy."""
        device = packed.rows.device
        row_blocks = packed.rows.shape[0] * packed.total // blocks.rows
        wanted = parallel(row_blocks, packed.total, device, blocks.programs)
        splits = splits_of(packed.layout, blocks.columns, wanted)
        weights = constants(tuple(kernel_weights), numbers.compute, device)
        return cls(packed, variance, weights, splits, blocks, numbers)

    def table(self, values: tuple[int, ...]) -> Tensor:
        """Of layout or splits, on the device."""
        return constants(values, torch.int32, self.packed.rows.device)

    def sizes(self) -> dict[str, int]:
        """Of both passes' kernels, by their parameters' names."""
        return {
            "total": self.packed.total, "features": self.packed.features,
            "splits": self.splits.total, "scales": self.variance.shape[-1],
            "variance_item": item_stride(self.variance),
        }  # fmt: skip

    def tile(self, numbers: Numbers) -> dict[str, Any]:
        """Of both passes' main kernels."""
        blocks = self.blocks
        return {
            "ROWS": blocks.rows, "COLUMNS": blocks.columns, "FEATURES": blocks.features,
            "PRECISION": numbers.precision, **blocks.options(self.packed.rows.device), **FUSED,
        }  # fmt: skip


def _operands(kernel: str, problem: Problem, held: Numbers) -> Operands:
    """A problem with a batch, packed for the tile of a kernel of the table."""
    x, y, dtype = problem.x, problem.y, held.compute
    variance = plain(problem.variance, dtype)
    if variance is None:
        variance = constants(tuple(problem.variances), dtype, x.device)
    blocks = choose(kernel, x.shape[-1], held.rows, x.device, held.rounded)
    layout, samples = layout_of(problem.sizes, blocks), (x,) if y is None else (x, y)
    packed = pack(
        samples, plain(problem.weights, dtype), variance, layout, blocks, held,
        in_parts=kernel != "mmd_hvp" and held.in_parts(blocks.sums),
    )  # fmt: skip
    return Operands.of(packed, variance, problem.kernel_weights, blocks, held)


class Sums(NamedTuple):
    """Sums over the columns of each split; all in order make up a row's. See triton_kernels.py."""

    values: Tensor  # [b, splits, total]: of w_j (k - k(0)), of w_j k for far pairs
    nears: Tensor  # [b, splits, total]: of w_j over near pairs
    # The same over far pairs. Without row weights None: then near ones leave them, exactly. Given
    # weights' sums are rounded, and what these leave of all would be that rounding.
    fars: Tensor | None
    slopes: Tensor | None  # [b, splits, total]: of w_j slope
    weighted_sums: Tensor | None  # [b, splits, total, features]: of w_j slope z_j
    variance_sums: Tensor | None  # [b, splits, blocks, s] float64: of w_i w_j t slope_s


@on_device
@batched
def fwd(problem: Problem, wanted: Wanted) -> Value:
    """L and its derivatives: see `Value`."""
    x, rows, groups = problem.x, sum(problem.sizes), len(problem.sizes)
    ones = problem.weights is None and not wanted.weights
    kernel = "mmd_fwd" if ones and not is_general(problem, wanted) else "mmd_general"
    operands = _operands(kernel, problem, numbers(x.dtype))
    p, wide = operands.packed, torch.float64
    b, like = x.shape[0], p.weight
    value = Value(like.new_empty(b), *room_for_derivatives(problem, wanted, like))
    sums = visit(problem, wanted, operands)
    relation = relation_of(problem, wide).contiguous()
    masses = pair_masses(problem, wide)
    blocks = p.total // ROWS
    triton_finish.mmd_finish_kernel[(b * blocks,)](
        rows=p.rows, row_rests=p.parts.row_rests, weight=p.weight, variance=operands.variance,
        kernel_weights=operands.kernel_weights, tiles=p.tiles,
        of_groups=operands.table(operands.splits.groups), relation=relation, masses=masses,
        **sums._asdict(), partials=like.new_empty((b, groups, 3, blocks), dtype=wide),
        counter=p.counter,
        loss=value.loss, grad_z=value.z, grad_weights=value.weights, block_sums=value.relation,
        grad_variance=value.variance,
        n=rows, d=p.d, unit=p.layout.unit, groups=groups, **operands.sizes(),
        relation_item=item_stride(relation, 2), mass_item=item_stride(masses, 2),
        row_begin=wanted.row_begin, row_end=wanted.row_end,
        row_blocks=p.total // operands.blocks.rows,
        ROWS=ROWS, FEATURES=min(operands.blocks.features, MOST_FEATURES), BLOCKS=256,
        PARTS=operands.numbers.parts, **FUSED,
    )  # fmt: skip
    return value


def is_general(problem: Problem, wanted: Wanted) -> bool:
    """Whether it is more than one Gaussian, or its bandwidth is trained."""
    plainest = problem.kernel == "gaussian" and problem.kernel_weights == (1.0,)
    return not plainest or wanted.variance


def visit(problem: Problem, wanted: Wanted, operands: Operands) -> Sums:
    """Every row against all columns; of the problem options and sizes are read alone."""
    p, blocks, held, splits = operands.packed, operands.blocks, operands.numbers, operands.splits
    b, scales, family = p.rows.shape[0], operands.variance.shape[-1], FAMILIES[problem.kernel]
    gradient = wanted.row_end > wanted.row_begin
    ones = problem.weights is None and not wanted.weights
    # Near pairs are counted for all bandwidths together: if these weigh differently all pairs are.
    near = family.vanishes and len(set(problem.kernel_weights)) == 1
    several = is_general(problem, wanted)
    if several:
        held = with_bandwidths(held, device_key(p.rows.device))
    of_rows, all_blocks = (b, splits.total, p.total), p.total // blocks.rows
    sums = Sums(
        p.weight.new_empty(of_rows),
        p.weight.new_empty(of_rows),
        None if ones else p.weight.new_empty(of_rows),
        p.weight.new_empty(of_rows) if gradient else None,
        p.weight.new_empty((*of_rows, p.features)) if gradient else None,
        p.weight.new_empty((b, splits.total, all_blocks, scales), dtype=torch.float64)
        if wanted.variance
        else None,
    )
    for first, some, with_gradient in _block_ranges(p, blocks.rows, wanted):
        kernels.mmd_fwd_kernel[b * some, splits.total](
            **p.operands(), **p.parts._asdict(), variance=operands.variance,
            kernel_weights=operands.kernel_weights, of_splits=operands.table(splits.bounds),
            **sums._asdict(), d=p.d, **operands.sizes(), first_block=first, some_blocks=some,
            **chunks_of(blocks), TURN=_TURN, WIDE=p.features > blocks.sums,
            GRADIENT=with_gradient, SEVERAL=several, **room_for(scales), NEAR=near,
            PARTS=held.parts, FAR=held.far, CANCELLED=held.cancelled, KERNEL=problem.kernel,
            EXACT=family.order < 2, **operands.tile(held),
        )  # fmt: skip
    return sums


def chunks_of(blocks: Blocks) -> dict[str, int]:
    """How a tile's sums over features are held: 64 at once."""
    at_once = min(64, blocks.sums)
    return {"SUMS": at_once, "CHUNKS": blocks.sums // at_once}


def room_for(scales: int) -> dict[str, int]:
    """Of so many bandwidths: up to eight are no loop, lest tiles wait for memory."""
    return {"SCALES": scales if scales <= 8 else 0, "ROOM": max(16, next_power_of_2(scales))}


def _block_ranges(p: Packed, rows: int, wanted: Wanted) -> list[tuple[int, int, bool]]:
    """Blocks of rows as (first, how many, with gradient): those of rows that want none are spared
    the second product."""
    everything = p.total // rows
    if wanted.row_end <= wanted.row_begin:
        return [(0, everything, False)]
    begin = p.layout.packed(wanted.row_begin) // rows
    end = p.layout.packed(wanted.row_end - 1) // rows + 1
    ranges = [(0, begin, False), (begin, end - begin, True), (end, everything - end, False)]
    return [(first, some, gradient) for first, some, gradient in ranges if some > 0]


@on_device
@batched
def hvp(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    """The Hessian of L applied to a tangent: see `Product`."""
    operands = _operands("mmd_hvp", problem, widened(problem.x.dtype))
    p, blocks, splits = operands.packed, operands.blocks, operands.splits
    (b, _, d), dtype, wide = problem.x.shape, p.rows.dtype, torch.float64
    at, variance = p.layout.positions(p.rows.device), operands.variance
    scale = (1.4426950408889634 / variance[..., :1]).sqrt().reshape(-1, 1, 1)  # [b or 1, 1, 1]
    tangents = p.rows.new_zeros(p.rows.shape)
    weight_dot = p.weight.new_zeros(p.weight.shape)
    if tangent.z is not None:
        tangents[:, at, :d] = scale * tangent.z.to(dtype)
    if tangent.weights is not None:
        weight_dot[:, at] = tangent.weights.to(dtype)
    variance_dot = plain(tangent.variance, dtype)
    if variance_dot is None:
        variance_dot = variance.new_zeros((b, variance.shape[-1]))
    relation = relation_of(problem, wide).contiguous()
    of_rows, all_blocks = (b, splits.total, p.total), p.total // blocks.rows
    insides, z_sums, t_sums = (p.rows.new_empty(of_rows) for _ in range(3))
    weighted_sums = p.rows.new_empty((*of_rows, p.features))
    of_pairs = (b, splits.total, all_blocks)
    block_sums = p.rows.new_empty(of_pairs, dtype=wide) if wanted.relation else None
    of_scales = (*of_pairs, variance.shape[-1])
    variance_sums = p.rows.new_empty(of_scales, dtype=wide) if wanted.variance else None
    triton_hvp.mmd_hvp_kernel[b * all_blocks, splits.total](
        **p.operands(), tangents=tangents, along=(p.rows * tangents).sum(-1),
        weight_dot=weight_dot, variance=variance, variance_dot=variance_dot, relation=relation,
        relation_dot=plain(tangent.relation, wide), kernel_weights=operands.kernel_weights,
        tiles=p.tiles, of_splits=operands.table(splits.bounds),
        insides=insides, z_sums=z_sums, t_sums=t_sums, weighted_sums=weighted_sums,
        block_sums=block_sums, variance_sums=variance_sums,
        unit=p.layout.unit, groups=len(problem.sizes), relation_item=item_stride(relation, 2),
        **operands.sizes(), KERNEL=problem.kernel, **operands.tile(operands.numbers),
    )  # fmt: skip
    out = None
    if wanted.row_end > wanted.row_begin:
        z_sum, t_sum = (sums.sum(1, dtype=wide).unsqueeze(-1) for sums in (z_sums, t_sums))
        out = z_sum * p.rows + t_sum * tangents - weighted_sums.sum(1, dtype=wide)
        out = out[:, at[wanted.row_begin : wanted.row_end], :d]
        out = (-2 / (variance[..., :1].reshape(-1, 1, 1) * scale) * out).to(dtype)
    return Product(
        out,
        (2 * insides.sum(1, dtype=wide)[:, at]).to(dtype) if wanted.weights else None,
        None if block_sums is None else _by_groups(block_sums, operands),
        None if variance_sums is None else variance_sums.sum((1, 2)).to(dtype),
    )


def _by_groups(sums: Tensor, operands: Operands) -> Tensor:
    """Sums of [b, splits, blocks] by the rows' group and the columns', [b, G, G]."""
    layout, rows = operands.packed.layout, operands.blocks.rows
    of_rows = [(end - begin) // rows for begin, end in pairwise(layout.begins)]
    parts = sums.split(operands.splits.of_groups(), 1)
    by_column = torch.stack([part.sum(1) for part in parts], -1)  # [b, blocks, G]
    return torch.stack([part.sum(1) for part in by_column.split(of_rows, 1)], 1)
