"""What the derivatives of every op have in common, and what an op adds to it.

An op's forward pass returns values, the first of them the loss, and then the gradient of the loss
in each of its variables. The gradient is differentiated by the Hessian-vector product `hvp`, which
is linear and symmetric, and so its own derivative. A third derivative there is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from cgm_fast.ops.registration import Op

THIRD = "third derivatives are not implemented in cgm_fast"

Tensors = Sequence[Tensor | None]
Run = Callable[..., Any]


class Formula:
    """An op's derivatives; `results` are those of its forward pass.

    Derivatives in variables come "in parts" where only some are wanted: as the results have them.
    """

    fwd: Op
    hvp: Op
    variables: int
    """How many fields of the problem, its first ones, can have a gradient."""
    values: int
    """How many results are values; the others are parts of the gradient."""
    constant: tuple[int, ...] = ()
    """Values that have no derivative."""

    # What an op adds.

    def wanted(self, problem: Any, needs: Sequence[bool]) -> Any:
        """The record that asks for the gradient in some variables."""
        raise NotImplementedError

    def everything(self, problem: Any, parts: Sequence[bool]) -> Any:
        """The record that asks for some parts of the gradient, whole."""
        return self.wanted(problem, parts)

    def both(self, wanted: Any, other: Any) -> Any:
        """A record that asks for all that two of them ask for."""
        raise NotImplementedError

    def has(self, wanted: Any) -> tuple[bool, ...]:
        """Of which variables a record asks for the gradient."""
        raise NotImplementedError

    def split(
        self, inputs: Tensors, static: Any, wanted: Any, parts: list[Tensor | None]
    ) -> list[Tensor | None]:
        """Derivatives in parts as those in the variables.

        Args:
            inputs: The problem's tensors.
            static: Its other fields.
            wanted: What the parts are of.
            parts: One for each part of the gradient.
        """
        return parts

    def tangent(self, problem: Any, wanted: Any, parts: Tensors) -> Any:
        """A tangent of vectors over the gradient in parts."""
        return self.hvp.records[1](*parts)

    def gathered(self, problem: Any, tangents: Tensors) -> Any:
        """A tangent of tangents of the variables."""
        return self.hvp.records[1](*tangents)

    def narrowed(self, wanted: Any, wide: Any, gradients: Tensors) -> list[Tensor | None]:
        """Of gradients that a wide record asked for, those that another asks for."""
        return [v if yes else None for v, yes in zip(gradients, self.has(wanted), strict=True)]

    def second(self, problem: Any, results: Any) -> Any:
        """The problem as the Hessian-vector product takes it."""
        return problem

    def scaled(self, factor: Tensor, gradients: Tensors) -> list[Tensor | None]:
        """The gradients times a number [], or one for each item of a batch [b]."""
        return [None if value is None else factor * value for value in gradients]

    def moved(self, tangents: Tensors) -> dict[int, Tensor | None]:
        """Tangents of values besides the loss, of those of the variables."""
        return {}

    def reached(self, cotangents: Tensors, count: int) -> list[Tensor | None]:
        """What values besides the loss give to the parts of the gradient, of their cotangents."""
        return [None] * count

    # What they have in common.

    def backward(
        self, problem: Any, wanted: Any, backend: str, results: Any, cotangents: Tensors, hvp: Run
    ) -> list[Tensor | None]:
        """Derivatives in the variables, in parts: the gradient scaled by the loss's cotangent, the
        Hessian's product with those of the gradient, and what reached other values."""
        of_loss = cotangents[0]
        gradient = results[self.values :]
        parts: list[Tensor | None] = [None] * len(gradient)
        if of_loss is not None:
            parts = self.scaled(of_loss, gradient)
        for other in cotangents[1:]:
            if other is not None:
                break
        else:  # the usual call, and small ones are all overhead
            return parts
        vectors = cotangents[self.values :]
        if any(vector is not None for vector in vectors):
            tangent = self.tangent(problem, wanted, vectors)
            product = hvp(self.second(problem, results), tangent, wanted, backend)
            parts = [add(*pair) for pair in zip(parts, product, strict=True)]
        reached = self.reached(cotangents[: self.values], len(parts))
        return [add(*pair) for pair in zip(parts, reached, strict=True)]

    def along(
        self,
        problem: Any,
        wanted: Any,
        backend: str,
        results: Any,
        tangents: Tensors,
        hvp: Run | None,
    ) -> list[Tensor | None]:
        """Derivatives of the results along tangents of the variables, in forward mode: of values
        alone where no `hvp` is given."""
        tangent = self.gathered(problem, tangents)
        out: list[Tensor | None] = [None] * len(results)
        out[0] = self.dot(results[self.values :], wanted, tangent)
        for i, value in self.moved(tangents).items():
            out[i] = value
        if hvp is not None and any(value is not None for value in tangent):
            out[self.values :] = hvp(self.second(problem, results), tangent, wanted, backend)
        return out

    def dot(self, gradients: Tensors, wanted: Any, tangent: Tensors) -> Tensor | None:
        """The derivative of the loss along a tangent; None for zero."""
        terms = [
            (gradient * value).sum()
            for gradient, value in zip(gradients, tangent, strict=True)
            if gradient is not None and value is not None
        ]
        return sum(terms[1:], terms[0]) if terms else None


class OfPair(Formula):
    """Of an op of samples r and prototypes g, the first two fields of its problem."""

    variables = 2
    assignment: int
    """Which result that is; labels, the problem's third field, are replaced by it."""

    def wanted(self, problem: Any, needs: Sequence[bool]) -> Any:
        """Both gradients or one."""
        return self.fwd.records[1](needs[0], needs[1])

    def both(self, wanted: Any, other: Any) -> Any:
        """Either."""
        return type(wanted)(*(a or b for a, b in zip(wanted, other, strict=True)))

    def has(self, wanted: Any) -> tuple[bool, ...]:
        """Of r and of g."""
        return tuple(map(bool, wanted))

    def second(self, problem: Any, results: Any) -> Any:
        """With the assignment in the labels' place."""
        return problem._replace(labels=results[self.assignment])


def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two tensors; None is zero."""
    return b if a is None else a if b is None else a + b
