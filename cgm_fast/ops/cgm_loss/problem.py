"""What `cgm_fast::cgm_loss_fwd` and `_hvp` are given, as values."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from cgm_fast.ops.prototype_margin.problem import Product, Tangent, Wanted

__all__ = ["NOTHING", "Problem", "Product", "Tangent", "Value", "Wanted"]


class Problem(NamedTuple):
    """L = mmd_weight MMD²(z, z') + margin_weight L_D(r, g).

    z_i = r_i + σ e_i, z'_i = g_{k_i} + τ e'_i. MMD² is the biased one, L_D a mean of the
    prototype margin loss.
    """

    r: Tensor
    """[B, d] encoder means, any floating dtype and strides."""
    g: Tensor
    """[K, d] prototypes."""
    labels: Tensor | None
    """[B] int64, k_i; None for the nearest prototype."""
    noise: Tensor
    """[2, B, d], e and e'."""
    sigma: float
    """σ"""
    prior_sigma: float
    """τ"""
    mmd_weight: float
    margin_weight: float
    margin: float
    """On the squared distance."""
    negative_scale: float
    variances: tuple[float, ...]
    """[s], of the kernel, squared units of z."""
    kernel_weights: tuple[float, ...]
    """[s]"""
    kernel: str
    """A name in ops/mmd/kernels.py."""
    detach_prior: bool
    """Whether the MMD has no gradient in g."""


class Value(NamedTuple):
    """What `fwd` returns; None for what is not wanted."""

    loss: Tensor
    """[]"""
    terms: Tensor
    """[2], MMD² and L_D, without their weights."""
    assignment: Tensor
    """[B] int64, k_i."""
    z: Tensor
    """[B, d], in r's dtype."""
    r: Tensor | None
    """[B, d], the gradient of the loss."""
    g: Tensor | None
    """[K, d]"""


NOTHING = Wanted(False, False)
