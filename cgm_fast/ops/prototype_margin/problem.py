"""What `cgm_fast::prototype_margin_fwd` and `_hvp` are given, as values."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Problem(NamedTuple):
    """L = scale Σ_i [d_{i,k_i} + negative_scale Σ_{k ≠ k_i} max(0, margin − d_ik)].

    With d_ik = |r_i − g_k|².
    """

    r: Tensor
    """[B, d] samples, any floating dtype and strides."""
    g: Tensor
    """[K, d] prototypes."""
    labels: Tensor | None
    """[B] int64, k_i; None for the nearest prototype."""
    margin: float
    """On the squared distance."""
    negative_scale: float
    scale: float
    """1/B for a mean."""


class Wanted(NamedTuple):
    """Which gradients."""

    r: bool
    g: bool


class Tangent(NamedTuple):
    """A direction; None is zero."""

    r: Tensor | None
    """[B, d]"""
    g: Tensor | None
    """[K, d]"""


class Value(NamedTuple):
    """What `fwd` returns; None for what is not wanted."""

    loss: Tensor
    """[]"""
    assignment: Tensor
    """[B] int64, k_i."""
    r: Tensor | None
    """[B, d], the gradient of the loss."""
    g: Tensor | None
    """[K, d]"""


class Product(NamedTuple):
    """What `hvp` returns, the Hessian times a tangent; the problem's labels are the assignment."""

    r: Tensor
    """[B, d]"""
    g: Tensor
    """[K, d]"""


NOTHING = Wanted(False, False)
