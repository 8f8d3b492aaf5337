"""Inputs for kernels: samples, weights, prototypes, and views of them in every layout."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def samples(
    n: int,
    m: int,
    d: int,
    *,
    batch: int | None = None,
    offset: float = 0.0,
    apart: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Two normal samples whose distributions differ: x [n, d] and y [m, d], or with a batch b.

    Args:
        n: Rows of x.
        m: Rows of y.
        d: Features.
        batch: b, for [b, n, d] and [b, m, d]; None for no batch.
        offset: Added to every value: how far from the origin the data lies, in its deviations.
        apart: Every other row of both samples is moved by this, along every feature.
        dtype: The float64 draws are rounded to it.
        device: Where the tensors end up; the draws are the same on every device.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)
    x, y = (
        torch.randn((*lead, rows, d), generator=generator, dtype=torch.float64) for rows in (n, m)
    )
    y = 0.8 * y + 0.5
    for z in (x, y):
        z += offset
        z[..., ::2, :] += apart
    return x.to(device, dtype), y.to(device, dtype)


def sample_weights(
    n: int,
    *,
    batch: int | None = None,
    total: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> Tensor:
    """Positive weights [n] or [b, n], unequal, that sum to `total`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n,) if batch is None else (batch, n)
    weights = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
    return (total * weights / weights.sum(-1, keepdim=True)).to(device, dtype)


def prototypes(
    b: int,
    k: int,
    d: int,
    *,
    offset: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples r [b, d], prototypes g [k, d], labels [b]; squared distances lie around 1.

    A label is the prototype its sample was drawn around, which need not be the nearest.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = math.sqrt(0.5 / d)
    g = spread * torch.randn(k, d, generator=generator, dtype=torch.float64) + offset
    labels = torch.randint(k, (b,), generator=generator)
    noise = 0.7 * spread * torch.randn(b, d, generator=generator, dtype=torch.float64)
    return (g[labels] + noise).to(device, dtype), g.to(device, dtype), labels.to(device)


def _strided(value: Tensor) -> Tensor:
    wide = value.repeat_interleave(2, -1)
    return wide[..., ::2]


def _permuted(value: Tensor) -> Tensor:
    order = tuple(reversed(range(value.dim())))
    return value.permute(order).contiguous().permute(order)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda value: value.contiguous(),
    "strided": _strided,
    "permuted": _permuted,
    "expanded": lambda value: value[..., :1, :].expand(value.shape),
}
"""Views to pass a kernel. All keep the values, but "expanded", which repeats the first row."""
