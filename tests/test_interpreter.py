"""Triton's interpreter as the tests have it (fast_interpreter.py) checks what it should."""

import pytest
import torch

from cgm_fast.ops import backends

if (reason := backends.availability()["triton"]) is not None:
    pytest.skip(reason, allow_module_level=True)
if torch.cuda.is_available():
    pytest.skip("kernels are compiled here", allow_module_level=True)

import triton
import triton.language as tl


@triton.jit
def squared(number):
    return number * number


@triton.jit
def store_squares(out, number, OFFSET: tl.constexpr):
    places = tl.arange(0, 4)
    tl.store(out + places, tl.sum(places) + squared(number + places) + OFFSET)


@pytest.mark.parametrize(("number", "offset"), [(70_000, 0), (46_340, 0), (2, 2**31 - 8)])
def test_an_integer_that_overflows_is_an_error(number, offset):
    out = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(Exception, match=r"int32 overflow detected for operation (mul|add)"):
        store_squares[(1,)](out, number, offset)


def test_functions_of_functions_compute():
    out = torch.zeros(4, dtype=torch.int64)
    for _ in range(2):  # the second time the language's functions are the interpreter's already
        store_squares[(1,)](out, 46_000, 7)
        assert out.tolist() == [(46_000 + place) ** 2 + 13 for place in range(4)]
