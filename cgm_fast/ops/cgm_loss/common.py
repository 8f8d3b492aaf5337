"""The CGM latent objective composed of its two parts, whichever implementation computes them."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from cgm_fast.ops.cgm_loss.problem import Problem, Product, Tangent, Value, Wanted
from cgm_fast.ops.mmd import problem as of_mmd
from cgm_fast.ops.prototype_margin import problem as of_margin


def fwd(mmd: ModuleType, prototype_margin: ModuleType, problem: Problem, wanted: Wanted) -> Value:
    """Loss, terms, assignment, latents and gradients: see `Value`."""
    r, g = problem.r, problem.g
    b = r.shape[0]
    margin = prototype_margin.fwd(margin_problem(problem), of_margin.Wanted(*wanted))
    stacked = _latents(problem, margin.assignment)
    with_prior = wanted.g and not problem.detach_prior
    begin = 0 if wanted.r or not with_prior else b
    end = 2 * b if with_prior else (b if wanted.r else begin)
    rows = of_mmd.NOTHING._replace(row_begin=begin, row_end=end)
    value = mmd.fwd(mmd_problem(problem, stacked), rows)
    loss = problem.mmd_weight * value.loss + problem.margin_weight * margin.loss
    grad_r = grad_g = None
    if wanted.r:
        grad_r = problem.margin_weight * margin.r
        grad_r += problem.mmd_weight * value.z[:b]
    if wanted.g:
        grad_g = problem.margin_weight * margin.g
    if with_prior:
        of_prior = _sum_by_prototype(value.z[-b:], margin.assignment, g.shape[0])
        grad_g += problem.mmd_weight * of_prior
    z = stacked[:b].to(r.dtype).contiguous()  # as registered: whatever the layout of r
    terms = torch.stack((value.loss, margin.loss))
    return Value(loss, terms, margin.assignment, z, grad_r, grad_g)


def hvp(
    mmd: ModuleType,
    prototype_margin: ModuleType,
    problem: Problem,
    tangent: Tangent,
    wanted: Wanted,
) -> Product:
    """The derivative of both gradients along a tangent; the labels are the assignment."""
    r, g, assignment = problem.r, problem.g, problem.labels
    assert assignment is not None
    b, k = r.shape[0], g.shape[0]
    dtype = torch.promote_types(r.dtype, torch.float32)
    along_r, along_g = (
        like.new_zeros(like.shape, dtype=dtype) if t is None else t.to(dtype)
        for t, like in zip(tangent, (r, g), strict=True)
    )
    of_pair = of_margin.Tangent(along_r, along_g), of_margin.Wanted(True, True)
    margin = prototype_margin.hvp(margin_problem(problem), *of_pair)
    out_r, out_g = problem.margin_weight * margin.r, problem.margin_weight * margin.g
    along_prior = along_g[assignment.clamp(0, k - 1)]
    if problem.detach_prior:
        along_prior = torch.zeros_like(along_prior)
    product = mmd.hvp(
        mmd_problem(problem, _latents(problem, assignment)),
        of_mmd.Tangent(torch.cat((along_r, along_prior)), None, None, None),
        of_mmd.NOTHING._replace(row_end=2 * b),
    ).z
    out_r += problem.mmd_weight * product[:b]
    if not problem.detach_prior:
        out_g += problem.mmd_weight * _sum_by_prototype(product[b:], assignment, k)
    return Product(out_r, out_g)


def margin_problem(problem: Problem) -> of_margin.Problem:
    """The mean of the prototype margin loss."""
    return of_margin.Problem(
        problem.r, problem.g, problem.labels, problem.margin, problem.negative_scale,
        1.0 / problem.r.shape[0],
    )  # fmt: skip


def mmd_problem(problem: Problem, z: Tensor) -> of_mmd.Problem:
    """The biased MMD² of the latents and their prototypes', stacked in z [2 B, d]."""
    b = problem.r.shape[0]
    pair = 1.0 / (b * b)
    return of_mmd.Problem(
        z, None, None, None, None, (b, b), (pair, -pair, -pair, pair), tuple(problem.variances),
        tuple(problem.kernel_weights), problem.kernel, False,
    )  # fmt: skip


def _latents(problem: Problem, assignment: Tensor) -> Tensor:
    """z_i = r_i + σ e_i, and then z'_i = g_{k_i} + τ e'_i, [2 B, d]."""
    dtype = torch.promote_types(problem.r.dtype, torch.float32)
    noise, g = problem.noise.to(dtype), problem.g.to(dtype)
    nearest = assignment.clamp(0, g.shape[0] - 1)
    z = problem.r.to(dtype) + problem.sigma * noise[0]
    return torch.cat((z, g[nearest] + problem.prior_sigma * noise[1]))


def _sum_by_prototype(rows: Tensor, assignment: Tensor, k: int) -> Tensor:
    """Row sums by assigned prototype, [k, d], in a fixed order on every device."""
    out = rows.new_zeros(k, rows.shape[1])
    nearest = assignment.clamp(0, k - 1)
    if rows.device.type == "cuda":  # index_add_ would use atomics; this sorts instead
        return out.index_put_((nearest,), rows, accumulate=True)
    return out.index_add_(0, nearest, rows)
