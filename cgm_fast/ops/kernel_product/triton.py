"""K V by Triton kernels: workspace allocated and kernels launched here; see triton_kernels.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import next_power_of_2

from cgm_fast.ops.gpu import constants, on_device
from cgm_fast.ops.kernel_product import triton_kernels as kernels
from cgm_fast.ops.kernel_product.common import room
from cgm_fast.ops.kernel_product.problem import Problem, Value, Wanted
from cgm_fast.ops.memory import plain
from cgm_fast.ops.mmd.common import batched
from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.ops.triton.launch import FUSED, Numbers, numbers, parallel, round_up, with_bandwidths
from cgm_fast.ops.triton.pack import Packed, item_stride, layout_of, pack
from cgm_fast.ops.triton.tiles import MOST_FEATURES, ROWS, Blocks, choose, device_key

_TURN = 2048  # columns summed before they join the rest; a multiple of every tile's
_LOG2E = 1.4426950408889634  # a bandwidth for which packing scales by 1
# What a program holds of values at once. Of wider products other programs take the rest, and take
# the distances again: d features for every 64 values. To add to memory after every tile, as sums
# over many features do, costs as much where d is about 64, and kernels are used with fewer.
_MOST_VALUES = 64
# For derivatives u and v are multiplied, in a loop where there are more: nothing is done again.
_MOST_FACTORS = 32
# Features and values, padded, up to which one pass makes both products and derivatives. Beyond,
# the registers of two sums would spill, and distances are taken twice.
_MOST_TOGETHER = 48


class Operands(NamedTuple):
    """What the launches of one call share."""

    packed: Packed  # x and y, in two groups
    of_values: Packed  # u and v likewise, or v alone
    variance: Tensor  # [s] or [b, s]
    kernel_weights: Tensor  # [s]
    blocks: Blocks
    width: int  # values of a product at once
    numbers: Numbers

    @classmethod
    def of(cls, problem: Problem, with_u: bool) -> Operands:
        """A problem with a batch, packed.

        Half inputs are widened: of the three products of a pair only the one for its distance would
        be of half numbers, for u or v is a cotangent, and that is float32.
        """
        x, y, u, v = problem[:4]
        held = numbers(torch.promote_types(x.dtype, torch.float32))
        variance = plain(problem.variance, held.compute)
        if variance is None:
            variance = constants(tuple(problem.variances), held.compute, x.device)
        (_, n, d), (_, m, p) = x.shape, v.shape
        blocks = choose("kernel_product", d, held.rows, x.device)
        layout = layout_of((n, m), blocks)
        packed = pack((x, y), None, variance, layout, blocks, held, centre_of_y=True)
        width = min(_MOST_VALUES, max(16, next_power_of_2(p)))
        values: tuple[Tensor, ...] = (v,)
        if with_u:
            assert u is not None
            values = u, v
        else:
            layout = layout_of((m,), blocks)
        unit = constants((_LOG2E,), held.compute, x.device)
        of_values = pack(
            values,
            None,
            unit,
            layout,
            blocks._replace(features=width, sums=width),
            held,
            differences=True,
        )
        weights = constants(tuple(problem.kernel_weights), held.compute, x.device)
        return cls(packed, of_values, variance, weights, blocks, width, held)

    @property
    def rows(self) -> int:
        """x's, padded."""
        return self.packed.layout.begins[1]

    @property
    def together(self) -> bool:
        """Whether one pass makes products and derivatives."""
        return self.packed.features + self.of_values.features <= _MOST_TOGETHER


class Sums(NamedTuple):
    """Sums over the columns of each split; all in order make up a row's. See triton_kernels.py."""

    products: Tensor | None = None  # [b, splits, rows, values]
    slopes: Tensor | None = None  # [b, splits, rows]
    weighted_sums: Tensor | None = None  # [b, splits, rows, features]
    variance_sums: Tensor | None = None  # [b, splits, blocks, s] float64


@on_device
@batched
def fwd(problem: Problem, wanted: Wanted) -> Value:
    """The derivatives of Q that are wanted: see `Value`."""
    x, v = problem.x, problem.v
    (b, n, d), p = x.shape, v.shape[-1]
    operands = Operands.of(problem, wanted.x or wanted.variance)
    packed, rows, values = operands.packed, operands.rows, operands.of_values.features
    value = room(problem, wanted, packed.bias)
    if operands.together:
        of_products = of_others = visit(problem, wanted, operands)
    else:
        passes = wanted._replace(x=False, variance=False), wanted._replace(product=False)
        of_products, of_others = (visit(problem, some, operands) for some in passes)
    if wanted.product or wanted.x:
        some = min(MOST_FEATURES, operands.width, operands.blocks.features)
        width = max(values if wanted.product else 0, packed.features if wanted.x else 0)
        kernels.kernel_product_finish_kernel[b * rows // ROWS, width // some](
            rows=packed.rows, variance=operands.variance, products=of_products.products,
            slopes=of_others.slopes, weighted_sums=of_others.weighted_sums,
            out=value.product, grad_x=value.x, n=n, d=d, p=p, n_pad=rows, total=packed.total,
            features=packed.features, width=values, product_splits=_splits(of_products.products),
            splits=_splits(of_others.slopes), variance_item=item_stride(operands.variance),
            ROWS=ROWS, FEATURES=some, **FUSED,
        )  # fmt: skip
    if value.variance is not None:
        assert of_others.variance_sums is not None
        factor = (operands.kernel_weights / operands.variance).double()
        value.variance.copy_(of_others.variance_sums.sum((1, 2)) * factor)
    return value


def _splits(sums: Tensor | None) -> int:
    return 0 if sums is None else sums.shape[1]


def visit(problem: Problem, wanted: Wanted, operands: Operands) -> Sums:
    """Every row against all columns; of the problem options are read alone."""
    p, of_values, blocks = operands.packed, operands.of_values, operands.blocks
    if not any(wanted):
        return Sums()
    b, scales, rows = p.rows.shape[0], operands.variance.shape[-1], operands.rows
    values, total, all_blocks = of_values.features, p.total, rows // blocks.rows
    width, chunks = min(operands.width, _MOST_FACTORS), 1
    if wanted.product:
        width, chunks = operands.width, values // operands.width
    several = problem.kernel != "gaussian" or problem.kernel_weights != (1.0,) or wanted.variance
    held = operands.numbers
    if several:
        held = with_bandwidths(held, device_key(p.rows.device))
    columns = total - rows
    splits = parallel(b * all_blocks * chunks, columns, p.rows.device, blocks.programs)
    span = round_up(-(-columns // splits), blocks.columns)
    splits = -(-columns // span)
    like, of_rows = p.bias, (b, splits, rows)
    sums = Sums(
        like.new_empty((*of_rows, values)) if wanted.product else None,
        like.new_empty(of_rows) if wanted.x else None,
        like.new_empty((*of_rows, p.features)) if wanted.x else None,
        like.new_empty((b, splits, all_blocks, scales), dtype=torch.float64)
        if wanted.variance
        else None,
    )
    sizes: dict[str, Any] = {
        "d": p.d, "n_pad": rows, "total": total, "features": p.features, "width": values,
        "value_total": of_values.total, "value_begin": of_values.total - columns, "span": span,
        "splits": splits, "scales": scales, "variance_item": item_stride(operands.variance),
    }  # fmt: skip
    kernels.kernel_product_kernel[b * all_blocks, splits, chunks](
        rows=p.rows, columns=p.columns, bias=p.bias, largest=p.largest,
        value_rows=of_values.rows, value_columns=of_values.columns, variance=operands.variance,
        kernel_weights=operands.kernel_weights, **sums._asdict(), **sizes,
        ROWS=blocks.rows, COLUMNS=blocks.columns, FEATURES=blocks.features, VALUES=width,
        TURN=_TURN, WIDE=p.features > blocks.features, CHUNKED=values > width, SEVERAL=several,
        PRECISION=held.precision, PARTS=held.parts, FAR=held.far, KERNEL=problem.kernel,
        EXACT=FAMILIES[problem.kernel].order < 2,
        **blocks.options(p.rows.device), **FUSED,
    )  # fmt: skip
    return sums
