"""Derivatives of the registered ops, for whatever goes through torch's dispatcher.

Eager autograd and torch.compile differentiate an `autograd.Function` (autograd.py), which costs a
small call least. torch.func's transforms, vmap over a graph, forward mode, a traced graph and calls
of `torch.ops.cgm_fast` see registered ops alone: here these get their derivatives (the dispatcher's
key Autograd) and their rule for vmap. An op's results are all differentiable, so that the gradient,
which comes with the value, can be differentiated once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, library
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from cgm_fast.ops import watching
from cgm_fast.ops.formulas import THIRD, Formula
from cgm_fast.ops.records import flatten, rebuild, tensor_fields
from cgm_fast.ops.registration import Op, with_empty, without_empty


class Rule:
    """The derivatives of one op, on arguments as torch passes them."""

    op: Op

    def widened(self, args: tuple[Any, ...], needed: frozenset[int]) -> tuple[Any, ...]:
        """The arguments with which the results hold what the derivatives in those needed need: the
        same, where nothing that is needed later comes with them."""
        return args

    def narrowed(
        self, args: tuple[Any, ...], wide: tuple[Any, ...], results: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Of the results for the wide arguments, those that `args` ask for."""
        return results

    def asked(self, args: tuple[Any, ...]) -> tuple[bool, ...]:
        """Which results `args` ask for and are differentiable."""
        raise NotImplementedError

    def backward(
        self, args: tuple[Any, ...], results: Any, cotangents: Any, needed: frozenset[int]
    ) -> dict[int, Tensor | None]:
        """Derivatives in the arguments needed."""
        raise NotImplementedError

    def along(
        self,
        args: tuple[Any, ...],
        results: Any,
        tangents: dict[int, Tensor],
        asked: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        """Derivatives of the results asked for along tangents of arguments."""
        raise NotImplementedError


class OfValue(Rule):
    """The derivatives of an op's forward pass, on arguments as torch passes them."""

    def __init__(self, formula: Formula) -> None:
        self.formula, self.op = formula, formula.fwd

    def widened(self, args: tuple[Any, ...], needed: frozenset[int]) -> tuple[Any, ...]:
        """The arguments with which the results hold what these arguments' derivatives need."""
        problem, wanted = rebuild(self.op.records, args)
        needs = [i in needed for i in range(self.formula.variables)]
        wide = self.formula.both(wanted, self.formula.wanted(problem, needs))
        return flatten((problem, wide), args[-1])

    def narrowed(
        self, args: tuple[Any, ...], wide: tuple[Any, ...], results: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Of the results for the wide arguments, those that `args` ask for."""
        values = self.formula.values
        (_, of_args), (_, of_wide) = (rebuild(self.op.records, some) for some in (args, wide))
        gradients = self.formula.narrowed(of_args, of_wide, without_empty(results[values:]))
        return (*results[:values], *with_empty(gradients, results[0]))

    def asked(self, args: tuple[Any, ...]) -> tuple[bool, ...]:
        """Which results `args` ask for and are differentiable."""
        _, wanted = rebuild(self.op.records, args)
        of_values = (i not in self.formula.constant for i in range(self.formula.values))
        return (*of_values, *self.formula.has(wanted))

    def backward(
        self, args: tuple[Any, ...], results: Any, cotangents: Any, needed: frozenset[int]
    ) -> dict[int, Tensor | None]:
        """Derivatives in the arguments needed."""
        if any(i >= self.formula.variables for i in needed):
            raise RuntimeError(f"{self.op.name} has no derivative in its constants; detach() them")
        problem, wanted = rebuild(self.op.records, args)
        parts = self.formula.backward(
            problem, wanted, args[-1], without_empty(results), cotangents,
            self.formula.hvp.dispatched,
        )  # fmt: skip
        of: Any = type(problem)
        tensors = tensor_fields(of)
        inputs, static = problem[:tensors], problem[tensors:]
        return dict(enumerate(self.formula.split(inputs, static, wanted, parts)))

    def along(
        self,
        args: tuple[Any, ...],
        results: Any,
        tangents: dict[int, Tensor],
        asked: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        """Derivatives of the results asked for along tangents of arguments."""
        if any(i >= self.formula.variables for i in tangents):
            raise NotImplementedError(f"{self.op.name} has no derivative in its constants")
        problem, wanted = rebuild(self.op.records, args)
        of_variables = [tangents.get(i) for i in range(self.formula.variables)]
        return self.formula.along(
            problem, wanted, args[-1], without_empty(results), of_variables,
            self.formula.hvp.dispatched if any(asked[self.formula.values :]) else None,
        )  # fmt: skip


class OfProduct(Rule):
    """The derivatives of a Hessian-vector product: itself, for it is linear and symmetric.

    In what the Hessian depends on, a derivative would be a third.
    """

    def __init__(self, formula: Formula) -> None:
        self.formula, self.op = formula, formula.hvp
        problem, tangent, _ = self.op.records
        begin = len(problem.__annotations__)
        self.tangents = range(begin, begin + len(tangent.__annotations__))

    def asked(self, args: tuple[Any, ...]) -> tuple[bool, ...]:
        """The parts that are wanted."""
        return self.formula.has(rebuild(self.op.records, args)[2])

    def backward(
        self, args: tuple[Any, ...], results: Any, cotangents: Any, needed: frozenset[int]
    ) -> dict[int, Tensor | None]:
        """The product with what came from above."""
        if needed - set(self.tangents):
            raise RuntimeError(THIRD)
        problem, _, wanted = rebuild(self.op.records, args)
        vector = self.formula.tangent(problem, wanted, cotangents)
        own = self.formula.everything(problem, [i in needed for i in self.tangents])
        product = self.op.dispatched(problem, vector, own, args[-1])
        return dict(zip(self.tangents, product, strict=True))

    def along(
        self,
        args: tuple[Any, ...],
        results: Any,
        tangents: dict[int, Tensor],
        asked: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        """The product with the tangents' tangents."""
        if tangents.keys() - set(self.tangents):
            raise NotImplementedError(THIRD)
        problem, tangent, wanted = rebuild(self.op.records, args)
        vector = type(tangent)(*(tangents.get(i) for i in self.tangents))
        product: Sequence[Tensor] = self.op.dispatched(problem, vector, wanted, args[-1])
        return product


def differentiate(formula: Formula) -> None:
    """Register the derivatives of an op and of its product, reverse and forward."""
    differentiate_by(OfValue(formula))
    differentiate_by(OfProduct(formula))


def differentiate_by(rule: Rule) -> None:
    """Register the derivatives of one op."""
    op, lib = rule.op.registered, rule.op.fragment
    after_autograd = torch._C._after_autograd_keyset

    class Level(_SingleLevelFunction):
        """One level of differentiation; the op itself runs at the level below."""

        @staticmethod
        def forward(ctx: Any, keyset: Any, asked: tuple[bool, ...], *args: Any) -> Any:
            with (
                torch.enable_grad(),
                forward_ad._set_fwd_grad_enabled(True),
                torch._C._AutoDispatchBelowAutograd(),
            ):
                results = op.redispatch(keyset & after_autograd, *args)
            ctx.set_materialize_grads(False)
            # Tensors are saved, and everything else kept as it is.
            tensors = [arg for arg in args if isinstance(arg, Tensor)]
            ctx.args = [None if isinstance(arg, Tensor) else arg for arg in args]
            ctx.tensors = [i for i, arg in enumerate(args) if isinstance(arg, Tensor)]
            ctx.asked = asked
            ctx.save_for_backward(*tensors, *results)
            ctx.save_for_forward(*tensors, *results)
            ctx.mark_non_differentiable(
                *(value for value, yes in zip(results, asked, strict=True) if not yes)
            )
            return results

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
            args, results = _saved(ctx)
            needed = ctx.needs_input_grad[2:]
            found = rule.backward(
                args, results, cotangents, frozenset(i for i, need in enumerate(needed) if need)
            )
            out = [found.get(i) if need else None for i, need in enumerate(needed)]
            return (None, None, *(_like(args[i], value) for i, value in enumerate(out)))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            args, results = _saved(ctx)
            given = {i: t for i, t in enumerate(tangents[2:]) if isinstance(t, Tensor)}
            if watching.transforms():
                # Torch has turned forward mode off, for the levels below too, which still want it.
                with forward_ad._set_fwd_grad_enabled(True):
                    args = tuple(map(_primal, args))
                    out = rule.along(args, results, given, ctx.asked)
            else:
                out = rule.along(args, results, given, ctx.asked)
            return tuple(
                (torch.zeros_like(value) if t is None else t.to(value.dtype)) if yes else None
                for value, t, yes in zip(results, out, ctx.asked, strict=True)
            )

    def kernel(keyset: Any, *args: Any) -> tuple[Tensor, ...]:
        forward = forward_ad._current_level >= 0
        reverse = torch.is_grad_enabled()
        needed = frozenset(
            i
            for i, arg in enumerate(args)
            if isinstance(arg, Tensor)
            and arg.is_floating_point()
            and (forward or (reverse and arg.requires_grad))
        )
        if not needed:
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & after_autograd, *args)
        wide = rule.widened(args, needed)
        # In reverse mode too the gradient has a tangent of its own.
        both = reverse and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
        asked = rule.asked(wide if both else args)
        with enable_single_level_autograd_function():
            results = Level.apply(keyset, asked, *wide)  # type: ignore[attr-defined]
        return rule.narrowed(args, wide, results)

    lib.impl(rule.op.name, kernel, "Autograd", with_keyset=True)


def _primal(arg: Any) -> Any:
    if isinstance(arg, Tensor) and arg.is_floating_point():
        return forward_ad.unpack_dual(arg).primal
    return arg


def _saved(ctx: Any) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
    saved, args = ctx.saved_tensors, list(ctx.args)
    for i, value in zip(ctx.tensors, saved, strict=False):
        args[i] = value
    return tuple(args), tuple(saved[len(ctx.tensors) :])


def _like(value: Any, derivative: Tensor | None) -> Tensor | None:
    return None if derivative is None else derivative.to(value.dtype)


def map_items(op: Op, rule: Callable[..., Any] | None = None) -> None:
    """Register an op's rule for vmap; without one of its own, item after item."""
    registered = op.registered

    def one_by_one(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        def item(i: int) -> list[Any]:
            return [
                arg.select(dim, i) if isinstance(dim, int) else arg
                for arg, dim in zip(args, in_dims, strict=True)
            ]

        items = [registered(*item(i)) for i in range(info.batch_size)]
        return tuple(torch.stack(parts) for parts in zip(*items, strict=True)), (0,) * len(items[0])

    library.register_vmap(registered._name, rule or one_by_one, lib=op.fragment)


def as_batch(op: Any) -> Any:
    """A rule for vmap: its dimension is a batch, or joins the batch there is.

    Of an op whose first argument is [n, d], or [b, n, d], as all of them then have a batch.
    """

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
