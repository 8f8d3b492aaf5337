"""What several implementations of MMD² share: a batch of one, and sums of coefficients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor


def batched(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """Give inputs without a batch one of size 1, and take it from the results."""

    @functools.wraps(function)
    def wrapped(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        if x.dim() == 3:
            return function(x, *args)
        args = tuple(arg.unsqueeze(0) if isinstance(arg, Tensor) else arg for arg in args)
        out = function(x.unsqueeze(0), *args)
        return tuple(value if value.shape == (0,) else value.squeeze(0) for value in out)

    return wrapped


class Coefficients(NamedTuple):
    """Sums of the coefficients c_ij over pairs i ≠ j, where weights w come without their scale.

    Numbers where no rows have weights of their own, else tensors [b]; in float64.
    """

    x: float | Tensor
    """(Σw)² − Σw² over x, what ordered pairs within it weigh."""
    y: float | Tensor
    across: float | Tensor
    """Twice Σw over x times Σw over y."""
    mass_x: float | Tensor
    """Σw over x."""
    mass_y: float | Tensor
    x_scale: float
    y_scale: float
    cross: float | Tensor
    unbiased: bool
    rounding: float
    """What the scaled weights may be off, relative to them."""

    @classmethod
    def of(
        cls,
        n: int,
        m: int,
        x_weights: Tensor | None,
        y_weights: Tensor | None,
        cross: Tensor | None,
        x_scale: float,
        y_scale: float,
        cross_scale: float,
        wide: torch.dtype = torch.float64,
    ) -> Coefficients:
        """Of the op's arguments, with a batch."""
        mass_x, of_x = _masses(n, x_weights, wide)
        mass_y, of_y = _masses(m, y_weights, wide)
        given = x_weights if x_weights is not None else y_weights
        return cls(
            of_x, of_y, 2 * (mass_x * mass_y), mass_x, mass_y, x_scale, y_scale,
            cross_scale if cross is None else cross_scale * cross.to(wide),
            cross is not None or cross_scale != 1,
            1e-14 if given is None else 16 * torch.finfo(given.dtype).eps,
        )  # fmt: skip

    def add(self, x: Any, y: Any, across: Any, sign: float = -1) -> Any:
        """Σ c_ij of some pairs, given their Σ w_i w_j; with sign 1, the sum of |c_ij|."""
        within = self.x_scale**2 * x + self.y_scale**2 * y
        return within + sign * (self.cross * (self.x_scale * self.y_scale)) * across

    def constant(self, near: Iterable[Tensor], far: Iterable[Tensor] | None = None) -> Tensor:
        """Σ c_ij over the near pairs less that over all, given Σ w_i w_j of (x, y, across).

        This makes of sums in which 1 was subtracted for near pairs only those of k - 1. Whichever
        of near and far pairs weigh less are added up: then the result is exact where all are near,
        and where none is.

        Args:
            near: Over the near pairs.
            far: Over the far ones; None, without row weights: what is left of all pairs. Of given
                weights that would have the rounding of all, however little is left.
        """
        x, y, across = near
        far_x, far_y, far_across = (
            (self.x - x, self.y - y, self.across - across) if far is None else far
        )
        near_weigh_less = self.add(x, y, across, 1) < self.add(far_x, far_y, far_across, 1)
        of_near, of_far = self.add(x, y, across), self.add(far_x, far_y, far_across)
        return torch.where(near_weigh_less, of_near - self.all(), -of_far)

    def all(self) -> float | Tensor:
        """Σ c_ij over all pairs i ≠ j, (Σv - Σw)² for the unbiased estimator.

        There terms of size 1 cancel, and the scaled weights' rounding would be left.
        """
        every = self.add(self.x, self.y, self.across)
        if not self.unbiased:
            return every
        p, q = self.x_scale * self.x**0.5, self.y_scale * self.y**0.5
        between = 0.5 * self.cross * (self.x_scale * self.y_scale) * self.across
        cancel = abs(between - p * q) <= self.rounding * (p * q)  # the estimator's own factor
        difference = _where(abs(p - q) <= self.rounding * (p + q), 0.0, p - q)
        return _where(cancel, difference * difference, every)


def _masses(
    n: int, weights: Tensor | None, wide: torch.dtype
) -> tuple[float | Tensor, float | Tensor]:
    """Σw and (Σw)² - Σw² of a sample."""
    if weights is None:
        return float(n), float(n) * float(n - 1)
    weights = weights.to(wide)
    mass = weights.sum(-1)
    return mass, mass * mass - (weights * weights).sum(-1)


def _where(condition: Any, a: Any, b: Any) -> Any:
    """Either of two numbers or tensors."""
    return torch.where(condition, a, b) if isinstance(condition, Tensor) else a if condition else b
