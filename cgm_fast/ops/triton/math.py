"""Device functions that several Triton kernels share."""

from __future__ import annotations

import functools

import triton
import triton.language as tl

from cgm_fast.ops.triton.remembered import jit

# A kernel as it is launched. Triton compiles anew where a number turns 1 or a multiple of 16, or is
# one no more; for padded sizes, which always are, this is worth it, for these it is not.
kernel = functools.partial(
    jit,
    do_not_specialize=[
        "n", "m", "k", "d", "b", "splits", "groups", "scales", "variance_item", "relation_item",
        "mass_item", "first_block", "some_blocks", "row_begin", "row_end", "row_blocks", "blocks",
        "parts", "chunks", "x_item", "y_item", "noise_sample", "summed", "p",
        "product_splits",
    ],
)  # fmt: skip


# The bias of padded rows: their pairs are so many exponents apart that a Gaussian is 0.
PADDING = tl.constexpr(-4096.0)


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
    q *= f
    return tl.fma(power, q, power - 1.0), tl.fma(power, q, power)


@triton.jit
def squared_distances(
    columns, i, j, d, total, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AT_ONCE: tl.constexpr
):
    """|z_i - z_j|² [ROWS, COLUMNS] from plain differences: equal ones are equal to the bit.

    `columns` is [features, total], its features padded with zeros to a multiple of 16; i and j are
    some of its columns. AT_ONCE features (a divisor of 16) wait for memory together, in registers.
    """
    u = tl.zeros([ROWS, COLUMNS], columns.dtype.element_ty)
    for _first in range(0, d, AT_ONCE):
        for _feature in tl.static_range(AT_ONCE):
            difference = tl.load(columns + i)[:, None] - tl.load(columns + j)[None, :]
            u += difference * difference
            columns += total
    return u


@triton.jit
def group_of(tiles, unit, row):
    """The group of a packed row; `tiles` is that of `Layout` in pack.py."""
    return tl.load(tiles + 3 * (row // unit))


@triton.jit
def place(tiles, unit, first, SIZE: tl.constexpr):
    """Of SIZE packed rows from `first` on, all of one tile: which stacked rows they are, and
    whether they are any."""
    tile = first // unit
    offset = first - tile * unit + tl.arange(0, SIZE)
    return tl.load(tiles + 3 * tile + 1) + offset, offset < tl.load(tiles + 3 * tile + 2)


@triton.jit
def cut(value):
    """The part of a float32 that a tensor core reads as tf32: 11 bits, the others zero."""
    bits = value.to(tl.int32, bitcast=True) & -8192
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def nearest_tf32(value):
    """A float32 rounded to 11 bits, ties away from zero; a NaN stays one."""
    head, _ = split_tf32(value)
    return tl.where(value == value, head, value)


@triton.jit
def split_tf32(value):
    """A float32 as the sum of its nearest tf32 number and the rest; of a NaN the rest is one."""
    bits = value.to(tl.int32, bitcast=True) + 4096
    head = cut(bits.to(tl.float32, bitcast=True))
    return head, value - head


@triton.jit
def parts(a, PRECISION: tl.constexpr):
    """A left factor as `product` takes it: in two parts where both are used."""
    if PRECISION == "tf32x3" and a.dtype == tl.float32:
        return split_tf32(a)
    else:
        return a, a


@triton.jit
def product_of_parts(a, a_rest, b, b_rest):
    """a @ b, each factor the sum of two tf32 numbers; the product of the small ones is left out."""
    some = tl.dot(a_rest, b, input_precision="tf32")
    some = tl.dot(a, b_rest, some, input_precision="tf32")
    return tl.dot(a, b, some, input_precision="tf32")


@triton.jit
def product(a, a_rest, b, PRECISION: tl.constexpr):
    """a @ b, where a comes as `parts` leaves it. Half factors are multiplied as they are.

    Triton's own tf32x3 also mends infinities and rounds the rest: a sixth to a quarter more
    instructions in the loop over columns (tools/kernels/cost.py), which samples and weights do not
    need.
    """
    if PRECISION == "tf32x3" and b.dtype == tl.float32:
        b, b_rest = split_tf32(b)
        return product_of_parts(a, a_rest, b, b_rest)
    elif PRECISION == "ieee":
        return tl.dot(a, b, input_precision="ieee")
    else:
        return tl.dot(a, b, input_precision="tf32")


@triton.jit
def add_weighted(total, w, z, PARTS: tl.constexpr, PRECISION: tl.constexpr):
    """total [ROWS, FEATURES] + w [ROWS, COLUMNS] @ z [COLUMNS, FEATURES].

    Where z has no more bits than tf32, w goes in as many PARTS; else 0, and PRECISION as it is.
    Tensor cores cut their sums, so that only short ones are left to them where accuracy counts.
    """
    if PARTS == 2:
        head = cut(w)  # not the nearest: a bias of 2^-22 is nothing to a weight
        some = tl.dot(w - head, z, input_precision="tf32")
        return total + tl.dot(head, z, some, input_precision="tf32")
    elif PRECISION == "tf32x3":
        head = cut(w)
        return total + product(head, w - head, z, PRECISION)
    else:
        # Told the type: Triton 3.6 takes a running sum for float32 otherwise.
        return tl.dot(w, z, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def add_to(number, first, value):
    """Add to a float64 in memory that only this program writes; `first` starts it from zero."""
    before = tl.load(number, mask=first == 0, other=0.0)
    tl.debug_barrier()  # all have read what one is about to replace
    tl.store(number, before + value.to(tl.float64))
    tl.debug_barrier()
