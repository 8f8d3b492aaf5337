"""Checks of arguments, shared by the ops' public functions. Each error names the argument."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an op computes: float32 for half inputs, the input's own otherwise."""
    return torch.promote_types(dtype, torch.float32)


def check_float_tensor(name: str, value: Tensor) -> None:
    """Raise TypeError unless `value` is a tensor of a floating dtype the kernels take."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
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
        if not torch.is_autocast_enabled(a.device.type):
            raise TypeError(
                f"{names[0]} and {names[1]} must have one dtype, got {a.dtype} and {b.dtype}"
            )
        dtype = torch.promote_types(a.dtype, b.dtype)
        a, b = a.to(dtype), b.to(dtype)
    return a, b


def check_all_finite(name: str, value: Tensor) -> None:
    """Raise ValueError if `value` holds NaN or infinity. Synchronises with the device."""
    finite = torch.isfinite(value)
    if not bool(finite.all()):
        count = int((~finite).sum())
        raise ValueError(
            f"{name} must be finite, got {count} NaN or infinite of {value.numel()} values"
        )


def check_number(
    name: str, value: object, *, above: float | None = None, at_least: float | None = None
) -> float:
    """Return `value` as a float; raise unless it is a finite number within the bound given."""
    # A tuple, not `int | float`: the Dynamo of torch 2.6 cannot trace that.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    bad = not math.isfinite(value)
    bad = bad or (above is not None and not value > above)
    bad = bad or (at_least is not None and not value >= at_least)
    if bad:
        bound = f" > {above:g}" if above is not None else ""
        bound = f" >= {at_least:g}" if at_least is not None else bound
        raise ValueError(f"{name} must be a finite number{bound}, got {value}")
    return float(value)


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
