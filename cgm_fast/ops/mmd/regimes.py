"""Regimes of MMD²: which kernels a problem takes, and a small example of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.ops.mmd.problem import Problem, Tangent, Wanted
from cgm_fast.ops.regimes import chosen, class_of, features_like, kind

ROWS = (60, 500, 2400)
"""Of all groups together. The last are for tensor cores, which need some 2100 on 132
multiprocessors and 2300 on 160."""
_SIGNS = {1: (1.0,), 2: (1.0, -1.0), 3: (1.0, -0.7, -0.3)}
_PARTS = ("first", "others", "weights", "relation", "variance")
_USUAL = (True, True, False, False, False)


class Regime(NamedTuple):
    """What of a problem decides which kernels run."""

    step: str
    dtype: torch.dtype
    features: int
    rows: int
    """One of ROWS."""
    groups: int = 2
    scales: int = 1
    kernel: str = "gaussian"
    equal: bool = True
    """Whether kernel weights add up to 1."""
    batch: bool = False
    stacked: bool = False
    """Whether the rows are one tensor."""
    weights: bool = False
    relation: bool = False
    variance: bool = False
    """Whether bandwidths are a tensor."""
    wanted: tuple[bool, ...] = _USUAL
    """Derivatives in the rows of the first group, of the others, in weights, relation, variance."""
    tangents: tuple[bool, ...] = ()
    """Of hvp: which are there, as `Tangent` has them."""

    def __str__(self) -> str:
        """Such as "hvp float32 d=10 rows=500 weights"."""
        words = [self.step, kind(self.dtype), f"d={self.features}", f"rows={self.rows}"]
        words += [self.kernel] * (self.kernel != "gaussian")
        words += [f"bandwidths={self.scales}"] * (self.scales > 1)
        words += [f"groups={self.groups}"] * (self.groups != 2)
        words += ["summed"] * (not self.equal)
        words += [name for name in ("batch", "stacked", "weights", "relation", "variance")
                  if getattr(self, name)]  # fmt: skip
        if self.wanted != _USUAL:
            words.append(f"wanted={chosen(_PARTS, self.wanted)}")
        if self.step == "hvp":
            words.append(f"along={chosen(Tangent._fields, self.tangents)}")
        return " ".join(words)


def regime_of(step: str, problem: Problem, *rest: Tangent | Wanted) -> Regime:
    """Of a problem, its tangent if the step is "hvp", and what is wanted."""
    x, y, weights, relation, variance, sizes, _, _, kernel_weights, kernel, _ = problem
    *tangent, wanted = rest
    assert isinstance(wanted, Wanted)
    (begin, end, *others), d = wanted, x.shape[-1]
    return Regime(
        step, x.dtype, features_like(d), class_of(sum(sizes), _rows(d, x.dtype)),
        min(len(sizes), 3), min(len(kernel_weights), 3), kernel,
        abs(sum(kernel_weights) - 1) < 1e-6, x.dim() == 3 and x.shape[0] > 1, y is None,
        weights is not None, relation is not None, variance is not None,
        (begin < min(sizes[0], end), end > max(sizes[0], begin), *others),
        tuple(v is not None for v in tangent[0]) if tangent else (),
    )  # fmt: skip


def _rows(d: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Of examples with d features."""
    return ROWS if d <= 64 and dtype != torch.float64 else ROWS[:2]


def example(regime: Regime) -> tuple[Any, ...]:
    """What the step is given, of such a problem; on the CPU."""
    generator = torch.Generator().manual_seed(0)
    b, d, groups, rows = 2 if regime.batch else 1, regime.features, regime.groups, regime.rows
    sizes = _sizes(rows, groups)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    group = torch.arange(groups).repeat_interleave(torch.tensor(sizes))
    z = normal(b, rows, d) * (1 - 0.2 * group[:, None]) + 0.5 * group[:, None]
    weights = 0.5 + torch.rand(b, rows, generator=generator, dtype=torch.float64)
    # Γ of an average of each group, or of weights about 1 / size.
    entries = [
        s * t / (1 if regime.weights else n * m)
        for s, n in zip(_SIGNS[groups], sizes, strict=True)
        for t, m in zip(_SIGNS[groups], sizes, strict=True)
    ]
    weights = weights / torch.tensor([float(size) for size in sizes])[group]
    variances = tuple(d * factor for factor in (1.0, 2.0, 0.5)[: regime.scales])
    items = 1 + 0.1 * torch.arange(b, dtype=torch.float64)[:, None]
    relation = items[:, :, None] * torch.tensor(entries).view(groups, groups).double()
    variance = items * torch.tensor(variances, dtype=torch.float64)
    compute, n = torch.promote_types(regime.dtype, torch.float32), sizes[0]
    z = z.to(regime.dtype)
    problem = Problem(
        z if regime.stacked else z[:, :n].contiguous(),
        None if regime.stacked else z[:, n:].contiguous(),
        weights.to(compute) if regime.weights else None,
        relation if regime.relation else None,
        variance.to(compute) if regime.variance else None,
        sizes,
        (0.0,) * groups**2 if regime.relation else tuple(entries),
        (1.0,) * regime.scales if regime.variance else variances,
        (1.0 / regime.scales if regime.equal else 1.25,) * regime.scales,
        regime.kernel, False,
    )  # fmt: skip
    records: tuple[Any, ...] = (problem, _wanted(regime, sizes))
    if regime.step == "hvp":
        of_relation = normal(b, groups, groups) * relation.abs()
        along = (
            normal(b, rows, d).to(compute), (normal(b, rows) * weights).to(compute),
            of_relation + of_relation.mT, (normal(b, regime.scales) * variance).to(compute),
        )  # fmt: skip
        given = (v if yes else None for v, yes in zip(along, regime.tangents, strict=True))
        records = problem, Tangent(*given), records[1]
    if not regime.batch:
        records = tuple(
            type(record)(*(v[0] if isinstance(v, Tensor) else v for v in record))
            for record in records
        )
    return records


def _sizes(rows: int, groups: int) -> tuple[int, ...]:
    """Unlike ones."""
    first = rows if groups == 1 else rows * 4 // 7
    return (first, rows - first) if groups == 2 else (first, 9, rows - first - 9)[:groups]


def _wanted(regime: Regime, sizes: tuple[int, ...]) -> Wanted:
    of_first, of_others, *parts = regime.wanted
    begin = 0 if of_first or not of_others else sizes[0]
    end = sum(sizes) if of_others else sizes[0] if of_first else 0
    return Wanted(begin, end, *parts)


def every() -> Iterator[Regime]:
    """For a thorough check: each kernel, and each option in two of them."""
    float32, both = torch.float32, (True, True)
    for dtype in (float32, torch.float64, torch.float16, torch.bfloat16):
        for d, rows in itertools.product((2, 10, 16, 33, 64, 68, 260), ROWS):
            if rows in _rows(d, dtype):
                yield Regime("fwd", dtype, d, rows)
        for d in (10, 68):
            yield Regime("hvp", dtype, d, ROWS[1], tangents=(True, False, False, False))
    for d in (10, 68):
        usual = Regime("fwd", float32, d, ROWS[1])
        for changed in (
            {"scales": 3}, {"scales": 3, "equal": False}, {"weights": True}, {"variance": True},
            {"relation": True}, {"batch": True}, {"stacked": True},
            {"groups": 1, "stacked": True, "wanted": (True, *(False,) * 4)},
            {"groups": 3, "stacked": True}, {"wanted": (False,) * 5},
            {"wanted": (True, *(False,) * 4)}, {"wanted": (False, True, *(False,) * 3)},
            {"weights": True, "wanted": (*both, True, False, False)},
            {"scales": 3, "wanted": (*both, False, False, True)},
            {"weights": True, "variance": True, "relation": True, "wanted": (True,) * 5},
        ):  # fmt: skip
            yield usual._replace(**changed)
        for name, family in FAMILIES.items():
            if name != "gaussian":
                yield usual._replace(kernel=name)
            if family.order == 2:
                yield Regime("hvp", float32, d, ROWS[0], kernel=name, weights=True,
                             wanted=(True,) * 5, tangents=(True,) * 4)  # fmt: skip
