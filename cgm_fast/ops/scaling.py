"""The step that every backward pass here shares: scale what the forward pass saved."""

from __future__ import annotations

from torch import Tensor


def scale_each(
    factor: Tensor,
    inputs: tuple[Tensor, Tensor],
    values: tuple[Tensor, Tensor],
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, ...]:
    """factor * value in its input's dtype, or None where no derivative is wanted."""
    return tuple(
        (factor * value).to(like.dtype) if need else None
        for like, value, need in zip(inputs, values, needs, strict=True)
    )
