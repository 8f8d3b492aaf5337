"""What several implementations of MMD² share: a batch of one, where there is none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor


def batched(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """Give inputs without a batch one of size 1, and take it from the results."""

    @functools.wraps(function)
    def wrapped(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        if x.dim() == 3:
            return function(x, *args)
        args = tuple(arg.unsqueeze(0) if isinstance(arg, Tensor) else arg for arg in args)
        out = function(x.unsqueeze(0), *args)
        return tuple(value if value.shape == (0,) else value.squeeze(0) for value in out)

    return wrapped
