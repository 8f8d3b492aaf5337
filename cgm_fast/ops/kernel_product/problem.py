"""What `cgm_fast::kernel_product_fwd` is given, as values: see README.md beside this file.

A batch [b] may be missing, from all tensors together. There are n rows, m columns, d features, p
values of a row or a column, and s bandwidths.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Problem(NamedTuple):
    """Q = Σ_ij k(x_i, y_j) ⟨u_i, v_j⟩, k = Σ_s ω_s φ_s: a bilinear form of u and v."""

    x: Tensor
    """[b, n, d], rows; any floating dtype and strides."""
    y: Tensor
    """[b, m, d], columns; of the same dtype, any strides."""
    u: Tensor | None
    """[b, n, p]; None where only the product is wanted, which does not depend on it."""
    v: Tensor
    """[b, m, p]; u and v of any floating dtypes and strides."""
    variance: Tensor | None
    """[b, s], h = σ² in squared units of x; None for `variances`, the same for all items."""
    variances: tuple[float, ...]
    """[s]; not read where `variance` is given."""
    kernel_weights: tuple[float, ...]
    """[s], ω."""
    kernel: str
    """φ, a name in ops/mmd/kernels.py."""


class Wanted(NamedTuple):
    """Which derivatives of Q: those of the rows' side. For the columns' side exchange the sides."""

    product: bool
    x: bool
    variance: bool


class Value(NamedTuple):
    """What `fwd` returns, where it is wanted, else None; float32, or float64 for float64 x."""

    product: Tensor | None
    """[b, n, p], K V: the derivative in u."""
    x: Tensor | None
    """[b, n, d]"""
    variance: Tensor | None
    """[b, s]"""


# Written out, for Dynamo of torch 2.6 follows no `_replace`.


def exchanged(problem: Problem) -> Problem:
    """The same Q with rows as columns and columns as rows."""
    x, y, u, v, variance, variances, kernel_weights, kernel = problem
    assert u is not None
    return Problem(y, x, v, u, variance, variances, kernel_weights, kernel)


def with_values(problem: Problem, u: Tensor | None, v: Tensor) -> Problem:
    """Of other values."""
    x, y, _, _, variance, variances, kernel_weights, kernel = problem
    return Problem(x, y, u, v, variance, variances, kernel_weights, kernel)
