"""Settings that no machine can take, whatever they are for: numbers too large, paths too odd."""

from __future__ import annotations

import os

LARGEST = 2**31 - 1  # of integers: beyond it are no sizes, and torch's own errors
# Of numbers other than 0: what float32, in which losses are computed, holds without loss.
SMALLEST_FLOAT, LARGEST_FLOAT = 2.0**-126, 2.0**127


class ConfigError(ValueError):
    """A setting that cannot be used; the message names it, what it got and what it takes."""


def check_range(name: str, value: float) -> None:
    """Raise ConfigError unless a number is one that torch can take: an int32, or a float32."""
    if isinstance(value, int):
        if value > LARGEST and name != "seed":
            raise ConfigError(f"{name} must be at most {LARGEST}, got {value}")
    elif value != 0 and not SMALLEST_FLOAT <= abs(value) <= LARGEST_FLOAT:
        raise ConfigError(
            f"{name} must lie in what float32 holds, {SMALLEST_FLOAT:.3g} to {LARGEST_FLOAT:.3g}, "
            f"got {value:g}"
        )


def check_path(name: str, value: str | None) -> None:
    """Raise ConfigError if the system cannot have a file of this name."""
    if value is None:
        return
    try:
        encoded = os.fsencode(value)
    except UnicodeError as error:
        raise ConfigError(
            f"{name} must be a path that the file system can encode, got {value!a}"
        ) from error
    if b"\0" in encoded:
        raise ConfigError(f"{name} must be a path without null characters, got {value!r}")
