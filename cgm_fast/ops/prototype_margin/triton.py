"""Prototype margin loss by Triton kernels: workspace and launches; see triton_kernels.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgm_fast.ops.gpu import constants, on_device
from cgm_fast.ops.memory import plain
from cgm_fast.ops.prototype_margin import triton_kernels as kernels
from cgm_fast.ops.prototype_margin.problem import Problem, Product, Tangent, Value, Wanted
from cgm_fast.ops.triton.launch import FUSED, parallel, round_up, widened
from cgm_fast.ops.triton.pack import Packed, layout_of, pack
from cgm_fast.ops.triton.tiles import MOST_FEATURES, ROWS, choose

_LOG2E = 1.4426950408889634  # a bandwidth for which packing scales by 1


@on_device
def fwd(problem: Problem, wanted: Wanted) -> Value:
    """Loss, assignment and gradients: see `Value`."""
    r, g = problem.r, problem.g
    dtype = torch.promote_types(r.dtype, torch.float32)
    value = Value(
        r.new_empty((), dtype=dtype),
        r.new_empty(r.shape[0], dtype=torch.int64),
        r.new_empty(r.shape, dtype=dtype) if wanted.r else None,
        r.new_empty(g.shape, dtype=dtype) if wanted.g else None,
    )
    _run(problem, None, _Results(*value))
    return value


@on_device
def hvp(problem: Problem, tangent: Tangent, wanted: Wanted) -> Product:
    """The Hessian applied to a tangent, by the gradient's formula; labels are the assignment."""
    r, g = problem.r, problem.g
    dtype = torch.promote_types(r.dtype, torch.float32)
    out = Product(r.new_empty(r.shape, dtype=dtype), r.new_empty(g.shape, dtype=dtype))
    assignment = r.new_empty(r.shape[0], dtype=torch.int64)  # the labels again
    _run(problem, tangent, _Results(None, assignment, *out))
    return out


class _Results(NamedTuple):
    """What is to be filled; None for what is not wanted."""

    loss: Tensor | None
    assignment: Tensor
    r: Tensor | None
    g: Tensor | None


def _run(problem: Problem, tangent: Tangent | None, out: _Results) -> None:
    """Fill the results: derivatives, or along a tangent those of the derivatives."""
    r, g = problem.r, problem.g
    (b, d), k, held = r.shape, g.shape[0], widened(r.dtype)
    blocks, exact = choose("prototype_margin", d, held.compute, r.device), held.precision != "tf32"
    scalars = constants(
        (problem.margin, problem.negative_scale, problem.scale), held.compute, r.device
    )
    unit = constants((_LOG2E,), held.compute, r.device)
    p = pack(
        (r.unsqueeze(0), g.unsqueeze(0)), None, unit, layout_of((b, k), blocks), blocks, held,
        differences=exact,
    )  # fmt: skip
    n_pad = p.layout.begins[1]
    row_blocks, k_pad = n_pad // blocks.rows, p.total - n_pad
    own, within = (r.new_empty(n_pad, dtype=torch.int32) for _ in range(2))
    losses = r.new_empty(row_blocks, dtype=torch.float64)
    differences = p.bias.new_empty((n_pad, p.features))
    of_r = (n_pad, p.features) if out.r is not None else (1,)
    shared: dict[str, Any] = {
        "rows": p.rows, "columns": p.columns, "bias": p.bias, "values": _values(p, tangent),
        "own": own, "within": within, "differences": differences, "constants": scalars,
        "k": k, "d": d, "n_pad": n_pad, "features": p.features, "total": p.total,
        "ROWS": blocks.rows, "COLUMNS": blocks.columns, "FEATURES": blocks.features,
        "PRECISION": held.precision, "EXACT": exact, "MARGIN": kernels.MARGIN,
        "NEGATIVE_SCALE": kernels.NEGATIVE_SCALE, **blocks.options(r.device), **FUSED,
    }  # fmt: skip
    kernels.prototype_margin_rows_kernel[(row_blocks,)](
        **shared, labels=plain(problem.labels, torch.int64), assignment=out.assignment,
        losses=losses, weighted_sums=p.bias.new_empty(of_r), out=out.r, n=b, SCALE=kernels.SCALE,
    )  # fmt: skip
    chunks, splits = p.features // blocks.features, 0
    sums = losses  # not read, unless the derivative in g is wanted
    if out.g is not None:
        wanted = parallel(k_pad // blocks.columns * chunks, n_pad, r.device)
        span = round_up(-(-n_pad // wanted), blocks.rows)
        splits = -(-n_pad // span)
        sums = p.bias.new_empty((splits, k_pad, p.features))
        kernels.prototype_margin_columns_kernel[k_pad // blocks.columns, splits, chunks](
            **shared, sums=sums, span=span, k_pad=k_pad
        )
    some = min(blocks.features, MOST_FEATURES)
    kernels.prototype_margin_finish_kernel[k_pad // ROWS, p.features // some](
        sums, losses, scalars, out.loss, out.g, k, d, p.features, splits, k_pad, row_blocks,
        COLUMNS=ROWS, FEATURES=some, BLOCKS=256, SCALE=kernels.SCALE, **FUSED,
    )  # fmt: skip


def _values(p: Packed, tangent: Tangent | None) -> Tensor:
    """What pairs are multiplied with: the packed rows, or a tangent's where there is one."""
    if tangent is None:
        return p.rows
    values = p.rows.new_zeros(p.rows.shape)
    for along, begin in zip(tangent, p.layout.begins, strict=False):
        if along is not None:
            values[0, begin : begin + len(along), : p.d] = along
    return values
