"""Device functions that several Triton kernels share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exp2_less_one(e):
    """2^e - 1 and 2^e for e <= 0 (or a rounding error above), each good to a few units.

    The hardware's exp2 would leave 2^e - 1 nothing where e is small. With e = n + f, |f| <= 1/2,
    a polynomial gives 2^f - 1 = f q(f); 2^n comes from its bits. A NaN stays one.
    """
    if e.dtype == tl.float64:
        e = tl.where(e < -1023.0, -1023.0, e)  # 2^-1023 becomes an exact zero
        shifted = e + 6755399441056767.0  # 1.5 * 2^52 + 1023: rounds, and leaves n + 1023 below
        f = e - (shifted - 6755399441056767.0)
        q = f * 4.4566755710138822318e-10 + 7.0725861813463670926e-9
        q = f * q + 1.0178051727399185754e-7
        q = f * q + 1.3215442586612870547e-6
        q = f * q + 1.5252733853282352968e-5
        q = f * q + 1.5403530441738513431e-4
        q = f * q + 1.3333558146396001579e-3
        q = f * q + 9.6181291076068868088e-3
        q = f * q + 5.5504108664821659755e-2
        q = f * q + 2.4022650695910098223e-1
        q = f * q + 6.9314718055994530909e-1
        power = (shifted.to(tl.int64, bitcast=True) << 52).to(tl.float64, bitcast=True)
    else:
        e = tl.where(e < -127.0, -127.0, e)
        shifted = e + 12583039.0  # 1.5 * 2^23 + 127
        f = e - (shifted - 12583039.0)
        q = f * 1.5469735205486631811e-4 + 1.3390866847232127857e-3
        q = f * q + 9.6180307705219569407e-3
        q = f * q + 5.5503571055175024990e-2
        q = f * q + 2.4022651084215122803e-1
        q = f * q + 6.9314718802895101201e-1
        power = (shifted.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)
    rest = power * (q * f)
    return rest + (power - 1.0), rest + power


@triton.jit
def squared_distances(columns, i, j, d, total, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """|z_i - z_j|² [ROWS, COLUMNS] from plain differences: equal ones are equal to the bit.

    `columns` is [features, total]; i and j are some of its columns.
    """
    u = tl.zeros([ROWS, COLUMNS], columns.dtype.element_ty)
    for _ in range(d):
        difference = tl.load(columns + i)[:, None] - tl.load(columns + j)[None, :]
        u += difference * difference
        columns += total
    return u


@triton.jit
def add_to(number, first, value):
    """Add to a float64 in memory that only this program writes; `first` starts it from zero."""
    before = tl.load(number, mask=first == 0, other=0.0)
    tl.debug_barrier()  # all have read what one is about to replace
    tl.store(number, before + value.to(tl.float64))
    tl.debug_barrier()
