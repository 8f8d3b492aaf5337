"""A warning where the kernel cannot tell the rows apart: all k near 1, or all near 0.

With a bandwidth far from the distances in the data, as on data that nobody has scaled, MMD² is a
constant and its gradient nothing. A few rows of the first calls show it.
"""

from __future__ import annotations

import math
import sys
import warnings

import torch
from torch import Tensor

from cgm_fast.ops.forks import forked
from cgm_fast.ops.watching import bare, readable, transforms

FLAT, ZERO = 0.999, 0.001
"""Kernel values beyond which it is said, where all are: all above the one or below the other."""
ROWS, LEAST = 64, 8
"""Rows of each sample that are looked at; of both together, rows without which nothing is said."""


class BandwidthWarning(UserWarning):
    """The Gaussian kernel is flat or zero on the data, and MMD² says nothing about it."""


class Seen:
    """How often a bandwidth has been met with so many features."""

    def __init__(self) -> None:
        self.calls = 0
        self.warned = False

    def due(self) -> bool:
        """Count a call. True for the first, second, fourth, eighth, ...: data may change."""
        self.calls = calls = self.calls + 1
        return not calls & (calls - 1)


_seen: dict[tuple[tuple[float, ...], int], Seen] = {}


def seen_before(variances: tuple[float, ...], d: int) -> Seen:
    """What is known of these variances σ² with d features."""
    if len(_seen) > 4096:  # a bandwidth of its own for every batch
        _seen.clear()
    return _seen.setdefault((variances, d), Seen())


def warn_if_blind(x: Tensor, y: Tensor, variances: tuple[float, ...], seen: Seen) -> None:
    """Warn once if every kernel is flat or zero on all pairs of some of the rows.

    Only where the values can be read without waiting for a device, not under a transform, and not
    in a forked process, where torch would wait for threads that did not come along.
    """
    if seen.warned or transforms() or not (readable(x) and readable(y)) or forked():
        return
    rows = []
    for sample in (x, y):
        sample = bare(sample).detach()
        sample = sample[0] if sample.dim() == 3 else sample
        step = -(-len(sample) // ROWS)
        rows.append(sample[::step].to(torch.float64))
    together = torch.cat(rows)
    if len(together) < LEAST:
        return
    squares = torch.pdist(together).square()
    squares = squares[squares > 0]  # of equal rows every kernel says the same
    if not squares.numel():
        return
    low, high = squares.min().item(), squares.max().item()
    if all(high < -2 * h * math.log(FLAT) for h in variances):
        what = f"flat (k > {FLAT})"
    elif all(low > -2 * h * math.log(ZERO) for h in variances):
        what = f"zero (k < {ZERO})"
    else:
        return
    seen.warned = True
    sigma = " and ".join(f"{math.sqrt(h):.3g}" for h in variances)
    median = squares.median().sqrt().item()
    warnings.warn(
        f"the Gaussian kernel is {what} on all rows looked at, so MMD² has next to no gradient: "
        f"bandwidth {sigma} beside a median distance of {median:.3g}; scale the data to unit "
        f"variance, or pass bandwidth={median:.3g}",
        BandwidthWarning,
        stacklevel=_outside(),
    )


def _outside() -> int:
    """How far up the stack the first caller is that belongs neither to us nor to torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        name = frame.f_globals.get("__name__", "")
        if name.split(".")[0] not in ("cgm_fast", "torch"):
            break
        level, frame = level + 1, frame.f_back
    return level
