"""What is measured: the shapes of every op, its inputs, and their results in float64.

Oracles are autograd through the formulas as printed, in float64, a block of rows at a time; at
these sizes the formulas of cgm_fast.testing, which store every pair d wide, would not fit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import floors
from cgm_fast.testing import cgm_formula, mmd_magnitude, prototypes, samples

BLOCK_BYTES = 64 << 20
"""Size of the largest float64 temporary in an oracle."""
GPU_BLOCK_BYTES = 512 << 20
FULL_PAIRS = 2e11
"""Of more pairs than this, an oracle of MMD takes a random part: in float64 the whole would take
minutes on a GPU."""
SAMPLED_ROWS = 8192
"""Rows of each sample that it takes then."""


BANDWIDTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Of the op with several, in units of sqrt(d)."""


class MMDShape(NamedTuple):
    """Two samples [n, d]."""

    n: int
    d: int


class PrototypeShape(NamedTuple):
    """Samples [b, d] and prototypes [k, d]."""

    b: int
    k: int
    d: int


class ProductShape(NamedTuple):
    """Rows and columns [n, d], and values [n, p]."""

    n: int
    d: int
    p: int


class Oracle(NamedTuple):
    """Results in float64."""

    loss: float
    magnitude: float
    """The magnitudes of the loss's terms before they cancel, what its error is measured by."""
    gradients: tuple[Tensor, ...]
    assignment: Tensor | None = None
    active: int = 0
    """Pairs of sample and prototype that have a gradient."""
    rows: tuple[Tensor, ...] | None = None
    """The rows that the gradients are of; None for all."""
    loss_deviation: float = 0.0
    """Standard deviation of the loss, where it is estimated from those rows."""


class Op(NamedTuple):
    """An op: its work, the shapes for every peer, those for some, and where inputs come from."""

    name: str
    work: Callable[..., floors.Work]
    """Of the plain algorithm: sizes, and `active` where pairs differ."""
    shapes: tuple[Any, ...]
    case: Callable[[Any, str], tuple[tuple[Tensor, ...], Oracle]]
    sweep: tuple[Any, ...] = ()
    sweep_peers: tuple[str, ...] = ()
    gpu_shapes: tuple[Any, ...] = ()
    """For every peer, on a GPU only."""
    gpu_last: tuple[Any, ...] = ()
    """For ours alone and after everything else: a call takes seconds on a GPU."""


def shape_id(shape: Any) -> str:
    """Such as n64-d10."""
    return "-".join(f"{name}{value}" for name, value in shape._asdict().items())


def block_rows(columns: int, device: torch.device) -> int:
    """Rows of a block with so many columns."""
    size = BLOCK_BYTES if device.type == "cpu" else GPU_BLOCK_BYTES
    return max(1, size // (8 * columns))


def mmd_oracle(x: Tensor, y: Tensor, bandwidths: tuple[float, ...] = (1.0,)) -> Oracle:
    """Eq. 5 with the kernel of eq. 7, biased; on the device where x and y are.

    Of more than FULL_PAIRS pairs only a random part, see `sampled_mmd_oracle`.

    Args:
        x: [n, d].
        y: [m, d].
        bandwidths: In units of sqrt(d); their kernels' mean is taken.
    """
    if (len(x) + len(y)) ** 2 > FULL_PAIRS and bandwidths == (1.0,):
        return sampled_mmd_oracle(x, y, SAMPLED_ROWS)
    x, y = (value.detach().double().requires_grad_() for value in (x, y))
    n, m, d = len(x), len(y), x.shape[1]
    loss = magnitude = 0.0
    for a, b, c in ((x, x, 1 / n**2), (y, y, 1 / m**2), (x, y, -2 / (n * m))):
        for rows in a.split(block_rows(len(b), b.device)):
            # By products: in float64 and this near the origin they lose nothing that matters.
            squares = rows.square().sum(1, keepdim=True) + b.square().sum(1)
            distance = (squares - 2 * rows @ b.T).clamp_min(0)
            kernels = [(distance / (-2 * d * unit**2)).exp().sum() for unit in bandwidths]
            block = c * torch.stack(kernels).mean()
            block.backward(retain_graph=True)
            loss += float(block.detach())
            magnitude += abs(c) * rows.shape[0] * len(b) - abs(float(block.detach()))
    assert x.grad is not None
    assert y.grad is not None
    return Oracle(loss, magnitude, (x.grad, y.grad))


def sampled_mmd_oracle(x: Tensor, y: Tensor, count: int) -> Oracle:
    """The same for `count` random rows of x and of y, against all rows.

    Their gradients are exact. The loss is a sum over rows, Σ_i (1/n²) Σ_j k(x_i, x_j) − (1/nm)
    Σ_j k(x_i, y_j) and likewise for y, so the rows taken also estimate it, with the standard
    deviation of such a draw: that finds a loss which is wrong, not one that is a little inexact.
    """
    x, y = (value.detach().double() for value in (x, y))
    generator = torch.Generator().manual_seed(2)
    loss = variance = magnitude = 0.0
    gradients, chosen = [], []
    for a, b in ((x, y), (y, x)):
        n, m, d = len(a), len(b), a.shape[1]
        chosen.append(torch.randperm(n, generator=generator)[:count].to(a.device))
        parts, values, magnitudes = [], [], []
        for block in a[chosen[-1]].split(block_rows(n + m, a.device)):
            rows = block.clone().requires_grad_()
            value = magnitude_of = torch.zeros(len(rows), dtype=a.dtype, device=a.device)
            for other, c in ((a, 1 / n**2), (b, -1 / (n * m))):
                squares = rows.square().sum(1, keepdim=True) + other.square().sum(1)
                distance = (squares - 2 * rows @ other.T).clamp_min(0)
                kernel = (distance / (-2 * d)).exp().sum(1)
                value = value + c * kernel
                magnitude_of = magnitude_of + abs(c) * (len(other) - kernel.detach())
            # A row stands in two places of the double sum: as i and as j.
            parts.append(torch.autograd.grad(2 * value.sum(), rows)[0])
            values.append(value.detach())
            magnitudes.append(magnitude_of)
        value = torch.cat(values)
        loss += n * float(value.mean())
        variance += n**2 * float(value.var()) / len(value)
        magnitude += n * float(torch.cat(magnitudes).mean())
        gradients.append(torch.cat(parts))
    return Oracle(
        loss, magnitude, tuple(gradients), rows=tuple(chosen), loss_deviation=math.sqrt(variance)
    )


def product_oracle(x: Tensor, y: Tensor, v: Tensor, cotangent: Tensor) -> Oracle:
    """⟨c, K v⟩ with the kernel of eq. 7; on the device where x [n, d], y [m, d], v [m, p] are."""
    x, y, v = (value.detach().double().requires_grad_() for value in (x, y, v))
    loss = magnitude = 0.0
    size = block_rows(len(y), y.device)
    for rows, of_rows in zip(x.split(size), cotangent.double().split(size), strict=True):
        squares = rows.square().sum(1, keepdim=True) + y.square().sum(1)
        kernel = torch.exp((squares - 2 * rows @ y.T) / (-2 * x.shape[1]))
        block = (of_rows * (kernel @ v)).sum()
        block.backward(retain_graph=True)
        loss += float(block.detach())
        magnitude += float((of_rows.abs() * (kernel.detach() @ v.detach().abs())).sum())
    assert x.grad is not None
    assert y.grad is not None
    assert v.grad is not None
    return Oracle(loss, magnitude, (x.grad, y.grad, v.grad))


def margin_oracle(r: Tensor, g: Tensor, margin: float = 1.0) -> Oracle:
    """Eq. 8 with the nearest prototypes; on the device where r and g are."""
    r, g = (value.detach().double().requires_grad_() for value in (r, g))
    loss = magnitude = 0.0
    active = 0
    assignments = []
    for rows in r.split(block_rows(g.numel(), g.device)):
        distance = (rows[:, None] - g).square().sum(2)
        nearest = distance.argmin(1)
        own = torch.nn.functional.one_hot(nearest, len(g)).bool()
        hinge = (margin - distance).relu().masked_fill(own, 0)
        block = (distance[own].sum() + hinge.sum()) / len(r)
        block.backward(retain_graph=True)
        loss += float(block.detach())
        of_hinge = (margin + distance.detach())[hinge > 0].sum()
        magnitude += float(distance.detach()[own].sum() + of_hinge) / len(r)
        active += len(rows) + int((hinge > 0).sum())
        assignments.append(nearest)
    assert r.grad is not None
    assert g.grad is not None
    return Oracle(loss, magnitude, (r.grad, g.grad), torch.cat(assignments), active)


def clear_prototypes(
    b: int, k: int, d: int, margin: float = 1.0, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Samples and prototypes with no distance so near the margin, or another, that rounding rules.

    There both one-sided gradients, or both assignments, are right; without such pairs every
    implementation can be held to one answer.
    """
    near = 1e-5
    r, g, _ = prototypes(b + b // 4 + 64, k, d, device=device)
    clear = []
    for rows in r.double().split(block_rows(g.numel(), g.device)):
        distance = (rows[:, None] - g.double()).square().sum(2)
        nearest = distance.topk(2, dim=1, largest=False).values
        clear.append(
            ((distance - margin).abs().amin(1) > near) & (nearest[:, 1] - nearest[:, 0] > near)
        )
    chosen = torch.cat(clear).nonzero().flatten()[:b]
    assert len(chosen) == b, f"only {len(chosen)} of {b} samples are clear of the margin"
    return r[chosen], g


@functools.lru_cache(maxsize=1)
def mmd_case(shape: MMDShape, device: str) -> tuple[tuple[Tensor, ...], Oracle]:
    x, y = samples(shape.n, shape.n, shape.d, device=device)
    return (x, y), mmd_oracle(x, y)


@functools.lru_cache(maxsize=1)
def mmd_bandwidths_case(shape: MMDShape, device: str) -> tuple[tuple[Tensor, ...], Oracle]:
    x, y = samples(shape.n, shape.n, shape.d, device=device)
    return (x, y), mmd_oracle(x, y, BANDWIDTHS)


@functools.lru_cache(maxsize=1)
def kernel_product_case(shape: ProductShape, device: str) -> tuple[tuple[Tensor, ...], Oracle]:
    x, y = samples(shape.n, shape.n, shape.d, device=device)
    generator = torch.Generator().manual_seed(1)
    v, cotangent = torch.randn((2, shape.n, shape.p), generator=generator).to(device)
    return (x, y, v, cotangent), product_oracle(x, y, v, cotangent)


@functools.lru_cache(maxsize=1)
def prototype_margin_case(shape: PrototypeShape, device: str) -> tuple[tuple[Tensor, ...], Oracle]:
    r, g = clear_prototypes(*shape, device=device)
    return (r, g), margin_oracle(r, g)


@functools.lru_cache(maxsize=1)
def cgm_loss_case(shape: PrototypeShape, device: str) -> tuple[tuple[Tensor, ...], Oracle]:
    return of_cgm_loss(shape, device, *clear_prototypes(*shape))


@functools.lru_cache(maxsize=1)
def collapsed_case(shape: PrototypeShape, device: str) -> tuple[tuple[Tensor, ...], Oracle]:
    """A batch whose samples all have the same nearest prototype, as an untrained encoder's have."""
    r, g = clear_prototypes(*shape)
    first = (r.double()[:, None] - g.double()).square().sum(2).argmin(1) == 0
    away = g.clone()
    away[1:] += 10.0  # beyond the margin of all samples
    assert first.any()
    return of_cgm_loss(shape, device, r[first][torch.arange(len(r)) % int(first.sum())], away)


def of_cgm_loss(
    shape: PrototypeShape, device: str, r: Tensor, g: Tensor
) -> tuple[tuple[Tensor, ...], Oracle]:
    """A batch's inputs on the device, with its noise, and what it gives in float64."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn((2, shape.b, shape.d), generator=generator)
    leaves = [value.double().requires_grad_() for value in (r, g)]
    loss, _, _, assignment, z = cgm_formula(*leaves, None, noise)
    gradients = torch.autograd.grad(loss, leaves)
    prior = g.double()[assignment] + math.sqrt(0.02) * noise[1].double()
    of_mmd = mmd_magnitude(z.detach(), prior, sigma=[math.sqrt(shape.d)])
    of_margin = margin_oracle(r, g)
    magnitude = 1000 * float(of_mmd) + of_margin.magnitude
    oracle = Oracle(
        float(loss.detach()),
        magnitude,
        tuple(part.to(device) for part in gradients),
        assignment.to(device),
        of_margin.active,
    )
    return (r.to(device), g.to(device), noise.to(device)), oracle


# In the order of their work: what a slow peer will take is foretold from what it took before.
MMD = Op(
    "mmd",
    floors.mmd,
    tuple(
        MMDShape(*shape)
        for shape in (
            (64, 10), (256, 10), (1024, 10), (1024, 64), (4096, 10), (4096, 64), (16384, 10),
            (4096, 300),
        )
    ),
    mmd_case,
    sweep=tuple(MMDShape(4096, d) for d in (2, 4, 16, 32, 128, 512, 1024)),
    sweep_peers=("tiled", "sdpa"),
    gpu_shapes=tuple(
        MMDShape(*shape)
        for shape in (
            (64, 64), (256, 64), (1024, 65), (1024, 300), (1024, 768), (1024, 2048), (10000, 10),
            (10000, 64), (16384, 2), (16384, 16), (16384, 64), (16384, 65), (16384, 300),
            (16384, 768), (16384, 2048), (65536, 2), (65536, 10), (65536, 64),
            (65536, 300), (131072, 2), (131072, 10), (131072, 64),
        )
    ),
    gpu_last=(MMDShape(10**6, 10),),
)  # fmt: skip
# Features of networks, CLIP and ResNet for example, and of gene expression.
MMD_WIDE = Op(
    "mmd_wide",
    floors.mmd,
    tuple(MMDShape(n, d) for n in (64, 256, 1024, 4096) for d in (256, 512, 768, 1024, 2048, 4096)),
    mmd_case,
)
PROTOTYPE_MARGIN = Op(
    "prototype_margin",
    floors.prototype_margin,
    tuple(
        PrototypeShape(*shape)
        for shape in (
            (64, 10, 10), (256, 10, 300), (256, 100, 600), (4096, 100, 64), (65536, 100, 10),
            (256, 1000, 512), (256, 1000, 1024), (256, 1000, 2048), (16384, 1000, 64),
        )
    ),
    prototype_margin_case,
    # As flash-kmeans measures its assignment.
    gpu_shapes=tuple(
        PrototypeShape(*shape)
        for shape in ((2**17, 1024, 64), (2**20, 1024, 64), (2**20, 1024, 128))
    ),
)  # fmt: skip
KERNEL_PRODUCT = Op(
    "kernel_product",
    floors.kernel_product,
    tuple(
        ProductShape(*shape)
        for shape in (
            (64, 10, 1), (1024, 10, 1), (1024, 10, 10), (1024, 300, 10), (2048, 64, 64),
            (8192, 10, 1),
        )
    ),
    kernel_product_case,
    gpu_shapes=tuple(
        ProductShape(*shape)
        for shape in (
            (1024, 64, 64), (16384, 10, 1), (16384, 64, 64), (16384, 300, 10), (65536, 3, 1),
        )
    ),
)  # fmt: skip
# The paper's batch sizes, categories and latent sizes.
CGM_LOSS = Op(
    "cgm_loss",
    floors.cgm_loss,
    tuple(
        PrototypeShape(*shape)
        for shape in (
            (64, 10, 2), (64, 10, 10), (100, 10, 300), (256, 100, 600), (256, 1000, 512),
            (256, 1000, 1024), (256, 1000, 2048),
        )
    ),
    cgm_loss_case,
    gpu_shapes=tuple(
        PrototypeShape(*shape)
        for shape in ((256, 10, 10), (1024, 10, 10), (1024, 100, 10), (1024, 10, 64))
    ),
)  # fmt: skip
MMD_BANDWIDTHS = Op(
    "mmd_bandwidths",
    floors.mmd_bandwidths(len(BANDWIDTHS)),
    (MMDShape(256, 10), MMDShape(1024, 64)),
    mmd_bandwidths_case,
    gpu_shapes=(MMDShape(4096, 10), MMDShape(16384, 10), MMDShape(16384, 64)),
)
CGM_LOSS_COLLAPSED = CGM_LOSS._replace(
    name="cgm_loss_collapsed",
    shapes=(PrototypeShape(64, 10, 10),),
    case=collapsed_case,
    gpu_shapes=(PrototypeShape(256, 10, 10), PrototypeShape(1024, 10, 10)),
)
