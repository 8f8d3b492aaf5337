"""Derivatives of MMD²: the gradient comes with the value, so backward only scales what is saved.

The gradient is itself differentiable once more, through `mmd_hvp`, the Hessian-vector product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops import derivatives
from cgm_fast.ops.mmd.ops import mmd_fwd, mmd_hvp
from cgm_fast.ops.scaling import last_derivative
from cgm_fast.ops.watching import composed

# Tensor inputs, in order: x, y, x_weights, y_weights, cross, variance.
_TENSORS = 6


def _plan(needs: tuple[bool, ...], n: int, m: int) -> tuple[int, int, bool, bool]:
    """Rows of z whose gradient is wanted, and whether weights and (variance, cross) want one."""
    begin = 0 if needs[0] or not needs[1] else n
    end = n + m if needs[1] else (n if needs[0] else begin)
    return begin, end, needs[2] or needs[3], needs[4] or needs[5]


def _split(
    needs: tuple[bool, ...],
    begin: int,
    scales: tuple[float, float, float],
    inputs: tuple[Tensor | None, ...],
    of_z: Tensor,
    of_a: Tensor,
    of_p: Tensor,
) -> list[Tensor | None]:
    """Turn derivatives in z, a and (h, cross) into derivatives in the six inputs."""
    x, y, x_weights, y_weights, cross, variance = inputs
    assert x is not None
    assert y is not None
    n = x.shape[-2]
    x_scale, y_scale, cross_scale = scales
    out: list[Tensor | None] = [None] * _TENSORS
    if needs[0] and needs[1]:
        of_x, of_y = of_z.split_with_sizes((n, y.shape[-2]), -2)
        out[0], out[1] = _like(x, of_x), _like(y, of_y)
    elif needs[0]:
        out[0] = _like(x, of_z.narrow(-2, 0, n))
    elif needs[1]:
        out[1] = _like(y, of_z.narrow(-2, n - begin, y.shape[-2]))
    if needs[2] and x_weights is not None:
        out[2] = (x_scale * of_a[..., :n]).to(x_weights.dtype)
    if needs[3] and y_weights is not None:
        out[3] = (-y_scale * of_a[..., n:]).to(y_weights.dtype)
    if needs[4] and cross is not None:
        out[4] = (cross_scale * of_p[..., -1]).to(cross.dtype)
    if needs[5] and variance is not None:
        out[5] = of_p[..., :-1].to(variance.dtype)
    return out


def _like(given: Tensor, value: Tensor) -> Tensor:
    return value if value.dtype == given.dtype else value.to(given.dtype)


class MMD(torch.autograd.Function):
    """(x, y, x_weights, y_weights, cross, variance, constants..., backend) -> L [b].

    Shapes, with a batch or without, are those of ops.py.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        """Compute L and, in the same pass, its gradient in whatever requires one."""
        inputs, constants, backend = args[:_TENSORS], args[_TENSORS:-1], args[-1]
        needs = ctx.needs_input_grad[:_TENSORS]
        plan = _plan(needs, inputs[0].shape[-2], inputs[1].shape[-2])
        loss, *gradient = mmd_fwd(*inputs, *constants, *plan, backend)
        ctx.save_for_backward(*inputs, *gradient)
        ctx.plan, ctx.constants, ctx.backend = plan, constants, backend
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Scale the saved gradient; differentiably only if a second derivative may follow."""
        (grad_loss,) = grads
        saved = ctx.saved_tensors
        inputs, gradient = saved[:_TENSORS], saved[_TENSORS:]
        needs = ctx.needs_input_grad[:_TENSORS]
        rest = (None,) * (len(ctx.constants) + 1)
        if torch.is_grad_enabled():
            if composed(grad_loss):  # the gradients of a batch, together
                args = (*inputs, *ctx.constants, *ctx.plan, ctx.backend)
                gradient = _FWD(*args)[1:]
                scaled = _scaled(grad_loss, inputs, gradient, needs, ctx.plan, ctx.constants)
                return (*scaled, *rest)
            static = (needs, ctx.plan, ctx.constants, ctx.backend)
            return (*MMDGradient.apply(grad_loss, *inputs, *gradient, *static), *rest)
        return (*_scaled(grad_loss, inputs, gradient, needs, ctx.plan, ctx.constants), *rest)


def _scaled(
    grad_loss: Tensor,
    inputs: tuple[Tensor | None, ...],
    gradient: tuple[Tensor, ...],
    needs: tuple[bool, ...],
    plan: tuple[int, int, bool, bool],
    constants: tuple[Any, ...],
) -> list[Tensor | None]:
    grad_z, grad_a, grad_p = gradient
    begin, end, with_a, with_p = plan
    if not (grad_loss.dim() or with_a or with_p):  # the usual call, and small ones are all overhead
        grad_z = grad_z * grad_loss
        return _split(needs, begin, constants[2:5], inputs, grad_z, grad_a, grad_p)
    of_rows = grad_loss[:, None] if grad_loss.dim() else grad_loss
    if end > begin:
        grad_z = grad_z * (of_rows.unsqueeze(-1) if grad_loss.dim() else grad_loss)
    if with_a:
        grad_a = grad_a * of_rows
    if with_p:
        grad_p = grad_p * of_rows
    return _split(needs, begin, constants[2:5], inputs, grad_z, grad_a, grad_p)


class MMDGradient(torch.autograd.Function):
    """(dL, inputs, gradient of L, static...) -> derivatives in the inputs; differentiable once."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor | None, ...]:
        """Scale the gradient that the forward pass of `MMD` computed."""
        grad_loss, inputs = args[0], args[1 : 1 + _TENSORS]
        gradient = args[1 + _TENSORS : 4 + _TENSORS]
        needs, plan, constants, backend = args[4 + _TENSORS :]
        ctx.save_for_backward(grad_loss, *inputs, *gradient)
        ctx.needs, ctx.plan, ctx.constants, ctx.backend = needs, plan, constants, backend
        return tuple(_scaled(grad_loss, inputs, gradient, needs, plan, constants))

    @staticmethod
    @last_derivative
    def backward(ctx: Any, *tangents: Tensor | None) -> Any:
        """Hessian-vector product with the tangents, and the tangents' share of dL."""
        grad_loss, *rest = ctx.saved_tensors
        inputs, gradient = rest[:_TENSORS], rest[_TENSORS:]
        wanted = ctx.needs_input_grad
        tangent = _gather(inputs, tangents, ctx.constants)
        begin, *_ = plan = _plan(wanted[1 : 1 + _TENSORS], inputs[0].shape[-2], inputs[1].shape[-2])
        product = mmd_hvp(*inputs, *ctx.constants, *plan, *tangent, ctx.backend)
        scaled = [product[0] * grad_loss[..., None, None]]
        scaled += [part * grad_loss[..., None] if part.numel() else part for part in product[1:]]
        out = _split(wanted[1 : 1 + _TENSORS], begin, ctx.constants[2:5], tuple(inputs), *scaled)
        grad_grad_loss = None
        if wanted[0]:
            grad_grad_loss = _along(gradient, tangent, ctx.plan)
            if grad_grad_loss is None:
                grad_grad_loss = torch.zeros_like(grad_loss)
        return (grad_grad_loss, *out, None, None, None, None, None, None, None)


def _along(
    gradient: tuple[Tensor, ...] | list[Tensor],
    tangent: tuple[Tensor | None, ...],
    plan: tuple[int, int, bool, bool],
) -> Tensor | None:
    """The derivative of L along a tangent of (z, a, p), of which `plan` says what is known."""
    begin, end, with_a, with_p = plan
    terms = []
    if end > begin and tangent[0] is not None:
        terms.append((gradient[0] * tangent[0].narrow(-2, begin, end - begin)).sum((-2, -1)))
    if with_a and tangent[1] is not None:
        terms.append((gradient[1] * tangent[1]).sum(-1))
    if with_p and tangent[2] is not None:
        terms.append((gradient[2] * tangent[2]).sum(-1))
    return sum(terms[1:], terms[0]) if terms else None


def _gather(
    inputs: Sequence[Any], tangents: tuple[Tensor | None, ...], constants: tuple[Any, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Tangents of the six inputs as tangents of z, a and (h, cross); None where all are."""
    x, y = inputs[0], inputs[1]
    x_scale, y_scale, cross_scale = constants[2:5]
    n, m, s = x.shape[-2], y.shape[-2], len(constants[1])
    batch = x.shape[:-2]
    dtype = torch.promote_types(x.dtype, torch.float32)

    def joined(first: Tensor | None, second: Tensor | None, sizes: Any, dim: int) -> Tensor | None:
        if first is None and second is None:
            return None
        parts = zip((first, second), sizes, strict=True)
        return torch.cat(
            [x.new_zeros(size, dtype=dtype) if t is None else t.to(dtype) for t, size in parts], dim
        )

    dx, dy, dwx, dwy, dcross, dh = tangents
    z = joined(dx, dy, (x.shape, y.shape), -2)
    a = joined(
        None if dwx is None else x_scale * dwx,
        None if dwy is None else -y_scale * dwy,
        ((*batch, n), (*batch, m)),
        -1,
    )
    dcross = None if dcross is None else cross_scale * dcross[..., None]
    p = joined(dh, dcross, ((*batch, s), (*batch, 1)), -1)
    return z, a, p


# Of an op's arguments: constants behind the tensors, then the plan, then the rest.
_CONSTANTS, _PLAN = slice(_TENSORS, _TENSORS + 5), slice(_TENSORS + 5, _TENSORS + 9)
_FWD, _HVP = torch.ops.cgm_fast.mmd_fwd.default, torch.ops.cgm_fast.mmd_hvp.default


class _Loss:
    """The derivatives of `cgm_fast::mmd_fwd`: see `derivatives.Formula`."""

    def widened(self, args: tuple[Any, ...], wanted: frozenset[int]) -> tuple[Any, ...]:
        """The rows that are asked for and those that are wanted, and all between them."""
        begin, end, with_a, with_p = args[_PLAN]
        needs = tuple(i in wanted for i in range(_TENSORS))
        first, last, of_a, of_p = _plan(needs, args[0].shape[-2], args[1].shape[-2])
        if begin >= end:
            begin, end = first, last
        elif first < last:
            begin, end = min(begin, first), max(end, last)
        plan = begin, end, with_a or of_a, with_p or of_p
        return (*args[: _PLAN.start], *plan, *args[_PLAN.stop :])

    def narrowed(
        self, args: tuple[Any, ...], wide: tuple[Any, ...], results: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """The rows asked for; empty what was not."""
        loss, of_z, of_a, of_p = results
        begin, end, with_a, with_p = args[_PLAN]
        skip = begin - wide[_PLAN][0] if end > begin else 0
        of_z = of_z.narrow(-2, skip, max(0, end - begin))
        of_a = of_a if with_a else of_a.new_empty(0)
        return loss, of_z, of_a, of_p if with_p else of_p.new_empty(0)

    def asked(self, args: tuple[Any, ...]) -> tuple[bool, ...]:
        """The loss, and what the plan has."""
        begin, end, with_a, with_p = args[_PLAN]
        return True, end > begin, with_a, with_p

    def backward(
        self,
        args: tuple[Any, ...],
        results: tuple[Tensor, ...],
        cotangents: tuple[Tensor | None, ...],
        wanted: frozenset[int],
    ) -> dict[int, Tensor | None]:
        """The gradient scaled, and the Hessian-vector product with what reached the gradient."""
        inputs = args[:_TENSORS]
        needs = tuple(i in wanted for i in range(_TENSORS))
        grad_loss, *vector = cotangents
        begin = args[_PLAN][0]
        parts: list[Any] = [None, None, None]
        if grad_loss is not None:
            of_rows = grad_loss[..., None]
            scales = of_rows[..., None], of_rows, of_rows
            parts = [scale * value for scale, value in zip(scales, results[1:], strict=True)]
        if any(value is not None for value in vector):
            product = _HVP(*args[: _PLAN.stop], *_whole(args, vector), args[-1])
            parts = [
                more if part is None else part + more
                for part, more in zip(parts, product, strict=True)
            ]
        return dict(enumerate(_split(needs, begin, args[_CONSTANTS][2:], inputs, *parts)))

    def along(
        self,
        args: tuple[Any, ...],
        results: tuple[Tensor, ...],
        tangents: dict[int, Tensor],
        asked: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        """The loss by its gradient, the gradient by the Hessian."""
        given = tuple(tangents.get(i) for i in range(_TENSORS))
        tangent = _gather(args[:_TENSORS], given, args[_CONSTANTS])
        out: list[Tensor | None] = [_along(results[1:], tangent, args[_PLAN]), None, None, None]
        if any(asked[1:]):
            product = _HVP(*args[: _PLAN.stop], *tangent, args[-1])
            out[1:] = [
                value if ask else None for value, ask in zip(product, asked[1:], strict=True)
            ]
        return tuple(out)


def _whole(args: tuple[Any, ...], vector: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Vectors over results of an op as vectors over all rows, as `mmd_hvp` takes them."""
    begin, end, *with_rest = args[_PLAN]
    of_z, *rest = vector
    if of_z is not None:
        rows = args[0].shape[-2] + args[1].shape[-2]
        of_z = torch.nn.functional.pad(of_z, (0, 0, begin, rows - end)) if end > begin else None
    return [of_z, *(v if has else None for v, has in zip(rest, with_rest, strict=True))]


class _Product(derivatives.OfProduct):
    """The derivatives of `cgm_fast::mmd_hvp`, whose results are parts of its vectors."""

    def asked(self, args: tuple[Any, ...]) -> tuple[bool, ...]:
        """What the plan has."""
        begin, end, with_a, with_p = args[_PLAN]
        return end > begin, with_a, with_p

    def backward(
        self,
        args: tuple[Any, ...],
        results: tuple[Tensor, ...],
        cotangents: tuple[Tensor | None, ...],
        wanted: frozenset[int],
    ) -> dict[int, Tensor | None]:
        """The product with what came from above, whole, for every vector there is."""
        if any(i < self.tangents for i in wanted):
            raise RuntimeError(derivatives.THIRD)
        of_z, of_a, of_p = (i in wanted for i in range(_PLAN.stop, _PLAN.stop + 3))
        rows = args[0].shape[-2] + args[1].shape[-2]
        plan = (0, rows if of_z else 0, of_a, of_p)
        found = _HVP(*args[: _PLAN.start], *plan, *_whole(args, cotangents), args[-1])
        return {i: value for i, value in enumerate(found, _PLAN.stop) if i in wanted}

    def product(
        self,
        args: tuple[Any, ...],
        results: tuple[Tensor, ...],
        vectors: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, ...]:
        """The op with other vectors."""
        found: tuple[Tensor, ...] = _HVP(*args[: _PLAN.stop], *vectors, args[-1])
        return found


def _batched(op: Any) -> Any:
    """The rule for vmap: its dimension is a batch, or joins the batch there is."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        size = info.batch_size
        x, in_dim = args[0], in_dims[0]
        inner = x.shape[:-2] if in_dim is None else x.movedim(in_dim, 0).shape[1:-2]

        def joined(arg: Any, dim: int | None) -> Any:
            if not isinstance(arg, Tensor):
                return arg
            arg = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            return arg.flatten(0, 1) if inner else arg

        results = op(*map(joined, args, in_dims))
        empty = [value.shape == (0,) for value in results]
        if inner:
            results = tuple(
                value if none else value.unflatten(0, (size, inner[0]))
                for value, none in zip(results, empty, strict=True)
            )
        return results, tuple(None if none else 0 for none in empty)

    return rule


derivatives.differentiate("mmd_fwd", _Loss())
derivatives.differentiate("mmd_hvp", _Product(_HVP, _PLAN.stop))
derivatives.map_items("mmd_fwd", _batched(_FWD))
derivatives.map_items("mmd_hvp", _batched(_HVP))
