"""Radial kernels: each is one function of t = |a − b|² / 2σ², here in plain PyTorch.

To add a family is described in CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Radial = Callable[[Tensor, int], tuple[Tensor, ...]]


class Family(NamedTuple):
    """A kernel k(a, b) = φ(t)."""

    radial: Radial
    """(t, order) -> φ(t) − φ(0), φ(t), φ'(t), a tensor of its own, and for order 2 φ''(t); t ≥ 0.
    At t = 0, where φ' or φ'' may be infinite, it is 0: the factors (a − b) beside it are."""
    at_zero: float
    """φ(0)."""
    vanishes: bool
    """Whether φ goes to 0: then small sums of it are added up as they are (README.md)."""
    order: int
    """How often k is differentiable in a and b where they coincide, up to 2."""


def _gaussian(t: Tensor, order: int) -> tuple[Tensor, ...]:
    e = -t
    whole = torch.exp(e)
    return e.expm1_(), whole, -whole, whole


def _laplacian(t: Tensor, order: int) -> tuple[Tensor, ...]:
    s = torch.sqrt(2 * t)
    whole = torch.exp(-s)
    return torch.expm1(-s), whole, _over(-whole, s)


def _matern32(t: Tensor, order: int) -> tuple[Tensor, ...]:
    s = torch.sqrt(6 * t)
    decay = torch.exp(-s)
    # The two terms of (e^-s - 1) + s e^-s cancel where s is small.
    series = 0.125 - s * (1 / 30 - s * (1 / 144 - s / 840))
    series = s * s * (-0.5 + s * (1 / 3 - s * series))
    less = torch.where(s < _small(t), series, torch.expm1(-s) + s * decay)
    return less, (1 + s) * decay, -3 * decay, _over(9 * decay, s)


def _matern52(t: Tensor, order: int) -> tuple[Tensor, ...]:
    s = torch.sqrt(10 * t)
    decay, square = torch.exp(-s), 10 * t
    series = 1 / 45 - s * (1 / 144 - s * (1 / 630 - s / 3456))
    series = square * (-1 / 6 + square * (1 / 24 - s * series))
    less = torch.where(s < _small(t), series, torch.expm1(-s) + (s + square / 3) * decay)
    slope = (-5 / 3) * (1 + s) * decay
    return less, (1 + s + square / 3) * decay, slope, (25 / 3) * decay


def _rational(t: Tensor, order: int) -> tuple[Tensor, ...]:
    whole = 1 / (1 + t)
    square = whole * whole
    return -t * whole, whole, -square, 2 * square * whole


def _imq(t: Tensor, order: int) -> tuple[Tensor, ...]:
    inverse = 1 / (1 + 2 * t)
    whole = torch.sqrt(inverse)
    return -2 * t * inverse / (1 + whole), whole, -whole * inverse, 3 * whole * inverse**2


def _energy(t: Tensor, order: int) -> tuple[Tensor, ...]:
    s = torch.sqrt(2 * t)
    return -s, -s, _over(torch.full_like(s, -1.0), s)


def _over(a: Tensor, s: Tensor) -> Tensor:
    """a / s, and 0 where s is: what multiplies it vanishes there."""
    return torch.where(s > 0, a / s, 0.0)


def _small(t: Tensor) -> float:
    """Where a series has less error than a difference of terms that cancel."""
    return 0.3 if t.dtype == torch.float32 else 0.01


_MATERN12 = Family(_laplacian, 1.0, True, 1)  # exp(-r / σ)

FAMILIES = {
    "gaussian": Family(_gaussian, 1.0, True, 2),  # exp(-r² / 2σ²)
    "laplacian": _MATERN12,
    "matern12": _MATERN12,
    "matern32": Family(_matern32, 1.0, True, 2),  # (1 + √3 r / σ) exp(-√3 r / σ)
    "matern52": Family(_matern52, 1.0, True, 2),  # (1 + √5 r / σ + 5 r² / 3σ²) exp(-√5 r / σ)
    "rational_quadratic": Family(_rational, 1.0, True, 2),  # 1 / (1 + r² / 2σ²)
    "imq": Family(_imq, 1.0, True, 2),  # 1 / √(1 + r² / σ²)
    "energy": Family(_energy, 0.0, False, 1),  # -r / σ
}
"""By name; r = |a − b|. The Gaussian is what the other implementations are fastest at."""
