"""A Triton kernel of exponentials that stay in registers, for ceilings.py."""

import triton
from triton import language as tl

NUMBERS = 1024
"""A program's, in each of two chains."""


@triton.jit
def chain_kernel(out, COUNT: tl.constexpr, NUMBERS: tl.constexpr):
    """Two chains of COUNT dependent exp2 for each of NUMBERS."""
    i = tl.program_id(0) * NUMBERS + tl.arange(0, NUMBERS)
    a = i * -1e-9
    b = i * -2e-9
    for _ in range(COUNT):
        a = tl.exp2(-a)
        b = tl.exp2(-b)
    tl.store(out + i, a + b)
