"""How much arithmetic an op needs at least, and how long a machine takes for that.

Counted are the things that every implementation must do: multiply-adds, exponentials, and reading
float32 inputs and writing results once. What a processor does of the first two per second is
measured by the package's own probe (benchmarks/machine.py); what a GPU does follows from NVIDIA's
documents, the number of its multiprocessors and its highest clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Work(NamedTuple):
    """Multiply-adds, exponentials and bytes of inputs and results of one call with gradients."""

    multiply_adds: float
    exponentials: float = 0.0
    bytes: float = 0.0

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
    return Work(2 * d * pairs, pairs, 2 * 4 * (2 * n * d))


def mmd_bandwidths(count: int) -> Callable[[int, int], Work]:
    """The same with the mean of several kernels: an exponential for each of them."""

    def work(n: int, d: int) -> Work:
        one = mmd(n, d)
        return one._replace(exponentials=count * one.exponentials)

    return work


def mmd_each_pair_once(n: int, d: int) -> Work:
    """The same with k_ij = k_ji computed once: a distance, and a share for each of two rows."""
    pairs = (2 * n) ** 2 / 2
    return Work(3 * d * pairs, pairs, 2 * 4 * (2 * n * d))


def kernel_product(n: int, d: int, p: int) -> Work:
    """The full matrix, once for the product and once for its derivatives: distances, a share of
    the product, ⟨u_i, v_j⟩, and shares of three gradients."""
    pairs = n * n
    return Work((4 * d + 3 * p) * pairs, 2 * pairs, 2 * 4 * (2 * n * d + 2 * n * p))


def prototype_margin(b: int, k: int, d: int, active: int = 0) -> Work:
    """The distances, and a share of both gradients for each active pair.

    Active are the pairs that have a gradient: every sample with its own prototype, and with those
    within the margin. How many that are depends on the data.
    """
    return Work(float((b * k + 2 * active) * d), bytes=2 * 4 * (b + k) * d + 8 * b)


def cgm_loss(b: int, k: int, d: int, active: int = 0) -> Work:
    """The margin loss, then the MMD of b latents with b draws from the prior."""
    margin, latents = prototype_margin(b, k, d, active), mmd(b, d)
    # Latents and draws stay inside; what comes from memory are two normal draws for each sample.
    return (margin + latents)._replace(bytes=margin.bytes + 2 * 4 * b * d)


# GPUs


class PerClock(NamedTuple):
    """What one multiprocessor does in one clock: exp2, and multiply-adds by its units."""

    exp2: int
    float32: int
    tf32: int
    bf16: int


PER_CLOCK = {
    "8.0": PerClock(16, 64, 512, 1024),
    # The professional chips'; GeForce's tensor cores reach half of it.
    "8.6": PerClock(16, 128, 256, 512),
    "8.9": PerClock(16, 128, 256, 512),
    "9.0": PerClock(16, 128, 1024, 2048),
    "10.0": PerClock(16, 128, 2048, 4096),
}
"""By compute capability: the table of arithmetic instructions in NVIDIA's CUDA C++ Programming
Guide, and the dense tensor core rates of the white papers over multiprocessors and clock."""

UNITS = {"highest": ("float32", "3xtf32"), "high": ("tf32",), "medium": ("tf32", "bf16")}
"""What may multiply at each of torch's float32_matmul_precision; the fastest counts."""


def gpu_rates(gpu: dict[str, Any]) -> dict[str, float] | None:
    """What each unit of a GPU does per second, from `gpu.properties()`.

    None where the capability is unknown or the driver does not tell the clock: then no limit is
    stated. Without the memory's rate that one is left out.
    """
    per_clock = PER_CLOCK.get(gpu["capability"])
    if per_clock is None or gpu["clock_hz"] is None:
        return None
    clocks = gpu["multiprocessors"] * gpu["clock_hz"]
    rates = {name: value * clocks for name, value in per_clock._asdict().items()}
    rates["3xtf32"] = rates["tf32"] / 3  # float32's accuracy takes three products
    if gpu["bytes_per_second"] is not None:
        rates["memory"] = gpu["bytes_per_second"]
    return rates


def gpu_limit(work: Work, rates: dict[str, float], precision: str) -> tuple[float, str]:
    """The limit in seconds, launches not included, and the unit that sets it.

    A GPU's units work side by side, so the slowest one's time counts, not the sum.
    """
    multiplier = max(UNITS[precision], key=rates.__getitem__)
    times = {
        "exp2": work.exponentials / rates["exp2"],
        multiplier: work.multiply_adds / rates[multiplier],
    }
    if "memory" in rates:
        times["memory"] = work.bytes / rates["memory"]
    unit = max(times, key=times.__getitem__)
    return times[unit], unit
