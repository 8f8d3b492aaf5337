"""What regimes of all ops have in common: sizes that stand for others, and words for them.

A regime is what of a problem decides which kernels run; its example, a small one (verification.py).
"""

from __future__ import annotations

import torch

_ALL_HELD = 64
"""Up to so many features every number has its own padding, or kernel."""
_WIDEST = 512


def features_like(d: int) -> int:
    """A number of features to try d features with: d up to 64, else a few beyond a power of two
    with the same remainder modulo 4, which decides how rows are read."""
    if d <= _ALL_HELD:
        return d
    room = _ALL_HELD
    while 2 * room < d and room < _WIDEST:
        room *= 2
    return room + 4 + d % 4


def class_of(size: int, sizes: tuple[int, ...]) -> int:
    """The first of `sizes`, in ascending order, that is not below `size`; or the last."""
    return next((some for some in sizes if size <= some), sizes[-1])


def kind(dtype: torch.dtype) -> str:
    """Its name without a prefix."""
    return str(dtype).removeprefix("torch.")


def chosen(names: tuple[str, ...] | str, flags: tuple[bool, ...]) -> str:
    """The names whose flags are set, as "a+b"."""
    return "+".join(name for name, yes in zip(names, flags, strict=True) if yes) or "nothing"
