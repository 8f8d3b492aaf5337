"""Checks of arguments, shared by the ops' public functions. Each error names the argument."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from cgm_fast.ops.watching import bare, modes, readable, tracing

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an op computes: float32 for half inputs, the input's own otherwise."""
    return torch.promote_types(dtype, torch.float32)


def check_float_tensor(name: str, value: Tensor) -> None:
    """Raise TypeError unless `value` is a dense tensor of a floating dtype the kernels take."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise TypeError(
            f"{name} must be dense, got {kind}; to_dense(), or to_padded_tensor() with weights of 0"
        )
    if value.dtype not in FLOATS:
        takes = "float16, bfloat16, float32 or float64"
        raise TypeError(f"{name} must have dtype {takes}, got {value.dtype}")


def match(names: tuple[str, str], a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Check that two tensors share device and dtype; under autocast, promote to the wider dtype."""
    if a.device != b.device:
        raise ValueError(
            f"{names[0]} and {names[1]} must be on one device, got {a.device} and {b.device}"
        )
    if a.dtype != b.dtype:
        kind = a.device.type
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            raise TypeError(
                f"{names[0]} and {names[1]} must have one dtype, got {a.dtype} and {b.dtype}"
            )
        dtype = torch.promote_types(a.dtype, b.dtype)
        a, b = a.to(dtype), b.to(dtype)
    return a, b


def check_all_finite(name: str, value: Tensor) -> None:
    """Raise ValueError if `value` holds NaN or infinity. Synchronises with the device.

    What is compiled or traced holds the check, which raises RuntimeError when it runs. (Inductor of
    torch 2.6 drops it.)
    """
    if is_compiling() or modes() or tracing():
        torch._assert_async(torch.isfinite(value).all(), f"{name} must be finite")
        return
    finite = torch.isfinite(bare(value))
    if not finite.is_meta and not bool(finite.all()):
        count = int((~finite).sum())
        raise ValueError(
            f"{name} must be finite, got {count} NaN or infinite of {finite.numel()} values"
        )


def check_number(
    name: str, value: object, *, above: float | None = None, at_least: float | None = None
) -> float:
    """Return `value` as a float; raise unless it is a finite number within the bound given."""
    # A tuple, not `int | float`: the Dynamo of torch 2.6 cannot trace that.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        if isinstance(value, bool) or not isinstance(value, Real):  # numpy's numbers are Real
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        value = float(value)
    bad = not math.isfinite(value)
    bad = bad or (above is not None and not value > above)
    bad = bad or (at_least is not None and not value >= at_least)
    if bad:
        bound = f" > {above:g}" if above is not None else ""
        bound = f" >= {at_least:g}" if at_least is not None else bound
        raise ValueError(f"{name} must be a finite number{bound}, got {value}")
    return float(value)


def bounds(value: Tensor) -> tuple[float, float] | None:
    """The least and the greatest number of a tensor; None where they cannot be looked at."""
    if not readable(value):
        return None
    value = bare(value).detach()
    if value.numel() == 1:  # one op instead of three
        return value.item(), value.item()
    low, high = value.aminmax()
    return low.item(), high.item()


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`; raise ValueError otherwise."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def cached(function: Any, *args: Any) -> Any:
    """Call a function under lru_cache; the function itself where Dynamo traces it, or where an
    argument that cannot be hashed is about to be refused by name."""
    if not torch.compiler.is_compiling():
        try:
            return function(*args)
        except TypeError:
            pass
    return function.__wrapped__(*args)
