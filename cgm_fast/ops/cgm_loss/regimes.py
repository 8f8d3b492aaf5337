"""Regimes of the CGM latent objective: which kernels a problem takes, and an example of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch

from cgm_fast.ops.cgm_loss.problem import Problem, Tangent, Wanted
from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.ops.prototype_margin.regimes import MARGIN, clear, described
from cgm_fast.ops.regimes import class_of, features_like

ROWS, PROTOTYPES = (50, 500, 1200), (10, 100)
"""Of examples: a batch for one launch of few blocks, of many, and one that is composed."""
_BOTH = (True, True)


class Regime(NamedTuple):
    """What of a problem decides which kernels run."""

    step: str
    dtype: torch.dtype
    features: int
    rows: int
    """One of ROWS."""
    prototypes: int
    """One of PROTOTYPES."""
    labelled: bool = False
    scales: int = 1
    kernel: str = "gaussian"
    detached: bool = False
    """Whether the MMD has no gradient in g."""
    wanted: tuple[bool, ...] = _BOTH
    """Gradients in r and in g."""
    tangents: tuple[bool, ...] = ()
    """Of hvp: which are there."""

    def __str__(self) -> str:
        """Such as "fwd float32 d=10 B=50 K=10 labels"."""
        return described(
            self,
            *[self.kernel] * (self.kernel != "gaussian"),
            *[f"bandwidths={self.scales}"] * (self.scales > 1),
            *["detached"] * self.detached,
        )


def regime_of(step: str, problem: Problem, *rest: Tangent | Wanted) -> Regime:
    """Of a problem, its tangent if the step is "hvp", and what is wanted."""
    (b, d), k = problem.r.shape, problem.g.shape[0]
    *tangent, wanted = rest
    return Regime(
        step, problem.r.dtype, features_like(d), class_of(b, ROWS), class_of(k, PROTOTYPES),
        problem.labels is not None, min(len(problem.variances), 3), problem.kernel,
        problem.detach_prior, tuple(map(bool, wanted)),
        tuple(v is not None for v in tangent[0]) if tangent else (),
    )  # fmt: skip


def example(regime: Regime) -> tuple[Problem | Tangent | Wanted, ...]:
    """What the step is given, of such a problem; on the CPU."""
    generator = torch.Generator().manual_seed(0)
    b, k, d, dtype = regime.rows, regime.prototypes, regime.features, regime.dtype
    r, g = clear(b, k, d, dtype, generator)
    labels = torch.randint(k, (b,), generator=generator)
    noise = torch.randn(2, b, d, generator=generator, dtype=torch.float64)
    problem = Problem(
        r, g, labels if regime.labelled else None, noise.to(dtype), 0.1, 0.2,
        30.0, 1.0, MARGIN, 0.75,
        tuple(factor for factor in (0.5, 1.0, 0.25)[: regime.scales]),
        (1.0 / regime.scales,) * regime.scales, regime.kernel, regime.detached,
    )  # fmt: skip
    wanted = Wanted(*regime.wanted)
    if regime.step == "fwd":
        return problem, wanted
    compute = torch.promote_types(dtype, torch.float32)
    along = (
        torch.randn(rows, d, generator=generator, dtype=torch.float64).to(compute)
        for rows in (b, k)
    )
    given = (v if yes else None for v, yes in zip(along, regime.tangents, strict=True))
    return problem, Tangent(*given), wanted


def every() -> Iterator[Regime]:
    """For a thorough check: each kernel, and each option in one."""
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for d, b in itertools.product((2, 10, 33, 64, 68, 260), ROWS[:2]):
            yield Regime("fwd", dtype, d, b, 10)
        yield Regime("hvp", dtype, 10, 50, 10, True, tangents=_BOTH)
    usual = Regime("fwd", torch.float32, 10, 50, 10)
    yield usual._replace(rows=ROWS[2])
    yield usual._replace(rows=ROWS[2], prototypes=100)
    yield usual._replace(rows=ROWS[1], prototypes=100)
    yield usual._replace(scales=3)
    yield usual._replace(detached=True)
    for name in FAMILIES:
        yield usual._replace(kernel=name)
    for labelled, *wanted in itertools.product((False, True), repeat=3):
        yield usual._replace(labelled=labelled, wanted=tuple(wanted))
    for d, detached in itertools.product((10, 68), (False, True)):
        yield Regime("hvp", torch.float32, d, 50, 10, True, detached=detached, tangents=_BOTH)
