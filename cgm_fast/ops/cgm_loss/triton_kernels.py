"""The CGM latent objective in Triton at a batch's size: the first and the last of three launches.

`cgm_assign_kernel` assigns prototypes, draws the latents around samples and prototypes and packs
them as the MMD's kernel reads them (the second launch), and leaves the margin loss's gradients.
`cgm_finish_kernel` adds both up. What lies between two launches is read by programs other than
those that wrote it, and Triton has no barrier across programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cgm_fast.ops.mmd.triton_finish import gradient_factor, less_all
from cgm_fast.ops.prototype_margin.triton_kernels import assign, meet
from cgm_fast.ops.triton.math import PADDING, kernel, nearest_tf32, split_tf32

# Where they stand among `numbers`.
SIGMA, PRIOR_SIGMA, MMD_WEIGHT, MARGIN_WEIGHT, MARGIN, NEGATIVE_SCALE = range(6)


@triton.jit
def _some(x, row, f, count, d, by_row, by_feature, dtype):
    """Rows [R] and features [F] of a matrix of any strides, 0 beyond it."""
    at = row.to(tl.int64)[:, None] * by_row + f.to(tl.int64)[None, :] * by_feature
    inside = (row >= 0) & (row < count)
    return tl.load(x + at, mask=inside[:, None] & (f < d)[None, :], other=0.0).to(dtype)


@triton.jit
def _differences_squared(
    r, g, i, column, b, k, d, r_row, r_feature, g_row, g_feature,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """|r_i - g_k|² [ROWS, COLUMNS] from plain differences, infinite beyond the last prototype."""
    u = tl.zeros([ROWS, COLUMNS], dtype)
    r += i.to(tl.int64) * r_row
    g += column.to(tl.int64) * g_row
    for first in range(0, d, 4):
        for f in tl.static_range(4):  # so many loads wait for memory together
            there = tl.zeros([1], tl.int32) + (first + f) < d
            of_r = tl.load(r + f * r_feature, mask=(i < b) & there, other=0.0)
            of_g = tl.load(g + f * g_feature, mask=(column < k) & there, other=0.0)
            difference = of_r.to(dtype)[:, None] - of_g.to(dtype)[None, :]
            u += difference * difference
        r += 4 * r_feature
        g += 4 * g_feature
    return tl.where((column < k)[None, :], u, float("inf"))


@kernel
def cgm_assign_kernel(
    r, g,  # [B, d], [K, d]
    labels,  # [B] int64, or None
    noise,  # [2, B, d]
    variance,  # [s]
    numbers,
    assignment,  # [B] int64
    latents,  # [B, d]
    own,  # [n_pad]: the assigned prototype, -1 for padding
    rows, row_rests, columns, column_heads, column_rests, bias, weight,  # packed latents, of both
    counter,  # [1]: zeroed for the finishing kernel
    losses,  # [blocks] float64
    weighted_differences,  # [n_pad, features]: sum_k a_ik (r_i - g_k)
    prototype_sums,  # [blocks, k_pad, features]: sum_i a_ik (r_i - g_k) over the block
    b, k, d, n_pad, total, features, k_pad,
    r_row, r_feature, g_row, g_feature, noise_sample, noise_row, noise_feature,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr, PRECISION: tl.constexpr,
    TF32: tl.constexpr, SIGMA: tl.constexpr, PRIOR_SIGMA: tl.constexpr, MARGIN: tl.constexpr,
    NEGATIVE_SCALE: tl.constexpr,
):  # fmt: skip
    """A block of samples against all prototypes."""
    block = tl.program_id(0)
    dtype = rows.dtype.element_ty
    i = block * ROWS + tl.arange(0, ROWS)
    valid = i < b
    margin, negative_scale = tl.load(numbers + MARGIN), tl.load(numbers + NEGATIVE_SCALE)

    nearest, least = tl.zeros([ROWS], tl.int32), tl.full([ROWS], float("inf"), dtype)
    active = tl.zeros([ROWS], tl.int32)
    for first in range(0, k, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        u = _differences_squared(
            r, g, i, column, b, k, d, r_row, r_feature, g_row, g_feature, ROWS, COLUMNS, dtype
        )
        nearest, least, active = meet(u, column, margin, nearest, least, active)
    assigned, loss, any_active = assign(
        labels, assignment, own, i, valid, k, margin, nearest, least, active
    )

    sigma, prior_sigma = tl.load(numbers + SIGMA), tl.load(numbers + PRIOR_SIGMA)
    scale = tl.sqrt(1.4426950408889634 / tl.load(variance))
    squares, prior_squares = tl.zeros([ROWS], dtype), tl.zeros([ROWS], dtype)
    for first in range(0, features, FEATURES):
        f = first + tl.arange(0, FEATURES)
        inside = valid[:, None] & (f < d)[None, :]
        at = i.to(tl.int64)[:, None] * features + f[None, :]
        of_r = _some(r, i, f, b, d, r_row, r_feature, dtype)
        of_g = _some(g, tl.where(valid, assigned, -1), f, k, d, g_row, g_feature, dtype)
        difference = of_r - of_g
        loss += tl.sum(difference.to(tl.float64) * difference.to(tl.float64), 1)
        tl.store(weighted_differences + at, difference)
        centre = tl.zeros([FEATURES], dtype)  # of the prototypes: latents lie around them
        for begin in range(0, k, COLUMNS):
            column = begin + tl.arange(0, COLUMNS)
            centre += tl.sum(_some(g, column, f, k, d, g_row, g_feature, dtype), 0)
        centre /= k
        z = of_r + sigma * _some(noise, i, f, b, d, noise_row, noise_feature, dtype)
        tl.store(latents + i.to(tl.int64)[:, None] * d + f[None, :], z, mask=inside)
        second = _some(noise + noise_sample, i, f, b, d, noise_row, noise_feature, dtype)
        prior = of_g + prior_sigma * second
        z, prior = (z - centre[None, :]) * scale, (prior - centre[None, :]) * scale
        if TF32:
            z, prior = nearest_tf32(z), nearest_tf32(prior)
        z, prior = tl.where(inside, z, 0.0), tl.where(inside, prior, 0.0)
        squares += tl.sum(z * z, 1)
        prior_squares += tl.sum(prior * prior, 1)
        at_prior = n_pad.to(tl.int64) * features + at
        across = f.to(tl.int64)[None, :] * total + i[:, None]
        tl.store(columns + across, z)
        tl.store(columns + across + n_pad, prior)
        if row_rests is not None:
            z, z_rest = split_tf32(z)
            prior, prior_rest = split_tf32(prior)
            tl.store(row_rests + at, z_rest)
            tl.store(row_rests + at_prior, prior_rest)
            tl.store(column_heads + across, z)
            tl.store(column_heads + across + n_pad, prior)
            tl.store(column_rests + across, z_rest)
            tl.store(column_rests + across + n_pad, prior_rest)
        tl.store(rows + at, z)
        tl.store(rows + at_prior, prior)
    tl.store(bias + i, tl.where(valid, -0.5 * squares, PADDING))
    tl.store(bias + n_pad + i, tl.where(valid, -0.5 * prior_squares, PADDING))
    tl.store(weight + i, tl.where(valid, 1.0, 0.0))
    tl.store(weight + n_pad + i, tl.where(valid, 1.0, 0.0))
    if block == 0:
        tl.store(counter, 0)

    tl.debug_barrier()  # what one thread wrote of `weighted_differences` another may read
    hinge = tl.zeros([ROWS], dtype)
    for first in range(0, k_pad, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        mine = (column[None, :] == assigned[:, None]) & valid[:, None]
        w = tl.zeros([ROWS, COLUMNS], dtype)
        if any_active:
            u = _differences_squared(
                r, g, i, column, b, k, d, r_row, r_feature, g_row, g_feature, ROWS, COLUMNS, dtype
            )
            u = tl.where((column[None, :] == assigned[:, None]) | (i >= b)[:, None], margin, u)
            hinge += tl.sum(tl.where(u >= margin, 0.0, margin - u), 1)
            w = (u < margin).to(dtype)
        for begin in range(0, features, FEATURES):
            f = begin + tl.arange(0, FEATURES)
            of_r = _some(r, i, f, b, d, r_row, r_feature, dtype)
            own_g = _some(g, tl.where(valid, assigned, -1), f, k, d, g_row, g_feature, dtype)
            one_hot = tl.trans(mine.to(dtype))
            prototype_sum = tl.dot(one_hot, of_r - own_g, input_precision=PRECISION)
            if any_active:
                # Less the first prototype, so that what is common to them is not multiplied.
                base = tl.load(g + f.to(tl.int64) * g_feature, mask=f < d, other=0.0).to(dtype)
                of_g = _some(g, column, f, k, d, g_row, g_feature, dtype) - base[None, :]
                of_r = tl.where(valid[:, None], of_r - base[None, :], 0.0)
                others = tl.dot(tl.trans(w), of_r, input_precision=PRECISION)
                prototype_sum -= negative_scale * (others - tl.sum(w, 0)[:, None] * of_g)
                there = weighted_differences + i.to(tl.int64)[:, None] * features + f[None, :]
                weighted_sum = tl.dot(w, of_g, input_precision=PRECISION)
                weighted_difference = tl.sum(w, 1)[:, None] * of_r - weighted_sum
                tl.store(there, tl.load(there) - negative_scale * weighted_difference)
            at = (block * k_pad + column).to(tl.int64)[:, None] * features + f[None, :]
            tl.store(prototype_sums + at, prototype_sum)
        if any_active:
            tl.debug_barrier()
    loss += (negative_scale * hinge).to(tl.float64)
    tl.store(losses + block, tl.sum(tl.where(valid, loss, 0.0)))


@triton.jit
def _sign(split, splits, of_prior):
    """Of the relation: 1 where a split's columns are of the rows' group, else -1. Half of the
    splits are samples', half are prototypes'."""
    return tl.where((split >= splits // 2) == of_prior, 1.0, -1.0).to(tl.float64)


@triton.jit
def _mmd_gradient(
    rows, row_rests, weight, slopes, weighted_sums, factor, i, f, total, features, splits,
    OF_PRIOR: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """Gradients of MMD² in packed rows i [ROWS], features f [FEATURES]; splits added in order."""
    slope = tl.zeros([ROWS], tl.float64)
    weighted_sum = tl.zeros([ROWS, FEATURES], tl.float64)
    at = i.to(tl.int64)[:, None] * features + f[None, :]
    for split in tl.range(0, splits, loop_unroll_factor=4):  # so many loads wait together
        sign = _sign(split, splits, OF_PRIOR)
        slope += sign * tl.load(slopes + split * total + i).to(tl.float64)
        to = at + (total * features).to(tl.int64) * split
        weighted_sum += sign * tl.load(weighted_sums + to).to(tl.float64)
    w = tl.load(weight + i).to(tl.float64)
    z = tl.load(rows + at).to(tl.float64)
    if row_rests is not None:
        z += tl.load(row_rests + at).to(tl.float64)
    return (factor * w)[:, None] * (slope[:, None] * z - weighted_sum)


@kernel
def cgm_finish_kernel(
    rows, row_rests, weight, variance, numbers, kernel_weights, values, nears, slopes,
    weighted_sums, own, losses, weighted_differences, prototype_sums,
    partials,  # [blocks, 4] float64: B² times MMD², and near pairs: of x, of y, across
    counter,  # [1]
    loss, terms, grad_r, grad_g,  # as the op returns them; the gradients None where not wanted
    b, k, d, n_pad, total, features, k_pad, splits, blocks, chunks, scales,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr, PRECISION: tl.constexpr,
    PARTS: tl.constexpr, BLOCKS: tl.constexpr, MORE: tl.constexpr, OF_PRIOR: tl.constexpr,
    MMD_WEIGHT: tl.constexpr, MARGIN_WEIGHT: tl.constexpr,
):  # fmt: skip
    """Add up a block of samples, or, beyond the last one, a block of prototypes' gradient, of MORE
    latents at a time: what a program does there one after another is what the launch takes."""
    block = tl.program_id(0)
    dtype = rows.dtype.element_ty
    h = tl.load(variance).to(tl.float64)
    mmd_weight = tl.load(numbers + MMD_WEIGHT).to(tl.float64)
    margin_weight = tl.load(numbers + MARGIN_WEIGHT).to(tl.float64)
    rows_of_group = b.to(tl.float64)
    pair = 1.0 / (rows_of_group * rows_of_group)  # the relation, but for its sign
    factor = mmd_weight * pair * gradient_factor(h, False, PARTS)
    margin_factor = 2.0 * margin_weight / b
    if block < blocks:
        i = block * ROWS + tl.arange(0, ROWS)
        w, w_prior = (
            tl.load(weight + i).to(tl.float64), tl.load(weight + n_pad + i).to(tl.float64)
        )  # fmt: skip
        part, near_across = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
        near_x, near_y = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
        for split in tl.range(0, splits, loop_unroll_factor=4):
            of_x = w * tl.load(values + split * total + i)
            of_y = w_prior * tl.load(values + split * total + n_pad + i)
            part += _sign(split, splits, False) * of_x + _sign(split, splits, True) * of_y
            of_sample = tl.load(nears + split * total + i, mask=i < b, other=0.0)
            of_latent = tl.load(nears + split * total + n_pad + i, mask=i < b, other=0.0)
            from_x = split < splits // 2
            near_x += tl.where(from_x, of_sample, 0.0).to(tl.float64)
            near_y += tl.where(from_x, 0.0, of_latent).to(tl.float64)
            near_across += tl.where(from_x, of_latent, of_sample).to(tl.float64)
        tl.store(partials + block * 4, tl.sum(part))
        tl.store(partials + block * 4 + 1, tl.sum(near_x))
        tl.store(partials + block * 4 + 2, tl.sum(near_y))
        tl.store(partials + block * 4 + 3, tl.sum(near_across))
        if grad_r is not None:
            for first in range(0, chunks):
                f = first * FEATURES + tl.arange(0, FEATURES)
                of_mmd = _mmd_gradient(
                    rows, row_rests, weight, slopes, weighted_sums, factor, i, f, total, features,
                    splits, False, ROWS, FEATURES,
                )  # fmt: skip
                at = i.to(tl.int64)[:, None] * features + f[None, :]
                of_margin = margin_factor * tl.load(weighted_differences + at).to(tl.float64)
                inside = (i < b)[:, None] & (f < d)[None, :]
                to = grad_r + i.to(tl.int64)[:, None] * d + f[None, :]
                tl.store(to, of_mmd + of_margin, mask=inside)
        tl.debug_barrier()  # this block's part is written before it counts as done
        if tl.atomic_add(counter, 1) == blocks - 1:
            of_block = tl.arange(0, BLOCKS)  # all of them
            there = of_block < blocks
            of_parts = partials + of_block * 4
            of_mmd = tl.sum(tl.load(of_parts, mask=there, other=0.0, cache_modifier=".cg"))
            in_x = tl.sum(tl.load(of_parts + 1, mask=there, other=0.0, cache_modifier=".cg"))
            in_y = tl.sum(tl.load(of_parts + 2, mask=there, other=0.0, cache_modifier=".cg"))
            across = tl.sum(tl.load(of_parts + 3, mask=there, other=0.0, cache_modifier=".cg"))
            of_kernel = tl.load(kernel_weights).to(tl.float64)
            # Within a group pairs i != j, twice; those across groups have the relation's minus.
            within = scales * 2.0 * rows_of_group * (rows_of_group - 1.0)
            between = scales * 2.0 * rows_of_group * rows_of_group
            out, apart = within - in_x - in_y, between - across
            of_mmd += of_kernel * less_all(
                in_x + in_y - across, out - apart, in_x + in_y + across, out + apart,
                within - between,
            )  # fmt: skip
            of_mmd *= pair
            of_margin = tl.sum(tl.load(losses + of_block, mask=there, other=0.0)) / b
            tl.store(terms, of_mmd)
            tl.store(terms + 1, of_margin)
            tl.store(loss, mmd_weight * of_mmd + margin_weight * of_margin)
    elif grad_g is not None:
        column = (block - blocks) // chunks * COLUMNS + tl.arange(0, COLUMNS)
        f = (block - blocks) % chunks * FEATURES + tl.arange(0, FEATURES)
        of_prior = tl.zeros([COLUMNS, FEATURES], dtype)
        if OF_PRIOR:
            for first in range(0, b, MORE):
                i = first + tl.arange(0, MORE)
                of_i = tl.load(own + i, mask=i < n_pad, other=-1)
                mine = column[:, None] == of_i[None, :]
                i = tl.minimum(i, n_pad - 1)
                of_mmd = _mmd_gradient(
                    rows, row_rests, weight, slopes, weighted_sums, factor, n_pad + i, f, total,
                    features, splits, True, MORE, FEATURES,
                )  # fmt: skip
                of_prior += tl.dot(mine.to(dtype), of_mmd.to(dtype), input_precision=PRECISION)
        prototype_sum = tl.zeros([COLUMNS, FEATURES], tl.float64)
        for of_block in tl.range(0, blocks, loop_unroll_factor=4):
            at = (of_block * k_pad + column).to(tl.int64)[:, None] * features + f[None, :]
            prototype_sum += tl.load(prototype_sums + at).to(tl.float64)
        inside = (column < k)[:, None] & (f < d)[None, :]
        to = grad_g + column.to(tl.int64)[:, None] * d + f[None, :]
        tl.store(to, of_prior.to(tl.float64) - margin_factor * prototype_sum, mask=inside)
