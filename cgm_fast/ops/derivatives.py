"""Derivatives of the registered ops, for whatever goes through torch's dispatcher.

Eager autograd and torch.compile differentiate our `autograd.Function`s (each op's autograd.py),
which cost a small call least. torch.func's transforms, vmap over a graph, forward mode, a traced
graph and calls of `torch.ops.cgm_fast` see registered ops alone: here these get their derivatives
(the dispatcher's key Autograd) and their rule for vmap. An op's results are all differentiable, so
that the gradient, which comes with the value, can be differentiated once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, library
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from cgm_fast.ops import watching
from cgm_fast.ops.registration import registered

THIRD = "third derivatives are not implemented in cgm_fast"

Tensors = tuple[Tensor | None, ...]


class Formula(Protocol):
    """What is to be known of an op: `args` and `results` are its own, in the schema's order."""

    def widened(self, args: tuple[Any, ...], wanted: frozenset[int]) -> tuple[Any, ...]:
        """The arguments with which its results hold what these arguments' derivatives need."""

    def narrowed(
        self, args: tuple[Any, ...], wide: tuple[Any, ...], results: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Of the results for the wide arguments, those that `args` ask for."""

    def asked(self, args: tuple[Any, ...]) -> tuple[bool, ...]:
        """Which results `args` ask for and are differentiable."""

    def backward(
        self,
        args: tuple[Any, ...],
        results: tuple[Tensor, ...],
        cotangents: Tensors,
        wanted: frozenset[int],
    ) -> dict[int, Tensor | None]:
        """Derivatives in the wanted arguments."""

    def along(
        self,
        args: tuple[Any, ...],
        results: tuple[Tensor, ...],
        tangents: dict[int, Tensor],
        asked: tuple[bool, ...],
    ) -> Tensors:
        """Derivatives of the results asked for, along tangents of arguments."""


def differentiate(function: str, formula: Formula) -> None:
    """Register an op's derivatives, first and second, reverse and forward."""
    op, lib = registered(function)
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
            wanted = frozenset(i for i, need in enumerate(needed) if need)
            found = formula.backward(args, results, cotangents, wanted)
            out = [found.get(i) for i in range(len(needed))]
            return (None, None, *(_like(args[i], value) for i, value in enumerate(out)))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            args, results = _saved(ctx)
            given = {i: t for i, t in enumerate(tangents[2:]) if isinstance(t, Tensor)}
            if watching.transforms():
                # Torch has turned forward mode off, for the levels below too, which still want it.
                with forward_ad._set_fwd_grad_enabled(True):
                    args = tuple(map(_primal, args))
                    out = formula.along(args, results, given, ctx.asked)
            else:
                out = formula.along(args, results, given, ctx.asked)
            return tuple(
                (torch.zeros_like(value) if t is None else t.to(value.dtype)) if yes else None
                for value, t, yes in zip(results, out, ctx.asked, strict=True)
            )

    def kernel(keyset: Any, *args: Any) -> tuple[Tensor, ...]:
        forward = forward_ad._current_level >= 0
        reverse = torch.is_grad_enabled()
        wanted = frozenset(
            i
            for i, arg in enumerate(args)
            if isinstance(arg, Tensor)
            and arg.is_floating_point()
            and (forward or (reverse and arg.requires_grad))
        )
        if not wanted:
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & after_autograd, *args)
        wide = formula.widened(args, wanted)
        # In reverse mode too the gradient has a tangent of its own.
        both = reverse and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
        asked = formula.asked(wide if both else args)
        with enable_single_level_autograd_function():
            results = Level.apply(keyset, asked, *wide)  # type: ignore[attr-defined]
        return formula.narrowed(args, wide, results)

    lib.impl(op._schema.name.split("::")[1], kernel, "Autograd", with_keyset=True)


def _primal(arg: Any) -> Any:
    if isinstance(arg, Tensor) and arg.is_floating_point():
        return forward_ad.unpack_dual(arg).primal
    return arg


def _saved(ctx: Any) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
    saved, args = ctx.saved_tensors, list(ctx.args)
    for i, value in zip(ctx.tensors, saved, strict=False):
        args[i] = value
    return tuple(args), tuple(saved[len(ctx.tensors) :])


class OfPair:
    """The derivatives of an op of samples r and prototypes g whose results hold both gradients.

    Args:
        hvp_op: Its Hessian-vector product, `cgm_fast::<op>_hvp`.
        flags: The first of its two arguments that say which gradients are wanted.
        assignment: Which result that is; the op's argument before the third is replaced by it.
        latents: Which result moves with r, if one does.
        gradients: The first of the two results that are gradients.
        constant: Results that have no derivative.
    """

    def __init__(
        self, hvp_op: Any, flags: int, assignment: int, latents: int | None, gradients: int,
        constant: tuple[int, ...],
    ) -> None:  # fmt: skip
        self.op, self.flags, self.assignment = hvp_op, flags, assignment
        self.latents, self.gradients, self.constant = latents, gradients, constant

    def widened(self, args: tuple[Any, ...], wanted: frozenset[int]) -> tuple[Any, ...]:
        """Gradients that are wanted, and those asked for."""
        f = self.flags
        return (*args[:f], args[f] or 0 in wanted, args[f + 1] or 1 in wanted, *args[f + 2 :])

    def narrowed(
        self, args: tuple[Any, ...], wide: tuple[Any, ...], results: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Empty what was not asked for."""
        kept = zip(results[self.gradients :], args[self.flags : self.flags + 2], strict=True)
        gradients = (value if ask else value.new_empty(0) for value, ask in kept)
        return (*results[: self.gradients], *gradients)

    def asked(self, args: tuple[Any, ...]) -> tuple[bool, ...]:
        """All but constants, and gradients that are not."""
        of_values = (i not in self.constant for i in range(self.gradients))
        return (*of_values, *map(bool, args[self.flags : self.flags + 2]))

    def backward(
        self,
        args: tuple[Any, ...],
        results: tuple[Tensor, ...],
        cotangents: Tensors,
        wanted: frozenset[int],
    ) -> dict[int, Tensor | None]:
        """The gradients scaled, the Hessian-vector product, and what reached the latents."""
        if wanted - {0, 1}:
            raise RuntimeError(f"{self.op._name} has no derivative in its constants; detach() them")
        of_gradients = cotangents[self.gradients :]
        parts: list[list[Tensor]] = [[], []]
        for i in (0, 1):
            if cotangents[0] is not None and i in wanted:
                parts[i].append(cotangents[0] * results[self.gradients + i])
        if any(value is not None for value in of_gradients):
            for part, value in zip(parts, self._product(args, results, of_gradients), strict=True):
                part.append(value)
        if self.latents is not None:
            of_latents = cotangents[self.latents]
            parts[0] += [] if of_latents is None else [of_latents]
        return {i: sum(parts[i][1:], parts[i][0]) for i in (0, 1) if parts[i] and i in wanted}

    def along(
        self,
        args: tuple[Any, ...],
        results: tuple[Tensor, ...],
        tangents: dict[int, Tensor],
        asked: tuple[bool, ...],
    ) -> Tensors:
        """The loss by its gradients, the latents with r, the gradients by the Hessian."""
        if tangents.keys() - {0, 1}:
            raise NotImplementedError(f"{self.op._name} has no derivative in its constants")
        out: list[Tensor | None] = [None] * len(results)
        given = tangents.get(0), tangents.get(1)
        terms = [
            (results[self.gradients + i] * t).sum() for i, t in enumerate(given) if t is not None
        ]
        out[0] = sum(terms[1:], terms[0]) if terms else None
        if self.latents is not None:
            out[self.latents] = given[0]
        if terms and any(asked[self.gradients :]):
            product = self._product(args, results, given)
            for i, value in enumerate(product, self.gradients):
                out[i] = value if asked[i] else None
        return tuple(out)

    def _product(
        self, args: tuple[Any, ...], results: tuple[Tensor, ...], vector: Tensors
    ) -> tuple[Tensor, Tensor]:
        full = (
            torch.zeros_like(like, dtype=results[0].dtype) if t is None else t.to(results[0].dtype)
            for like, t in zip(args[:2], vector, strict=True)
        )
        assignment = results[self.assignment]
        return self.op(*args[:2], assignment, *args[3 : self.flags], *full, args[-1])


class OfProduct:
    """The derivatives of a Hessian-vector product: itself, for it is linear and symmetric.

    Args:
        op: `cgm_fast::<op>_hvp`.
        tangents: The first of the arguments that are vectors; as many as there are results. On
            those before them the Hessian depends: a derivative in one is a third.
    """

    def __init__(self, op: Any, tangents: int) -> None:
        self.op, self.tangents = op, tangents

    def widened(self, args: tuple[Any, ...], wanted: frozenset[int]) -> tuple[Any, ...]:
        """The same: the product holds nothing that is needed."""
        return args

    def narrowed(
        self, args: tuple[Any, ...], wide: tuple[Any, ...], results: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """The same."""
        return results

    def asked(self, args: tuple[Any, ...]) -> tuple[bool, ...]:
        """Both parts."""
        return True, True

    def backward(
        self,
        args: tuple[Any, ...],
        results: tuple[Tensor, ...],
        cotangents: Tensors,
        wanted: frozenset[int],
    ) -> dict[int, Tensor | None]:
        """The product with what came from above."""
        if any(i < self.tangents for i in wanted):
            raise RuntimeError(THIRD)
        return dict(enumerate(self.product(args, results, cotangents), self.tangents))

    def along(
        self,
        args: tuple[Any, ...],
        results: tuple[Tensor, ...],
        tangents: dict[int, Tensor],
        asked: tuple[bool, ...],
    ) -> Tensors:
        """The product with the tangents' tangents."""
        if any(i < self.tangents for i in tangents):
            raise NotImplementedError(THIRD)
        vectors = tuple(tangents.get(self.tangents + i) for i in range(len(results)))
        return tuple(self.product(args, results, vectors))

    def product(
        self, args: tuple[Any, ...], results: tuple[Tensor, ...], vectors: Tensors
    ) -> tuple[Tensor, ...]:
        """The op with other vectors, zeros where there is none."""
        full = (
            torch.zeros_like(like) if t is None else t
            for like, t in zip(results, vectors, strict=True)
        )
        return self.op(*args[: self.tangents], *full, args[-1])


def _like(value: Any, derivative: Tensor | None) -> Tensor | None:
    return None if derivative is None else derivative.to(value.dtype)


def map_items(function: str, rule: Callable[..., Any] | None = None) -> None:
    """Register an op's rule for vmap; without one of its own, item after item."""
    op, lib = registered(function)

    def one_by_one(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        def item(i: int) -> list[Any]:
            return [
                arg.select(dim, i) if isinstance(dim, int) else arg
                for arg, dim in zip(args, in_dims, strict=True)
            ]

        items = [op(*item(i)) for i in range(info.batch_size)]
        return tuple(torch.stack(parts) for parts in zip(*items, strict=True)), (0,) * len(items[0])

    library.register_vmap(op._name, rule or one_by_one, lib=lib)
