"""How Triton kernels are launched: precision, and how many programs; tiles: tiles.py."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
import triton

from cgm_fast.ops.gpu import multiprocessors, tf32_allowed

# Contraction into fused multiply-adds: what the accuracy of the kernels was measured with.
FUSED = {"enable_fp_fusion": True}

# The interpreter multiplies the bits of bfloat16 numbers as integers.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Products of float64 numbers: `tl.dot` takes them from this version on.
DOUBLES = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 5)


class NoDoubles(NotImplementedError):
    """This Triton cannot multiply float64."""


# Where distances have tf32's error anyway: an exponent off by 1024 roundings is not more.
FAST_FAR, FAST_CANCELLED = 1024.0, 341.0


def round_up(value: int, unit: int) -> int:
    """The least multiple of `unit` that is not below `value`."""
    return (value + unit - 1) // unit * unit


class Numbers(NamedTuple):
    """How samples are held, and multiplied."""

    compute: torch.dtype
    rows: torch.dtype
    """Of what distances are taken from: half inputs stay as they are, for half tensor cores."""
    precision: str
    """Of products of two float32 or float64 numbers, as `tl.dot` calls it."""
    rounded: bool = False
    """Whether samples are rounded to tf32 first, so that their products are exact."""
    parts: int = 0
    """tf32 numbers that a weight goes into a product as; 0 for what `precision` says."""
    far: float = 24.0
    """Largest |z|² (exponent) for which distances are taken from products."""
    cancelled: float = 8.0
    """And how much of |z|² a distance that matters may be less, if there are larger ones."""

    def in_parts(self, features: int) -> bool:
        """Whether float32 rows are packed as sums of two tf32 numbers, so that no tile splits them
        again. Wider ones would take more of L2's bandwidth than that spares."""
        return self.precision == "tf32x3" and self.rows == torch.float32 and features <= 32


def numbers(dtype: torch.dtype) -> Numbers:
    """What the user allows, by `torch.set_float32_matmul_precision` or its newer forms.

    "highest": float32's accuracy, by three products of tf32 parts (on AMD by float32 itself).
    "high" and "medium": tf32. Half inputs are multiplied as they are, which is exact; their
    weights, which are not half numbers, by two tf32 parts at "highest" and by one else.
    """
    plain = widened(dtype)
    fast = plain.precision == "tf32"
    if dtype.itemsize == 2 and not (dtype == torch.bfloat16 and INTERPRETED):
        parts = 0 if torch.version.hip else 1 if fast else 2
        plain = plain._replace(rows=dtype, parts=parts)
        return plain._replace(far=FAST_FAR, cancelled=FAST_CANCELLED) if fast else plain
    if fast:
        return plain._replace(rounded=True, parts=1, far=FAST_FAR, cancelled=FAST_CANCELLED)
    return plain


def with_bandwidths(held: Numbers, device: str) -> Numbers:
    """The same where a tile meets several bandwidths in a loop; `device` as the table calls it.

    Triton 3.9's compiler fails at that between two tf32 products of Blackwell's tensor cores (pass
    TritonGPUHoistTMEMAlloc), not between three.
    """
    if device == "10.0" and held.precision == "tf32":
        return held._replace(precision="tf32x3")
    return held


def widened(dtype: torch.dtype) -> Numbers:
    """The same for kernels that read samples in the compute dtype, and round none.

    Raises:
        NoDoubles: float64, with a Triton before 3.5.
    """
    compute = torch.promote_types(dtype, torch.float32)
    if compute == torch.float64 and not DOUBLES:
        raise NoDoubles(
            f"backend 'triton' takes float64 from triton 3.5 on (torch 2.9), and this is triton "
            f"{triton.__version__}; backend='reference' takes it"
        )
    if compute == torch.float64 or torch.version.hip:
        return Numbers(compute, compute, "ieee")
    fast = tf32_allowed()
    return Numbers(compute, compute, "tf32" if fast else "tf32x3")


ROUNDS = 6
"""So often every multiprocessor is given work, where there is enough: of what the last round leaves
idle, half of it on average, this is a twelfth."""
_LEAST, _ENOUGH = 64, 512
"""Columns of a split, that the device is filled once; and that there are more rounds."""


def parallel(rows: int, columns: int, device: torch.device, programs: int = 2) -> int:
    """In how many splits `columns` keep the device busy, each for `rows` blocks of rows;
    `programs` of them at once on a multiprocessor."""
    if device.type != "cuda":
        return 1
    at_once = programs * multiprocessors(device)
    once = min(at_once // rows, columns // _LEAST)
    often = min(-(-ROUNDS * at_once // rows), columns // _ENOUGH)
    return max(1, once, often)
