"""How much arithmetic an op needs at least, and how long a machine takes for that.

Counted are the two things that every implementation must do: multiply-adds and exponentials. What
a machine does of each per second is measured by the package's own probe (benchmarks/machine.py).
"""

from __future__ import annotations

from typing import NamedTuple


class Work(NamedTuple):
    """Multiply-adds and exponentials of one call with gradients."""

    multiply_adds: float
    exponentials: float = 0.0

    def __add__(self, other: object) -> Work:
        """Both, one after the other."""
        if not isinstance(other, Work):
            return NotImplemented
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def size(self) -> float:
        """One number to compare shapes by; a polynomial exponential is about 10 multiply-adds."""
        return self.multiply_adds + 10 * self.exponentials

    def seconds(self, multiply_adds_per_second: float, exponentials_per_second: float) -> float:
        """The limit: on CPUs both run in the same units, so their times add up."""
        return (
            self.multiply_adds / multiply_adds_per_second
            + self.exponentials / exponentials_per_second
        )


def mmd(n: int, d: int) -> Work:
    """The full matrix of n + n rows: a distance and a share of the gradient for each pair."""
    pairs = (2 * n) ** 2
    return Work(2 * d * pairs, pairs)


def mmd_each_pair_once(n: int, d: int) -> Work:
    """The same with k_ij = k_ji computed once: a distance, and a share for each of two rows."""
    pairs = (2 * n) ** 2 / 2
    return Work(3 * d * pairs, pairs)


def prototype_margin(b: int, k: int, d: int, active: int = 0) -> Work:
    """The distances, and a share of both gradients for each active pair.

    Active are the pairs that have a gradient: every sample with its own prototype, and with those
    within the margin. How many that are depends on the data.
    """
    return Work(float((b * k + 2 * active) * d))


def cgm_step(b: int, k: int, d: int, active: int = 0) -> Work:
    """The margin loss, then the MMD of b latents with b draws from the prior."""
    return prototype_margin(b, k, d, active) + mmd(b, d)
