"""Squared distances by matrix products in the dtype that is computed in, at the precision the user
allows; and by differences where a product would lose too much of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from cgm_fast.ops.chunks import wide_dtype
from cgm_fast.ops.gpu import tf32_allowed

_AT_ONCE = {"cpu": 1 << 20}
"""Numbers of a sample that are widened at once; elsewhere more, for each time costs launches."""
_ELSEWHERE = 1 << 22
_SMALL = 1 << 18


class Points(NamedTuple):
    """Rows about a centre, scaled so that half a squared distance over σ² is |a − b|²."""

    z: Tensor
    """[b, M, d]"""
    squares: Tensor
    """[b, M], |z|²."""

    def within(self, batch: slice, rows: slice) -> Points:
        """Some of the rows of some items."""
        return Points(self.z[batch, rows], self.squares[batch, rows])

    def double(self) -> Points:
        """In float64; squares too, and not those of float32."""
        z = self.z.double()
        return Points(z, z.square().sum(-1))


def _pieces(sample: Tensor) -> Iterator[tuple[int, Tensor]]:
    """A sample [b, n, d] by rows, and where these begin."""
    b, n, d = sample.shape
    step = max(1, _AT_ONCE.get(sample.device.type, _ELSEWHERE) // max(1, b * d))
    for begin in range(0, n, step):
        yield begin, sample[:, begin : begin + step]


def together(x: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
    """The samples of a problem; as one where a copy costs less than the launches for two."""
    if y is None:
        return (x,)
    if x.numel() + y.numel() <= _SMALL:
        return (torch.cat((x, y), 1),)
    return x, y


def mean_of(samples: tuple[Tensor, ...]) -> Tensor:
    """The mean row [b, 1, d] of samples [b, n, d], in the dtype that is computed in.

    Rounded to that, so that far from the origin a row less the mean is exact.
    """
    first = samples[0]
    total = first.new_zeros((first.shape[0], first.shape[2]), dtype=wide_dtype(first.device))
    for sample in samples:
        for _, piece in _pieces(sample):
            total += piece.sum(1, dtype=total.dtype)
    rows = sum(sample.shape[1] for sample in samples)
    return (total / rows).to(torch.promote_types(first.dtype, torch.float32)).unsqueeze(1)


def points_of(samples: tuple[Tensor, ...], centre: Tensor, scale: float | Tensor) -> Points:
    """The rows of samples, one after another, less a centre, times a number or [b, 1, 1].

    Where products take tf32 numbers, rounded to these: then products of rows are exact.
    """
    b, _, d = samples[0].shape
    rows, dtype = sum(sample.shape[1] for sample in samples), centre.dtype
    z = centre.new_empty((b, rows, d))
    squares = centre.new_empty((b, rows))
    first, round_off = 0, z.device.type == "cuda" and dtype == torch.float32 and tf32_allowed()
    for sample in samples:
        for begin, piece in _pieces(sample):
            at = slice(first + begin, first + begin + piece.shape[1])
            some = z[:, at]
            torch.sub(piece.to(dtype), centre, out=some)
            some.mul_(scale)
            if round_off:
                some.copy_(nearest_tf32(some))
            squares[:, at] = some.to(wide_dtype(z.device)).square().sum(-1)
        first += sample.shape[1]
    return Points(z, squares)


def nearest_tf32(value: Tensor) -> Tensor:
    """Float32 numbers rounded to 11 bits, ties away from zero; NaNs stay what they are."""
    bits = (value.contiguous().view(torch.int32) + 4096) & -8192
    return torch.where(value == value, bits.view(torch.float32), value)


@functools.cache
def kernels_for(device: torch.device) -> ModuleType | None:
    """Triton's kernels for distances, on a device that has them."""
    if device.type != "cuda":
        return None
    if not torch.version.hip and torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        from cgm_fast.ops.triton import distances
    except ImportError:
        return None
    return distances


def too_wide(squares: Tensor, widest: float | Tensor, d: int) -> Tensor:
    """Whether distances are not to be had by products, [] on the device.

    |a|² + |b|² − 2ab loses what |a|² has over it, the more so the more features are added up
    (csrc/cpu/tiles.h): with |z|² the largest, in exponents of 2 of the narrowest kernel.
    """
    reach = 16 / (2 + 0.5 * math.sqrt(min(d, 512)))
    if squares.device.type == "cuda" and squares.dtype == torch.float32 and tf32_allowed():
        reach = 1024.0  # an exponent off by as many roundings as tf32 has anyway
    return (squares.amax() * widest > reach * math.log(2)).any()


class Distances:
    """How squared distances of points are taken: decided once for a problem.

    Where data is too wide for products they are in float64 on the CPU; elsewhere distances are
    differences (MPS has no float64), and the host looks. On a GPU it must not wait: there a flag on
    the device decides in a kernel of Triton's, or without Triton products are in float64 always.
    """

    def __init__(self, rows: Points, columns: Points, widest: float | Tensor, exact: bool) -> None:
        """Of rows and columns, of which `widest` is the first σ² over the least; if `exact`, rows
        that coincide are at no distance."""
        self.rows, self.columns = rows, columns
        z, d = rows.z, rows.z.shape[-1]
        self.differences = exact
        self.double = False
        self.far: Tensor | None = None
        if self.differences or z.dtype == torch.float64:
            return
        if z.device.type in ("cuda", "meta") and kernels_for(z.device) is None:
            self.double = True
            return
        largest = rows.squares.amax()
        if columns is not rows:
            largest = torch.maximum(largest, columns.squares.amax())
        wide = too_wide(largest, widest, d)
        if kernels_for(z.device) is not None:
            self.far = wide.to(torch.int32).view(1)
        elif z.device.type == "cpu":
            self.double = bool(wide)  # half as fast as float32, and far from as slow as differences
        else:
            self.differences = bool(wide)

    def squared(self, batch: slice, i: slice, j: slice, out: Tensor) -> Tensor:
        """[b, c, w] of rows i with columns j, in `out`, which is contiguous."""
        a, b = self.rows.within(batch, i), self.columns.within(batch, j)
        if self.differences:
            mode = "donot_use_mm_for_euclid_dist"
            return out.copy_(torch.cdist(a.z, b.z, compute_mode=mode)).square_()
        if self.far is not None:
            kernels = kernels_for(a.z.device)
            assert kernels is not None
            torch.bmm(a.z, b.z.mT, out=out)
            of_rows, of_columns = (
                (some.z[batch], some.squares[batch]) for some in (self.rows, self.columns)
            )
            return kernels.finish(out, of_rows, of_columns, self.far, (i.start, j.start))
        if not self.double:
            return _by_products(a, b, out)
        step = max(1, _ELSEWHERE // a.z.shape[-1])
        a = a.double()
        for begin in range(0, out.shape[-1], step):
            some = Points(b.z[:, begin : begin + step], b.squares[:, begin : begin + step]).double()
            of_some = out.new_empty((*out.shape[:2], some.z.shape[1]), dtype=torch.float64)
            out[..., begin : begin + step] = _by_products(a, some, of_some)
        return out


def _by_products(a: Points, b: Points, out: Tensor) -> Tensor:
    torch.add(a.squares.unsqueeze(2), b.squares.unsqueeze(1), out=out)
    return add_product(out, a.z, b.z.mT, -2.0).clamp_min_(0)


def add_product(out: Tensor, a: Tensor, b: Tensor, factor: float = 1.0) -> Tensor:
    """out [b, n, m] + factor a [b, n, k] @ b [b, k, m], in place."""
    if len(out) == 1:  # one product of MKL takes less than a batch of one
        out[0].addmm_(a[0], b[0], alpha=factor)
        return out
    return out.baddbmm_(a, b, alpha=factor)
