"""Poisoned memory: what is allocated without a value is NaN, so that what nobody wrote is seen."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def poisoned_memory(package: str) -> Iterator[None]:
    """Fill what `torch.empty`, `empty_like` and `new_empty` give the package's modules with NaN.

    Integers become the lowest number of their type. So an output that a kernel did not write is
    seen. Calls from other modules, and calls while torch.compile traces, are left alone.
    """

    def poison(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(allocate)
        def poisoned(*args: Any, **kwargs: Any) -> Tensor:
            out = allocate(*args, **kwargs)
            if torch.compiler.is_compiling() or type(out) is not Tensor or out.is_meta:
                return out
            frame = sys._getframe(1)
            while frame.f_back is not None and frame.f_globals is globals():  # nested poison
                frame = frame.f_back
            caller = frame.f_globals.get("__name__", "")
            if caller == package or caller.startswith(package + "."):
                with torch.no_grad():
                    out.fill_(_poison_of(out.dtype))
            return out

        return poisoned

    with torch.device("cpu"):  # torch notes once what its default device is for: the true functions
        torch.empty(0)
    owners: list[tuple[Any, str]]
    owners = [(torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")]
    saved = [vars(owner).get(name) for owner, name in owners]
    for owner, name in owners:
        setattr(owner, name, poison(getattr(owner, name)))
    try:
        yield
    finally:
        for (owner, name), allocate in zip(owners, saved, strict=True):
            if allocate is None:  # inherited
                delattr(owner, name)
            else:
                setattr(owner, name, allocate)


def _poison_of(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    if dtype is torch.bool:
        return True
    return torch.iinfo(dtype).min or torch.iinfo(dtype).max
