"""Derivatives of K V: of a bilinear form, in terms of the op itself.

The op gives the derivatives of Q(x, y, u, v, h) on the rows' side, so its own derivatives are
products of Q's Hessian. In u and v Q is linear, and what the Hessian has there is the op again.
What remains, second derivatives of k, are Hessian-vector products of MMD², one for each of p
values: with u and v as weights of rows, and Γ = 1/2 between the two samples, MMD² is Q.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgm_fast.ops import derivatives
from cgm_fast.ops.formulas import add
from cgm_fast.ops.kernel_product.ops import kernel_product_fwd
from cgm_fast.ops.kernel_product.problem import Problem, Value, Wanted, exchanged, with_values
from cgm_fast.ops.mmd import problem as of_mmd
from cgm_fast.ops.mmd.ops import mmd_hvp
from cgm_fast.ops.records import rebuild, tensor_fields
from cgm_fast.ops.watching import composed


class Parts(NamedTuple):
    """A number or a tensor for each variable of Q, the problem's tensors."""

    x: Any
    y: Any
    u: Any
    v: Any
    variance: Any


class Runs(NamedTuple):
    """How ops are called."""

    fwd: Callable[[Problem, Wanted], Value]
    mmd_hvp: Callable[..., of_mmd.Product]

    @classmethod
    def plain(cls, backend: str) -> Runs:
        """Without derivatives."""
        return cls(
            lambda *records: kernel_product_fwd(*records, backend),
            lambda *records: mmd_hvp(*records, backend),
        )

    @classmethod
    def dispatched(cls, backend: str) -> Runs:
        """Through torch's dispatcher, with the derivatives of registered ops."""
        return cls(
            lambda *records: kernel_product_fwd.dispatched(*records, backend),
            lambda *records: mmd_hvp.dispatched(*records, backend),
        )

    @classmethod
    def differentiable(cls, backend: str) -> Runs:
        """For eager autograd."""
        return cls(functools.partial(differentiable, backend=backend), cls.dispatched(backend)[1])


def gradient(problem: Problem, needs: Parts, runs: Runs) -> Parts:
    """Derivatives of Q where they are needed, the rows' side and the columns' apart."""
    of_x = of_y = of_u = of_v = of_variance = None
    rows = needs.x or needs.u
    if rows or (needs.variance and not (needs.y or needs.v)):
        of_u, of_x, of_variance = runs.fwd(problem, Wanted(needs.u, needs.x, needs.variance))
    if needs.y or needs.v:
        wanted = Wanted(needs.v, needs.y, needs.variance and not rows)
        of_v, of_y, other = runs.fwd(exchanged(problem), wanted)
        of_variance = other if of_variance is None else of_variance
    return Parts(of_x, of_y, of_u, of_v, of_variance)


def hessian(problem: Problem, tangent: Parts, needs: Parts, runs: Runs) -> Parts:
    """The Hessian of Q times a tangent, where it is needed; None in a tangent is zero."""
    out = Parts(None, None, None, None, None)
    if tangent.u is not None:
        rest = Parts(needs.x, needs.y, False, needs.v, needs.variance)
        out = _sum(out, gradient(with_values(problem, tangent.u, problem.v), rest, runs))
    if tangent.v is not None:
        rest = Parts(needs.x, needs.y, needs.u, False, needs.variance)
        out = _sum(out, gradient(with_values(problem, problem.u, tangent.v), rest, runs))
    if tangent.x is not None or tangent.y is not None or tangent.variance is not None:
        out = _sum(out, _second(problem, tangent, needs, runs))
    return out


def _second(problem: Problem, tangent: Parts, needs: Parts, runs: Runs) -> Parts:
    """The Hessian times a tangent of x, y and variance, of which each value of u and v has its
    own: those of MMD² with these as weights."""
    x, y, u, v, variance, variances, kernel_weights, kernel = problem
    dtype = torch.promote_types(x.dtype, torch.float32)
    n, rows = x.shape[-2], x.shape[-2] + y.shape[-2]
    if u is None:
        u = v.new_zeros((*x.shape[:-1], v.shape[-1]))
    weights = torch.cat((u.to(dtype), v.to(dtype)), -2)
    of_z = None
    if tangent.x is not None or tangent.y is not None:
        pair = ((tangent.x, x), (tangent.y, y))
        of_z = torch.cat([torch.zeros_like(z) if t is None else t for t, z in pair], -2)
    along = of_mmd.Tangent(of_z, None, None, tangent.variance)
    begin, end = 0 if needs.x else n, rows if needs.y else n
    wanted = of_mmd.Wanted(begin, end, needs.u or needs.v, False, needs.variance)
    static = ((n, rows - n), (0.0, 0.5, 0.5, 0.0), variances, kernel_weights, kernel, False)
    products = [
        runs.mmd_hvp(of_mmd.Problem(x, y, of_value, None, variance, *static), along, wanted)
        for of_value in weights.unbind(-1)
    ]
    z, of_weights, _, of_variance = (
        None if parts[0] is None else parts for parts in zip(*products, strict=True)
    )
    of_x = of_y = of_u = of_v = None
    if z is not None:
        of_x = of_y = _added(z)
        if needs.x and needs.y:
            of_x, of_y = of_x.split_with_sizes((n, rows - n), -2)
    if of_weights is not None:
        of_sides = (value.split_with_sizes((n, rows - n), -1) for value in of_weights)
        of_u, of_v = (torch.stack(parts, -1) for parts in zip(*of_sides, strict=True))
    return Parts(
        of_x if needs.x else None,
        of_y if needs.y else None,
        of_u if needs.u else None,
        of_v if needs.v else None,
        None if of_variance is None else _added(of_variance),
    )


def _added(parts: Sequence[Tensor]) -> Tensor:
    return sum(parts[1:], parts[0])


def _sum(a: Parts, b: Parts) -> Parts:
    return Parts(*map(add, a, b))


class KernelProduct(torch.autograd.Function):
    """(static, wanted, backend, the problem's tensors...) -> what is wanted, for eager autograd and
    torch.compile, whose Dynamo of torch 2.6 takes no None among results."""

    @staticmethod
    def forward(ctx: Any, static: Any, wanted: Wanted, backend: str, *inputs: Any) -> Any:
        """Of `Value` what is wanted."""
        ctx.save_for_backward(*inputs)
        ctx.rest = static, wanted, backend
        ctx.set_materialize_grads(False)  # no zeros for what nothing depends on
        of_product, of_x, of_variance = kernel_product_fwd(
            Problem(*inputs, *static), wanted, backend
        )
        return tuple([part for part in (of_product, of_x, of_variance) if part is not None])

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """The Hessian of Q times a tangent of what `forward` returned."""
        static, wanted, backend = ctx.rest
        inputs = ctx.saved_tensors
        of_product, of_x, of_variance = _spread(wanted, cotangents)
        given = of_product if of_product is not None else of_x if of_x is not None else of_variance
        if composed(given):
            runs = Runs.dispatched(backend)
        elif torch.is_grad_enabled():
            runs = Runs.differentiable(backend)
        else:
            runs = Runs.plain(backend)
        tangent = Parts(of_x, None, of_product, None, of_variance)
        needs = Parts(*ctx.needs_input_grad[3:])
        out = hessian(Problem(*inputs, *static), tangent, needs, runs)
        cast = (
            None if value is None else value.to(of.dtype)
            for value, of in zip(out, inputs, strict=True)
        )
        return (None, None, None, *cast)


def differentiable(problem: Problem, wanted: Wanted, backend: str) -> Value:
    """The op, for eager autograd."""
    results = KernelProduct.apply(tuple(problem[5:]), wanted, backend, *problem[:5])
    return Value(*_spread(wanted, results))


def _spread(wanted: Wanted, results: tuple[Any, ...]) -> tuple[Any, ...]:
    """Results of which those that are not wanted are left out, with None for these."""
    out, at = [], 0
    for yes in wanted:
        out.append(results[at] if yes else None)
        at += bool(yes)
    return tuple(out)


class _Rule(derivatives.Rule):
    """The derivatives of the registered op."""

    op = kernel_product_fwd
    variables = range(tensor_fields(Problem))

    def asked(self, args: tuple[Any, ...]) -> tuple[bool, ...]:
        """What is wanted."""
        return tuple(map(bool, rebuild(self.op.records, args)[1]))

    def backward(
        self, args: tuple[Any, ...], results: Any, cotangents: Any, needed: frozenset[int]
    ) -> dict[int, Tensor | None]:
        """Derivatives in the arguments needed."""
        problem, _ = rebuild(self.op.records, args)
        of_product, of_x, of_variance = cotangents
        needs = Parts(*(i in needed for i in self.variables))
        tangent = Parts(of_x, None, of_product, None, of_variance)
        out = hessian(problem, tangent, needs, Runs.dispatched(args[-1]))
        return dict(enumerate(out))

    def along(
        self,
        args: tuple[Any, ...],
        results: Any,
        tangents: dict[int, Tensor],
        asked: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        """Derivatives of the results along tangents of arguments."""
        problem, wanted = rebuild(self.op.records, args)
        tangent = Parts(*(tangents.get(i) for i in self.variables))
        needs = Parts(wanted.x, False, wanted.product, False, wanted.variance)
        out = hessian(problem, tangent, needs, Runs.dispatched(args[-1]))
        return out.u, out.x, out.variance


derivatives.differentiate_by(_Rule())
derivatives.map_items(kernel_product_fwd, derivatives.as_batch(kernel_product_fwd.registered))
