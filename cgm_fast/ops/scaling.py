"""The steps that every backward pass here shares: scale what was saved, and end differentiation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def scale_each(
    factor: Tensor | None,
    inputs: tuple[Tensor, Tensor],
    values: tuple[Tensor, Tensor],
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, ...]:
    """factor * value in its input's dtype, or None where no derivative is wanted; None is 0."""
    if factor is None:
        return None, None
    return tuple(
        (factor * value).to(like.dtype) if need else None
        for like, value, need in zip(inputs, values, needs, strict=True)
    )


def last_derivative(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a backward pass whose result cannot be differentiated: to try raises RuntimeError.

    `once_differentiable` does not do: it cuts the result off from the inputs, so that
    `torch.autograd.grad` passes its error by wherever another path leads to them.
    """

    @functools.wraps(backward)
    def wrapped(ctx: Any, *tangents: Any) -> Any:
        with torch.no_grad():
            out = backward(ctx, *tangents)
        if not torch.is_grad_enabled():
            return out
        return _Last.apply(len(out), *out, *ctx.saved_tensors, *tangents)

    return wrapped


class _Last(torch.autograd.Function):
    """(count, values..., what they depend on...) -> the values, not differentiable further."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """Pass on the first `count` tensors."""
        return tuple(None if t is None else t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Refuse."""
        raise RuntimeError("third derivatives are not implemented in cgm_fast")
