"""What `cgm_fast::mmd_fwd` and `mmd_hvp` are given, as values: see README.md beside this file.

A batch [b] may be missing, from all tensors together. Rows z = [x; y] are M in G groups, one group
after another, s are bandwidths.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """L = Σ_{i ≠ j} Γ[g_i, g_j] w_i w_j (k(z_i, z_j) − k(0)), k = Σ_s ω_s φ_s."""

    x: Tensor
    """[b, n, d], the first rows of z, or all of them; any floating dtype and strides."""
    y: Tensor | None
    """[b, M - n, d], the others: where two samples are two tensors, none is copied."""
    weights: Tensor | None
    """[b, M], w; None for ones."""
    relation: Tensor | None
    """[b, G, G] or [G, G], Γ, symmetric; None for `relations`."""
    variance: Tensor | None
    """[b, s], h = σ² in squared units of z; None for `variances`, the same for all items."""
    sizes: tuple[int, ...]
    """[G], rows of each group; their sum is M."""
    relations: tuple[float, ...]
    """[G · G], Γ row by row; not read where `relation` is given."""
    variances: tuple[float, ...]
    """[s]; not read where `variance` is given."""
    kernel_weights: tuple[float, ...]
    """[s], ω."""
    kernel: str
    """φ, a name in kernels.py."""
    nonnegative: bool
    """Whether L is known not to be negative, so that a negative one is rounding, and made 0."""


class Wanted(NamedTuple):
    """Which derivatives. Of rows those of a range, for a group may be a constant."""

    row_begin: int
    row_end: int
    """Rows of z; empty: none."""
    weights: bool
    relation: bool
    variance: bool


class Tangent(NamedTuple):
    """A direction in the space of a problem's tensors; None is zero."""

    z: Tensor | None
    """[b, M, d]"""
    weights: Tensor | None
    """[b, M]"""
    relation: Tensor | None
    """[b, G, G], symmetric."""
    variance: Tensor | None
    """[b, s]"""


class Value(NamedTuple):
    """What `fwd` returns: L, and its derivatives where they are wanted, else None."""

    loss: Tensor
    """[b]"""
    z: Tensor | None
    """[b, row_end − row_begin, d]"""
    weights: Tensor | None
    """[b, M]"""
    relation: Tensor | None
    """[b, G, G] float64: the block sums S[g, g'] = Σ_{i ≠ j} w_i w_j (k(z_i, z_j) − k(0)) over i of
    g and j of g', which cost nothing."""
    variance: Tensor | None
    """[b, s]"""


class Product(NamedTuple):
    """What `hvp` returns, the Hessian of L times a tangent; shapes are those of `Value`."""

    z: Tensor | None
    weights: Tensor | None
    relation: Tensor | None
    """[b, G, G] float64"""
    variance: Tensor | None


def stacked(problem: Problem) -> Tensor:
    """z [b, M, d]: a copy, where x and y are two."""
    return problem.x if problem.y is None else torch.cat((problem.x, problem.y), -2)


NOTHING = Wanted(0, 0, False, False, False)
