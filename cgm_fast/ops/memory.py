"""How tensors reach the compiled module: as addresses, dtypes and strides."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}


class NoMemory(TypeError):
    """A tensor whose values do not lie in memory; the dispatcher may know what they are."""


def addresses(values: Iterable[Tensor | None]) -> tuple[int, ...]:
    """Of a record's tensors in their order, as the compiled module takes them; 0 for None."""
    return tuple([0 if value is None else value.data_ptr() for value in values])


def check_address(*values: Tensor | None) -> None:
    """Refuse tensors that have none: zeros that torch has not written anywhere, or subclasses.

    Raises:
        NoMemory: one of them has none.
    """
    for value in values:
        if value is not None and not value.data_ptr():
            raise NoMemory(f"a {type(value).__name__} of shape {list(value.shape)} has no address")


def compute_like(value: Tensor) -> tuple[torch.dtype, Tensor]:
    """The dtype to compute in, and a tensor of it to make others like."""
    if value.dtype == torch.float32 or value.dtype == torch.float64:
        return value.dtype, value
    return torch.float32, value.new_empty(0, dtype=torch.float32)


def placed(*counts_of: tuple[int, torch.dtype]) -> tuple[int, ...]:
    """Where parts of one workspace begin, in bytes, and where it ends.

    One allocation instead of several, which each cost a small call more than a kernel's argument.

    Args:
        *counts_of: Of each part, how many numbers and of which dtype.
    """
    begins = [0]
    for count, dtype in counts_of:
        begins.append(begins[-1] + -(-count * dtype.itemsize // _PART) * _PART)
    return tuple(begins)


_PART = 256  # of bytes: parts begin where an allocation of their own might


def plain(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A small operand as the kernels read it: contiguous, float32 or float64."""
    return None if value is None else contiguous(value, dtype)


def contiguous(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of a dtype without gaps; the same one if it is that, without asking torch twice."""
    if value.dtype != dtype:
        value = value.to(dtype)
    return value if value.is_contiguous() else value.contiguous()


def address(value: Tensor | None) -> int:
    """The address of a tensor's first element; 0 for None, which kernels take for absent."""
    return 0 if value is None else value.data_ptr()
