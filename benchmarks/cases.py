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


class MMDShape(NamedTuple):
    """Two samples [n, d]."""

    n: int
    d: int


class PrototypeShape(NamedTuple):
    """Samples [b, d] and prototypes [k, d]."""

    b: int
    k: int
    d: int


class Oracle(NamedTuple):
    """Results in float64."""

    loss: float
    magnitude: float
    """The magnitudes of the loss's terms before they cancel, what its error is measured by."""
    gradients: tuple[Tensor, ...]
    assignment: Tensor | None = None
    active: int = 0
    """Pairs of sample and prototype that have a gradient."""


class Op(NamedTuple):
    """An op: its work, the shapes for every peer, those for some, and where inputs come from."""

    name: str
    work: Callable[..., floors.Work]
    """Of the plain algorithm: sizes, and `active` where pairs differ."""
    shapes: tuple[Any, ...]
    case: Callable[[Any, str], tuple[tuple[Tensor, ...], Oracle]]
    sweep: tuple[Any, ...] = ()
    sweep_peers: tuple[str, ...] = ()


def shape_id(shape: Any) -> str:
    """Such as n64-d10."""
    return "-".join(f"{name}{value}" for name, value in shape._asdict().items())


def mmd_oracle(x: Tensor, y: Tensor) -> Oracle:
    """Eq. 5 with the kernel of eq. 7, biased."""
    x, y = (value.detach().double().requires_grad_() for value in (x, y))
    n, m, d = len(x), len(y), x.shape[1]
    loss = magnitude = 0.0
    for a, b, c in ((x, x, 1 / n**2), (y, y, 1 / m**2), (x, y, -2 / (n * m))):
        for rows in a.split(max(1, BLOCK_BYTES // (8 * len(b)))):
            # By products: in float64 and this near the origin they lose nothing that matters.
            squares = rows.square().sum(1, keepdim=True) + b.square().sum(1)
            distance = (squares - 2 * rows @ b.T).clamp_min(0)
            block = c * (distance / (-2 * d)).exp().sum()
            block.backward(retain_graph=True)
            loss += float(block.detach())
            magnitude += abs(c) * rows.shape[0] * len(b) - abs(float(block.detach()))
    assert x.grad is not None
    assert y.grad is not None
    return Oracle(loss, magnitude, (x.grad, y.grad))


def margin_oracle(r: Tensor, g: Tensor, margin: float = 1.0) -> Oracle:
    """Eq. 8 with the nearest prototypes."""
    r, g = (value.detach().double().requires_grad_() for value in (r, g))
    loss = magnitude = 0.0
    active = 0
    assignments = []
    for rows in r.split(max(1, BLOCK_BYTES // (8 * g.numel()))):
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


def clear_prototypes(b: int, k: int, d: int, margin: float = 1.0) -> tuple[Tensor, Tensor]:
    """Samples and prototypes with no distance so near the margin, or another, that rounding rules.

    There both one-sided gradients, or both assignments, are right; without such pairs every
    implementation can be held to one answer.
    """
    near = 1e-5
    r, g, _ = prototypes(b + b // 4 + 64, k, d)
    clear = []
    for rows in r.double().split(max(1, BLOCK_BYTES // (8 * g.numel()))):
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
def prototype_margin_case(shape: PrototypeShape, device: str) -> tuple[tuple[Tensor, ...], Oracle]:
    r, g = (value.to(device) for value in clear_prototypes(*shape))
    return (r, g), margin_oracle(r, g)


@functools.lru_cache(maxsize=1)
def cgm_step_case(shape: PrototypeShape, device: str) -> tuple[tuple[Tensor, ...], Oracle]:
    r, g = clear_prototypes(*shape)
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
)  # fmt: skip
PROTOTYPE_MARGIN = Op(
    "prototype_margin",
    floors.prototype_margin,
    tuple(
        PrototypeShape(*shape)
        for shape in (
            (64, 10, 10), (256, 10, 300), (4096, 100, 64), (65536, 100, 10), (16384, 1000, 64),
        )
    ),
    prototype_margin_case,
)  # fmt: skip
# The paper's batch sizes, categories and latent sizes.
CGM_STEP = Op(
    "cgm_step",
    floors.cgm_step,
    tuple(
        PrototypeShape(*shape)
        for shape in ((64, 10, 2), (64, 10, 10), (100, 10, 300), (256, 100, 600))
    ),
    cgm_step_case,
)
