"""Products in Triton's interpreter as tensor cores take them, so that tests see their rounding.

The interpreter multiplies float32 by float32, whatever precision a kernel asks for. Tensor cores
cut tf32 operands to 11 bits, multiply them exactly, and add a few products at a time to an
accumulator, from which they cut what does not fit. For 3xtf32 Triton splits each operand into two
rounded parts, leaves out the product of the two small ones, and adds to float32 outside.

How tensor cores add is not documented, but has been measured: Fasi, Higham, Mikaitis and Pranesh,
"Numerical behavior of NVIDIA tensor cores" (2021), and Khattak and Mikaitis, "Accurate models of
NVIDIA tensor cores" (2025). Addends, the accumulator among them, are aligned to the largest
exponent and cut there, a bit below float32's last on Ampere, two on Hopper; so many small ones
beside a large one lose what a sum that is cut once would keep. `emulate(monkeypatch,
pessimistic=True)` adds so: as Ampere, the coarser of the two, and four products at a time, the
fewest of any type.
"""

import numpy
from triton.runtime import interpreter

STEP = 8
"""Products that one instruction adds at once, of tf32; the least of any type."""


def as_tf32(value):
    """Nearest with 10 bits after the first, ties away from zero (cvt.rna.tf32.f32)."""
    bits = numpy.ascontiguousarray(value, dtype=numpy.float32).view(numpy.uint32)
    rounded = ((bits + numpy.uint32(1 << 12)) & numpy.uint32(0xFFFFE000)).view(numpy.float32)
    return numpy.where(numpy.isfinite(value), rounded, value)


def toward_zero(value):
    """float64 to float32 without rounding up."""
    nearest = value.astype(numpy.float32)
    beyond = numpy.abs(nearest.astype(numpy.float64)) > numpy.abs(value)
    return numpy.where(beyond, numpy.nextafter(nearest, numpy.float32(0)), nearest)


def accumulate(a, b, total):
    """total + a @ b, float32: exact products, STEP of them added at a time."""
    a, b = a.astype(numpy.float64), b.astype(numpy.float64)
    for first in range(0, a.shape[-1], STEP):
        some = a[..., first : first + STEP] @ b[..., first : first + STEP, :]
        total = toward_zero(total.astype(numpy.float64) + some)
    return total


FRACTION, FEW = 24, 4
"""Bits of an addend below the largest one's first, and products added at once, at worst."""


def exponent(value):
    """Of the first bit; of zero so low that it is nobody's largest."""
    found = numpy.frexp(value)[1] - 1
    return numpy.where(value == 0, -400, found)


def accumulate_aligned(a, b, total):
    """total + a @ b, float32: exact products, FEW of them aligned, cut and added at a time."""
    of_a, of_b = exponent(a)[..., :, :, None], exponent(b)[..., None, :, :]
    a, b = a.astype(numpy.float64), b.astype(numpy.float64)
    for first in range(0, a.shape[-1], FEW):
        some = slice(first, first + FEW)
        products = a[..., :, some, None] * b[..., None, some, :]
        # A product of 1.5 and 1.5 counts as one below 2: it is not normalised before.
        largest = (of_a[..., some, :] + of_b[..., some, :]).max(-2)
        last = numpy.ldexp(1.0, numpy.maximum(largest, exponent(total)) - FRACTION)
        aligned = (numpy.trunc(products / last[..., None, :]) * last[..., None, :]).sum(-2)
        total = toward_zero(aligned + numpy.trunc(total / last) * last)
    return total


def cut(value):
    """The 11 bits of a float32 that a tensor core reads."""
    bits = numpy.ascontiguousarray(value, dtype=numpy.float32).view(numpy.uint32)
    return (bits & numpy.uint32(0xFFFFE000)).view(numpy.float32)


def dot(a, b, total, precision, accumulate=accumulate):
    """What `tl.dot(a, b, total, input_precision=precision)` leaves, for arrays of numbers."""
    if total.dtype != numpy.float32 or (a.dtype == numpy.float32 and precision == "IEEE"):
        return numpy.matmul(a, b, dtype=total.dtype) + total
    if a.dtype != numpy.float32 or precision == "TF32":
        return accumulate(cut(a), cut(b), total)
    assert precision == "TF32x3", precision
    large_a, large_b = as_tf32(a), as_tf32(b)
    part = accumulate(as_tf32(a - large_a), large_b, numpy.zeros_like(total))
    part = accumulate(large_a, as_tf32(b - large_b), part)
    return total + accumulate(large_a, large_b, numpy.where(numpy.isnan(part), 0, part))


def emulate(monkeypatch, pessimistic=False):
    """Make the interpreter multiply like this for a test."""
    adder = accumulate_aligned if pessimistic else accumulate

    def create_dot(self, a, b, total, input_precision, max_num_imprecise_acc):
        numbers = dot(a.data, b.data, total.data, input_precision.name, adder)
        return interpreter.TensorHandle(numbers, total.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
