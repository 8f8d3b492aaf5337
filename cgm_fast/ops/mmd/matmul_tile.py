"""The kernel of a tile of pairs from their squared distances, in place: see matmul.py."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cgm_fast.ops.gpu import constants
from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.ops.mmd.problem import Wanted

# (e^x − 1) / x for −ln 2 ≤ x ≤ 0: minimax, with a relative error of 2e-10.
_SERIES = (
    0.00014660444809739949, 0.0013416019570986631, 0.00831126931652454, 0.04166130364508724,
    0.16666603947526681, 0.49999997221828446, 0.9999999997965701,
)  # fmt: skip


class TileOfPairs(NamedTuple):
    """[b, c, w] each; what does not count, j ≤ i, is 0."""

    small: Tensor
    """k − k(0) for near pairs, k for the others; of several bandwidths the weighted sum."""
    near: list[Tensor]
    """Of each bandwidth 1 for near pairs, 0 for others; booleans, or numbers."""
    slope: Tensor
    """−2 h dk/du, with h the first bandwidth's."""
    less: Tensor
    """k − k(0) for all pairs; not to be used unless asked for."""
    by_h: list[Tensor]
    """h dk/dh; empty unless asked for."""


class Kernel:
    """A kernel's bandwidths, and buffers for its tiles."""

    def __init__(
        self, name: str, ratios: list[float | Tensor], weights: tuple[float, ...], wanted: Wanted,
    ) -> None:  # fmt: skip
        """Of σ² the first is to each as `ratios` say: numbers, or [b, 1, 1]."""
        self.family, self.ratios = FAMILIES[name], ratios
        self.weights, self.wanted = weights, wanted
        self.is_gaussian = name == "gaussian"
        self.values_alone = self.is_gaussian and not wanted.weights and not wanted.variance
        self.plain = self.values_alone and weights == (1.0,)
        self.buffers: list[Tensor] = []

    def like(self, tile: Tensor, number: int) -> list[Tensor]:
        """Buffers of the tile's shape; the same ones at every call."""
        size = tile.numel()
        if len(self.buffers) < number or self.buffers[0].numel() < size:
            self.buffers = [tile.new_empty(size) for _ in range(number)]
        return [buffer[:size].view(tile.shape) for buffer in self.buffers[:number]]

    def of(self, t: Tensor, batch: slice, own: bool) -> TileOfPairs:
        """Of u / 2h [b, c, w], which is overwritten; if `own`, the first columns are the rows."""
        if self.plain and t.dtype == torch.float32:
            whole, near, less = self.like(t, 3)
            small = _gaussian(t.neg_(), whole, near, less)
            near, small, whole = (_beyond(value, own) for value in (near, small, whole))
            return TileOfPairs(small, [near], whole, small, [])
        if self.values_alone and t.dtype == torch.float32:
            return self._gaussians(t, batch, own)
        small, slope, less = t, t, t
        near_ones, by_h = [], []
        finite = 1e30 if t.dtype == torch.float32 else 1e300
        for s, (ratio, weight) in enumerate(zip(self.ratios, self.weights, strict=True)):
            some = ratio if isinstance(ratio, float) else ratio[batch]
            t_s = (t * some).clamp_max_(finite)
            less_s, small_s, near, slope_s = self._of_scale(t_s)
            near_ones.append(_beyond(near, own))
            small = small_s.mul(weight) if s == 0 else small.add_(small_s, alpha=weight)
            part = slope_s * (weight * some)
            slope = part if s == 0 else slope.add_(part)
            if self.wanted.weights:
                less = less_s.mul(weight) if s == 0 else less.add_(less_s, alpha=weight)
            if self.wanted.variance:
                by_h.append(_beyond(slope_s.mul(t_s).mul_(weight), own))
        if self.wanted.weights:
            less = _beyond(less, own)
        return TileOfPairs(_beyond(small, own), near_ones, _beyond(slope, own), less, by_h)

    def _gaussians(self, t: Tensor, batch: slice, own: bool) -> TileOfPairs:
        """Of several bandwidths, in buffers: fresh pages cost as much as a pass."""
        small, slope, e, whole, less, *near = self.like(t, 5 + len(self.ratios))
        for s, (ratio, weight) in enumerate(zip(self.ratios, self.weights, strict=True)):
            some = ratio if isinstance(ratio, float) else ratio[batch]
            torch.mul(t, some, out=e)
            small_s = _gaussian(e.neg_(), whole, near[s], less)
            if s == 0:
                torch.mul(small_s, weight, out=small)
                torch.mul(whole, weight * some, out=slope)
            else:
                small.add_(small_s, alpha=weight)
                slope.add_(whole.mul_(weight * some))
            _beyond(near[s], own)
        return TileOfPairs(_beyond(small, own), near, _beyond(slope, own), small, [])

    def _of_scale(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """k - k(0), the same of near pairs and k of others, which are near, and -φ', by t."""
        if self.is_gaussian and t.dtype == torch.float32:
            whole, near, less = (torch.empty_like(t) for _ in range(3))
            small = _gaussian(-t, whole, near, less)
            if self.wanted.weights:
                less = torch.lerp(whole - 1, less, near)  # exactly one of the two
            return less, small, near, whole
        less, whole, slope = self.family.radial(t, 1)[:3]
        if self.family.vanishes:
            near = less >= -0.5
            return less, torch.where(near, less, whole), near, slope.neg_()
        return less, less, torch.ones_like(less, dtype=torch.bool), slope.neg_()


def _gaussian(e: Tensor, whole: Tensor, near: Tensor, less: Tensor) -> Tensor:
    """e^x and the like for x = -t, which becomes the result: `small` of a tile.

    In passes that torch has vector code for: its `where` and `expm1` have none, and would take
    longer than a product of 256 features. `less` is right where the pair is near.
    """
    torch.exp(e, out=whole)
    if e.device.type == "cpu":
        torch.ge(e, -math.log(2), out=near)  # 1 or 0; of a NaN 0
    else:
        near.copy_(e >= -math.log(2))
    e.clamp_min_(-1)  # finite where less is not read
    series = constants(_SERIES, e.dtype, e.device)
    torch.addcmul(series[1], series[0], e, out=less)
    for term in series[2:]:
        torch.addcmul(term, less, e, out=less)
    less.mul_(e)
    small = torch.addcmul(whole, whole, near, value=-1, out=e)  # exactly whole, or 0
    return small.addcmul_(near, less)


def _beyond(value: Tensor, own: bool) -> Tensor:
    """Zero where j ≤ i, in the columns that are the tile's rows."""
    if own:
        value[..., : value.shape[-2]].triu_(1)
    return value
