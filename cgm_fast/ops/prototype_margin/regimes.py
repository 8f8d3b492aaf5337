"""Regimes of the prototype margin loss: which kernels a problem takes, and an example of each.

Of samples drawn those are taken that lie clearly nearest to one prototype, and clearly on one side
of the margin of the others: every implementation then assigns, and cuts off, the same pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgm_fast.ops.prototype_margin.problem import Problem, Tangent, Wanted
from cgm_fast.ops.regimes import chosen, class_of, features_like, kind

ROWS, PROTOTYPES = (50, 700, 4500), (10, 100, 300)
"""Of examples; a prototype's gradient goes by both and d."""
MARGIN = 1.0
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
    wanted: tuple[bool, ...] = _BOTH
    """Gradients in r and in g."""
    tangents: tuple[bool, ...] = ()
    """Of hvp: which are there."""

    def __str__(self) -> str:
        """Such as "fwd float32 d=10 B=700 K=100"."""
        return described(self)


def described(regime: Any, *options: str) -> str:
    """The words of a regime of this op, or of cgm_loss, which has some options more."""
    words = [regime.step, kind(regime.dtype), f"d={regime.features}", f"B={regime.rows}",
             f"K={regime.prototypes}"]  # fmt: skip
    words += ["labels"] * (regime.labelled and regime.step == "fwd")
    words += options
    if regime.wanted != _BOTH:
        words.append(f"wanted={chosen('rg', regime.wanted)}")
    if regime.step == "hvp":
        words.append(f"along={chosen('rg', regime.tangents)}")
    return " ".join(words)


def regime_of(step: str, problem: Problem, *rest: Tangent | Wanted) -> Regime:
    """Of a problem, its tangent if the step is "hvp", and what is wanted."""
    (b, d), k = problem.r.shape, problem.g.shape[0]
    *tangent, wanted = rest
    return Regime(
        step, problem.r.dtype, features_like(d), class_of(b, ROWS), class_of(k, PROTOTYPES),
        problem.labels is not None, tuple(map(bool, wanted)),
        tuple(v is not None for v in tangent[0]) if tangent else (),
    )  # fmt: skip


def example(regime: Regime) -> tuple[Problem | Tangent | Wanted, ...]:
    """What the step is given, of such a problem; on the CPU."""
    generator = torch.Generator().manual_seed(0)
    b, k, d, dtype = regime.rows, regime.prototypes, regime.features, regime.dtype
    r, g = clear(b, k, d, dtype, generator)
    labels = torch.randint(k, (b,), generator=generator)
    problem = Problem(r, g, labels if regime.labelled else None, MARGIN, 0.75, 1.0 / b)
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


def clear(
    b: int, k: int, d: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """r [b, d], g [k, d] with squared distances about the margin, and none too near a decision."""
    spread = math.sqrt(0.5 / d)
    r, g = (
        (spread * torch.randn(rows, d, generator=generator, dtype=torch.float64)).to(dtype)
        for rows in (4 * b, k)
    )
    squares = torch.cdist(r.double(), g.double()).square()
    nearest = squares.topk(2, 1, largest=False).values
    gap = (nearest[:, 1] - nearest[:, 0]) / nearest[:, 1]
    off_margin = (squares - MARGIN).abs().amin(1) / MARGIN
    best = torch.minimum(gap, off_margin).topk(b).indices.sort().values
    return r[best], g


def every() -> Iterator[Regime]:
    """For a thorough check: each kernel, and each option in one."""
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for d, (b, k) in itertools.product((2, 10, 33, 64, 260), ((50, 10), (700, 100))):
            yield Regime("fwd", dtype, d, b, k)
        yield Regime("hvp", dtype, 10, 700, 100, True, tangents=_BOTH)
    usual = Regime("fwd", torch.float32, 64, 700, 10)
    yield usual._replace(rows=4500, prototypes=300)
    yield usual._replace(prototypes=300)
    for labelled, *wanted in itertools.product((False, True), repeat=3):
        yield usual._replace(labelled=labelled, wanted=tuple(wanted))
    for d, tangents in itertools.product((10, 68), ((True, False), (False, True))):
        yield Regime("hvp", torch.float32, d, 50, 10, True, tangents=tangents)
