"""The families of radial kernels as Triton's device functions; see ops/mmd/kernels.py.

Each takes the exponent e <= 0 (or a rounding error above) for which the Gaussian is 2^e, so
t = -e ln 2, and returns φ(t) - φ(0), φ(t), the slope -φ'(t) and the curvature φ''(t). Where φ' or
φ'' is infinite, at t = 0, it is 0. A NaN stays one. What a kernel does not use the compiler drops.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cgm_fast.ops.triton.math import exp2_less_one


@triton.jit
def radial(e, KERNEL: tl.constexpr):
    """φ - φ(0), φ, -φ' and φ'' of a family."""
    if KERNEL == "gaussian":
        return _gaussian(e)
    elif KERNEL == "laplacian" or KERNEL == "matern12":
        return _laplacian(e)
    elif KERNEL == "matern32":
        return _matern32(e)
    elif KERNEL == "matern52":
        return _matern52(e)
    elif KERNEL == "rational_quadratic":
        return _rational(e)
    elif KERNEL == "imq":
        return _imq(e)
    else:
        tl.static_assert(KERNEL == "energy")
        return _energy(e)


@triton.jit
def is_near(e, less, KERNEL: tl.constexpr):
    """Whether φ - φ(0) >= -1/2, of a family that vanishes."""
    if KERNEL == "gaussian":
        return e >= -1.0  # known first: fewer registers in the loop over columns
    else:
        return less >= -0.5


@triton.jit
def bounded(e, KERNEL: tl.constexpr):
    """e, or where that is less what φ is 0 for, or so small that products with it stay finite."""
    if KERNEL == "gaussian":
        return tl.where(e < -1100.0, -1100.0, e)
    elif e.dtype == tl.float64:
        return tl.where(e < -1e300, -1e300, e)
    else:
        return tl.where(e < -1e30, -1e30, e)


@triton.jit
def _gaussian(e):
    less, whole = exp2_less_one(e)
    return less, whole, whole, whole


@triton.jit
def _laplacian(e):
    s = tl.sqrt(2.0 * _scaled(e))
    less, whole = _exp_less_one(s)
    return less, whole, _over(whole, s), tl.zeros_like(e)  # without second derivatives


@triton.jit
def _matern32(e):
    t = _scaled(e)
    s = tl.sqrt(6.0 * t)
    less, decay = _exp_less_one(s)
    # The two terms of (e^-s - 1) + s e^-s cancel where s is small.
    series = s * (-1.0 / 840.0) + 1.0 / 144.0
    series = s * (s * (s * -series + 1.0 / 30.0) - 0.125) + 1.0 / 3.0
    series = s * s * (s * series - 0.5)
    less = tl.where(_is_small(s), series, less + s * decay)
    return less, (1.0 + s) * decay, 3.0 * decay, _over(9.0 * decay, s)


@triton.jit
def _matern52(e):
    t = _scaled(e)
    s, square = tl.sqrt(10.0 * t), 10.0 * t
    less, decay = _exp_less_one(s)
    series = s * (s * (-1.0 / 3456.0) + 1.0 / 630.0) - 1.0 / 144.0
    series = s * (s * series + 1.0 / 45.0)
    series = square * (square * (1.0 / 24.0 - series) - 1.0 / 6.0)
    polynomial = s + square * (1.0 / 3.0)
    less = tl.where(_is_small(s), series, less + polynomial * decay)
    slope = (5.0 / 3.0) * (1.0 + s) * decay
    return less, (1.0 + polynomial) * decay, slope, (25.0 / 3.0) * decay


@triton.jit
def _rational(e):
    t = _scaled(e)
    whole = 1.0 / (1.0 + t)
    square = whole * whole
    return -t * whole, whole, square, 2.0 * square * whole


@triton.jit
def _imq(e):
    t = 2.0 * _scaled(e)
    inverse = 1.0 / (1.0 + t)
    whole = tl.sqrt(inverse)
    slope = whole * inverse
    return -t * inverse / (1.0 + whole), whole, slope, 3.0 * slope * inverse


@triton.jit
def _energy(e):
    s = tl.sqrt(2.0 * _scaled(e))
    one = tl.full(e.shape, 1.0, e.dtype)
    return -s, -s, _over(one, s), tl.zeros_like(e)  # without second derivatives


@triton.jit
def _scaled(e):
    """t, neither negative nor infinite."""
    t = -0.6931471805599453 * bounded(e, "")
    return tl.where(t < 0.0, 0.0, t)


@triton.jit
def _exp_less_one(s):
    """e^-s - 1 and e^-s."""
    return exp2_less_one(-1.4426950408889634 * s)


@triton.jit
def _over(a, s):
    """a / s, and 0 where s is: what multiplies it vanishes there."""
    return tl.where(s == 0.0, 0.0, a / tl.where(s == 0.0, 1.0, s))


@triton.jit
def _is_small(s):
    """Whether a series has less error than a difference of terms that cancel."""
    if s.dtype == tl.float64:
        return s < 0.01
    else:
        return s < 0.3
