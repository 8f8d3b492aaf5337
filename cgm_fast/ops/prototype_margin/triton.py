"""Prototype margin loss by Triton kernels: workspace and launches; see triton_kernels.py."""

from __future__ import annotations

import torch
from torch import Tensor

from cgm_fast.ops.gpu import constants, on_device
from cgm_fast.ops.prototype_margin import triton_kernels as kernels
from cgm_fast.ops.triton.launch import FUSED, parallel, round_up, widened
from cgm_fast.ops.triton.pack import pack
from cgm_fast.ops.triton.tiles import MOST_FEATURES, ROWS, choose

_LOG2E = 1.4426950408889634  # a bandwidth for which packing scales by 1


@on_device
def prototype_margin_fwd(
    r: Tensor,
    g: Tensor,
    labels: Tensor | None,
    margin: float,
    negative_scale: float,
    scale: float,
    with_r: bool,
    with_g: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss [], assignment [B], and gradients in r [B, d] and g [k, d] (empty if not wanted)."""
    dtype = torch.promote_types(r.dtype, torch.float32)
    loss = r.new_empty((), dtype=dtype)
    grad_r = r.new_empty(r.shape if with_r else (0,), dtype=dtype)
    grad_g = r.new_empty(g.shape if with_g else (0,), dtype=dtype)
    assignment = _run(
        r, g, labels, (margin, negative_scale, scale), None, loss,
        grad_r if with_r else None, grad_g if with_g else None,
    )  # fmt: skip
    return loss, assignment, grad_r, grad_g


@on_device
def prototype_margin_hvp(
    r: Tensor,
    g: Tensor,
    assignment: Tensor,
    margin: float,
    negative_scale: float,
    scale: float,
    tangent_r: Tensor | None,
    tangent_g: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Hessian-vector product with (tangent_r [B, d], tangent_g [k, d]): the gradient's formula."""
    dtype = torch.promote_types(r.dtype, torch.float32)
    out_r, out_g = r.new_empty(r.shape, dtype=dtype), r.new_empty(g.shape, dtype=dtype)
    tangents = tangent_r, tangent_g
    _run(r, g, assignment, (margin, negative_scale, scale), tangents, None, out_r, out_g)
    return out_r, out_g


def _run(
    r: Tensor,
    g: Tensor,
    labels: Tensor | None,
    numbers: tuple[float, float, float],
    tangents: tuple[Tensor | None, Tensor | None] | None,
    loss: Tensor | None,
    out_r: Tensor | None,
    out_g: Tensor | None,
) -> Tensor:
    """Fill loss and derivatives, where given; return the assignment."""
    dtype = torch.promote_types(r.dtype, torch.float32)
    (b, d), k = r.shape, g.shape[0]
    blocks = choose("prototype_margin", d, dtype, r.device)
    scalars = constants((1.0, -1.0, *numbers), dtype, r.device)
    unit = constants((_LOG2E,), dtype, r.device)
    held = widened(r.dtype)
    exact = held.precision != "tf32"
    p = pack(
        r.unsqueeze(0), g.unsqueeze(0), None, None, unit, scalars, blocks, held, differences=exact
    )
    rows, values = p.rows[0], p.rows[0]
    if tangents is not None:
        values = rows.new_zeros(rows.shape)
        for tangent, begin in zip(tangents, (0, p.n_pad), strict=True):
            if tangent is not None:
                values[begin : begin + len(tangent), :d] = tangent
    assignment = r.new_empty(b, dtype=torch.int64)
    own, within = (r.new_empty(p.n_pad, dtype=torch.int32) for _ in range(2))
    row_blocks, k_pad = p.n_pad // blocks.rows, p.total - p.n_pad
    losses = r.new_empty(row_blocks, dtype=torch.float64)
    differences = r.new_empty((p.n_pad, p.features), dtype=dtype)
    weighted_sums = r.new_empty((p.n_pad, p.features) if out_r is not None else (1,), dtype=dtype)
    tile = {
        "ROWS": blocks.rows, "COLUMNS": blocks.columns, "FEATURES": blocks.features,
        "PRECISION": held.precision, "EXACT": exact, "MARGIN": kernels.MARGIN,
        "NEGATIVE_SCALE": kernels.NEGATIVE_SCALE, "num_warps": blocks.warps,
        "num_stages": blocks.stages, **FUSED,
    }  # fmt: skip
    kernels.prototype_margin_rows_kernel[(row_blocks,)](
        rows, p.columns, p.bias, values, None if labels is None else labels.contiguous(), scalars,
        assignment, own, within, losses, differences, weighted_sums, out_r,
        b, k, d, p.n_pad, p.features, p.total, **tile, SCALE=kernels.SCALE,
    )  # fmt: skip
    chunks, splits = p.features // blocks.features, 0
    sums = losses  # not read, unless the derivative in g is wanted
    if out_g is not None:
        wanted = parallel(k_pad // blocks.columns * chunks, r.device)
        span = round_up(-(-p.n_pad // wanted), blocks.rows)
        splits = -(-p.n_pad // span)
        sums = r.new_empty((splits, k_pad, p.features), dtype=dtype)
        kernels.prototype_margin_columns_kernel[k_pad // blocks.columns, splits, chunks](
            rows, p.columns, p.bias, values, own, within, differences, scalars, sums,
            p.n_pad, k, d, p.features, p.total, span, k_pad, **tile,
        )  # fmt: skip
    some = min(blocks.features, MOST_FEATURES)
    kernels.prototype_margin_finish_kernel[k_pad // ROWS, p.features // some](
        sums, losses, scalars, loss, out_g, k, d, p.features, splits, k_pad, row_blocks,
        COLUMNS=ROWS, FEATURES=some, BLOCKS=256, SCALE=kernels.SCALE, **FUSED,
    )  # fmt: skip
    return assignment
