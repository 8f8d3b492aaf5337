"""Nearest prototype, margin loss and its gradients in Triton; launched by triton.py.

Samples and prototypes come packed (ops/triton/pack.py); prototype k is packed row n_pad + k.
Distances are plain differences (EXACT), so that equal ones tie to the bit, or where the user allows
tf32 -2 (r . g + b_r + b_g). `values` is what pairs are multiplied with: the packed rows themselves
for a gradient, tangents for the Hessian-vector product. What is common to them, the first
prototype's, is taken off before they are summed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cgm_fast.ops.triton.math import kernel, squared_distances

MARGIN, NEGATIVE_SCALE, SCALE = range(3)  # where they stand among `constants`


@triton.jit
def _distances(
    rows, columns, bias, i, j, d, features, total,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """|z_i - z_j|² of packed rows i [ROWS] and j [COLUMNS]."""
    if EXACT:
        return squared_distances(columns, i, j, d, total, ROWS, COLUMNS, 4)
    else:
        e = tl.zeros([ROWS, COLUMNS], rows.dtype.element_ty)
        for first in range(0, features, FEATURES):
            f = first + tl.arange(0, FEATURES)
            z_i = tl.load(rows + i.to(tl.int64)[:, None] * features + f[None, :])
            z_j = tl.load(rows + j.to(tl.int64)[:, None] * features + f[None, :])
            e = tl.dot(z_i, tl.trans(z_j), e, input_precision="tf32")
        return -2.0 * (e + tl.load(bias + i)[:, None] + tl.load(bias + j)[None, :])


@triton.jit
def meet(u, column, margin, nearest, least, active):
    """A tile of distances u: the nearest prototype so far, its distance, how many are inside."""
    lowest = tl.min(u, 1)
    at = tl.min(tl.where(u == lowest[:, None], column[None, :], 2147483647), 1)
    better = lowest < least
    nearest, least = tl.where(better, at, nearest), tl.where(better, lowest, least)
    # "Not beyond" is not "inside": a NaN is neither, and has to reach the loss.
    return nearest, least, active + tl.sum(tl.where(u >= margin, 0, 1), 1)


@triton.jit
def assign(labels, assignment, own, i, valid, k, margin, nearest, least, active):
    """The prototypes assigned to rows i, stored too; NaN or 0 for the loss; whether any is active.

    A row is active where a prototype other than its own lies inside the margin. A label's may be
    any; counting it among the others costs a visit, no more.
    """
    if labels is not None:
        label = tl.load(labels + i, mask=valid, other=0)
        tl.store(assignment + i, label, mask=valid)
        assigned = tl.minimum(tl.maximum(label, 0), k - 1).to(tl.int32)
        # Checked before, on the CPU.
        loss = tl.where(label == assigned, 0.0, float("nan")).to(tl.float64)
    else:
        assigned = nearest
        tl.store(assignment + i, nearest.to(tl.int64), mask=valid)
        active -= tl.where(least < margin, 1, 0)
        loss = tl.zeros_like(nearest).to(tl.float64)
    tl.store(own + i, tl.where(valid, assigned, -1))
    return assigned, loss, tl.max(tl.where(valid, active, 0)) > 0


@kernel
def prototype_margin_rows_kernel(
    rows, columns, bias, values,  # packed
    labels,  # [B] int64, or None
    constants,
    assignment,  # [B] int64
    own,  # [n_pad]: the assigned prototype, -1 for padding
    within,  # [n_pad]: how many others lie inside the margin
    losses,  # [n_pad / ROWS] float64
    differences,  # [n_pad, features]: value of the row less that of its prototype
    weighted_sums,  # [n_pad, features]: scratch, of the values of prototypes inside the margin
    out,  # [B, d]: derivative in r, or None
    n, k, d, n_pad, features, total,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr, PRECISION: tl.constexpr,
    EXACT: tl.constexpr, MARGIN: tl.constexpr, NEGATIVE_SCALE: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """A block of samples against all prototypes: the nearest, then the hinge of the others.

    The second visit is left out where no other prototype lies inside the margin.
    """
    block = tl.program_id(0)
    dtype = rows.dtype.element_ty
    i = block * ROWS + tl.arange(0, ROWS)
    i_64, valid = i.to(tl.int64), i < n
    margin = tl.load(constants + MARGIN)
    negative_scale, scale = tl.load(constants + NEGATIVE_SCALE), tl.load(constants + SCALE)

    nearest, least = tl.zeros([ROWS], tl.int32), tl.full([ROWS], float("inf"), dtype)
    active = tl.zeros([ROWS], tl.int32)
    for first in range(0, k, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        u = _distances(
            rows, columns, bias, i, n_pad + column, d, features, total,
            ROWS, COLUMNS, FEATURES, EXACT,
        )  # fmt: skip
        u = tl.where((column < k)[None, :], u, float("inf"))
        nearest, least, active = meet(u, column, margin, nearest, least, active)

    assigned, loss, any_active = assign(
        labels, assignment, own, i, valid, k, margin, nearest, least, active
    )
    prototype = (n_pad + assigned).to(tl.int64)
    for first in range(0, features, FEATURES):
        f = first + tl.arange(0, FEATURES)
        at_i, at_k = (
            i_64[:, None] * features + f[None, :],
            prototype[:, None] * features + f[None, :],
        )
        difference = tl.load(rows + at_i) - tl.load(rows + at_k)
        loss += tl.sum(difference.to(tl.float64) * difference.to(tl.float64), 1)
        tl.store(differences + at_i, tl.load(values + at_i) - tl.load(values + at_k))

    hinge, others = tl.zeros([ROWS], dtype), tl.zeros([ROWS], dtype)
    if any_active:
        for first in range(0, k, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            u = _distances(
                rows, columns, bias, i, n_pad + column, d, features, total,
                ROWS, COLUMNS, FEATURES, EXACT,
            )  # fmt: skip
            other = (column < k)[None, :] & (column[None, :] != assigned[:, None])
            u = tl.where(other, u, float("inf"))
            hinge += tl.sum(tl.where(u >= margin, 0.0, margin - u), 1)
            w = (u < margin).to(dtype)
            others += tl.sum(w, 1)
            if out is not None:
                for begin in range(0, features, FEATURES):
                    f = begin + tl.arange(0, FEATURES)
                    at_k = (n_pad + column).to(tl.int64)[:, None] * features + f[None, :]
                    there = weighted_sums + i_64[:, None] * features + f[None, :]
                    again = tl.zeros([ROWS, FEATURES], tl.int32) + first > 0
                    weighted_sum = tl.load(there, mask=again, other=0.0)
                    base = tl.load(values + n_pad.to(tl.int64) * features + f)
                    value = tl.load(values + at_k) - base[None, :]
                    weighted_sum += tl.dot(w, value, input_precision=PRECISION)
                    tl.store(there, weighted_sum)
                tl.debug_barrier()  # what one thread wrote another may read in the next tile
    loss += (negative_scale * hinge).to(tl.float64)
    tl.store(losses + block, tl.sum(tl.where(valid, loss, 0.0)))
    tl.store(within + i, tl.where(valid, others, 0.0).to(tl.int32))
    if out is not None:
        tl.debug_barrier()
        for first in range(0, features, FEATURES):
            f = first + tl.arange(0, FEATURES)
            at = i_64[:, None] * features + f[None, :]
            there = (others > 0)[:, None] & (f < d)[None, :]
            value = (
                tl.load(values + at) - tl.load(values + n_pad.to(tl.int64) * features + f)[None, :]
            )
            weighted_sum = tl.load(weighted_sums + at, mask=there, other=0.0)
            weighted_difference = others[:, None] * value - weighted_sum
            inside = tl.where(there, negative_scale * weighted_difference, 0.0)
            gradient = 2.0 * scale * (tl.load(differences + at) - inside)
            wanted = valid[:, None] & (f < d)[None, :]
            tl.store(out + i_64[:, None] * d + f[None, :], gradient, mask=wanted)


@kernel
def prototype_margin_columns_kernel(
    rows, columns, bias, values, own, within, differences, constants,
    sums,  # [splits, k_pad, features]
    n_pad, k, d, features, total, span, k_pad,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr, PRECISION: tl.constexpr,
    EXACT: tl.constexpr, MARGIN: tl.constexpr, NEGATIVE_SCALE: tl.constexpr,
):  # fmt: skip
    """A block of prototypes against a split of the samples, some features: sum_i a_ik (r_i - g_k).

    COLUMNS prototypes by ROWS samples at a time; distances again, where a sample of the tile has
    another prototype inside the margin.
    """
    block, split = tl.program_id(0), tl.program_id(1)
    dtype = rows.dtype.element_ty
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    f = tl.program_id(2) * FEATURES + tl.arange(0, FEATURES)
    margin, negative_scale = tl.load(constants + MARGIN), tl.load(constants + NEGATIVE_SCALE)
    drawn, pushed = tl.zeros([COLUMNS, FEATURES], dtype), tl.zeros([COLUMNS, FEATURES], dtype)
    pushes = tl.zeros([COLUMNS], dtype)
    base = tl.load(values + n_pad.to(tl.int64) * features + f)[None, :]
    for first in range(split * span, tl.minimum((split + 1) * span, n_pad), ROWS):
        i = first + tl.arange(0, ROWS)
        at = i.to(tl.int64)[:, None] * features + f[None, :]
        own_i = tl.load(own + i)
        assigned = column[:, None] == own_i[None, :]
        drawn += tl.dot(assigned.to(dtype), tl.load(differences + at), input_precision=PRECISION)
        if tl.max(tl.load(within + i)) > 0:
            u = _distances(
                rows, columns, bias, n_pad + column, i, d, features, total,
                COLUMNS, ROWS, FEATURES, EXACT,
            )  # fmt: skip
            inside = (u < margin) & (column < k)[:, None] & (own_i >= 0)[None, :]
            w = tl.where(inside & (column[:, None] != own_i[None, :]), 1.0, 0.0).to(dtype)
            pushed += tl.dot(w, tl.load(values + at) - base, input_precision=PRECISION)
            pushes += tl.sum(w, 1)
    at = (n_pad + column).to(tl.int64)[:, None] * features + f[None, :]
    value = tl.load(values + at) - base
    drawn -= negative_scale * (pushed - pushes[:, None] * value)
    there = (split * k_pad + column).to(tl.int64)[:, None] * features + f[None, :]
    tl.store(sums + there, drawn)


@kernel
def prototype_margin_finish_kernel(
    sums, losses, constants,
    loss,  # [], or None
    out,  # [k, d]: derivative in g, or None
    k, d, features, splits, k_pad, blocks,
    COLUMNS: tl.constexpr, FEATURES: tl.constexpr, BLOCKS: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """Add up splits and blocks in order, in float64."""
    block = tl.program_id(0)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    f = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    scale = tl.load(constants + SCALE).to(tl.float64)
    if out is not None:
        total = tl.zeros([COLUMNS, FEATURES], tl.float64)
        for split in range(splits):
            there = (split * k_pad + column).to(tl.int64)[:, None] * features + f[None, :]
            total += tl.load(sums + there).to(tl.float64)
        wanted = (column < k)[:, None] & (f < d)[None, :]
        at = column.to(tl.int64)[:, None] * d + f[None, :]
        tl.store(out + at, -2.0 * scale * total, mask=wanted)
    if loss is not None:  # noqa: SIM102 - known when compiled, the other is not
        if (block == 0) & (tl.program_id(1) == 0):
            part = tl.zeros([BLOCKS], tl.float64)
            for first in range(0, blocks, BLOCKS):
                p = first + tl.arange(0, BLOCKS)
                part += tl.load(losses + p, mask=p < blocks, other=0.0)
            tl.store(loss, scale * tl.sum(part))
