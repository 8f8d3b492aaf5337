"""Regimes of a kernel product: which kernels a problem takes, and a small example of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cgm_fast.ops.kernel_product.problem import Problem, Wanted
from cgm_fast.ops.mmd.kernels import FAMILIES
from cgm_fast.ops.regimes import chosen, class_of, features_like, kind

ROWS, COLUMNS = (50, 400), (60, 500, 9000)
"""Of examples; with few rows blocks share the columns."""
VALUES = (1, 8, 17, 70)
"""Of a row: one, a few, and more than are held at once."""
_EVERYTHING = (True, True, False)


class Regime(NamedTuple):
    """What of a problem decides which kernels run."""

    step: str
    dtype: torch.dtype
    features: int
    rows: int
    """One of ROWS."""
    columns: int
    """One of COLUMNS."""
    values: int
    """One of VALUES."""
    scales: int = 1
    kernel: str = "gaussian"
    equal: bool = True
    """Whether kernel weights add up to 1."""
    batch: bool = False
    variance: bool = False
    """Whether bandwidths are a tensor."""
    u: bool = True
    wanted: tuple[bool, ...] = _EVERYTHING
    """The product, the derivatives in x and in the bandwidths."""

    def __str__(self) -> str:
        """Such as "fwd float32 d=10 n=400 m=500 p=8"."""
        words = [self.step, kind(self.dtype), f"d={self.features}", f"n={self.rows}",
                 f"m={self.columns}", f"p={self.values}"]  # fmt: skip
        words += [self.kernel] * (self.kernel != "gaussian")
        words += [f"bandwidths={self.scales}"] * (self.scales > 1)
        words += ["summed"] * (not self.equal)
        words += [name for name in ("batch", "variance") if getattr(self, name)]
        if self.wanted != _EVERYTHING:
            words.append(f"wanted={chosen(Wanted._fields, self.wanted)}")
        return " ".join(words)


def regime_of(step: str, problem: Problem, wanted: Wanted) -> Regime:
    """Of a problem and what is wanted."""
    x, y, u, v, variance, _, kernel_weights, kernel = problem
    return Regime(
        step, x.dtype, features_like(x.shape[-1]), class_of(x.shape[-2], ROWS),
        class_of(y.shape[-2], COLUMNS), class_of(v.shape[-1], VALUES), min(len(kernel_weights), 3),
        kernel, abs(sum(kernel_weights) - 1) < 1e-6, x.dim() == 3 and x.shape[0] > 1,
        variance is not None, u is not None, tuple(map(bool, wanted)),
    )  # fmt: skip


def example(regime: Regime) -> tuple[Problem, Wanted]:
    """What the step is given, of such a problem; on the CPU."""
    generator = torch.Generator().manual_seed(0)
    b, n, m = 2 if regime.batch else 1, regime.rows, regime.columns
    d, p, dtype = regime.features, regime.values, regime.dtype

    def normal(*shape: int) -> Tensor:
        out = torch.randn(b, *shape, generator=generator, dtype=torch.float64).to(dtype)
        return out if regime.batch else out[0]

    compute = torch.promote_types(dtype, torch.float32)
    variances = tuple(d * factor for factor in (1.0, 2.0, 0.5)[: regime.scales])
    items = 1 + 0.1 * torch.arange(b, dtype=torch.float64)[:, None]
    variance = (items * torch.tensor(variances, dtype=torch.float64)).to(compute)
    problem = Problem(
        normal(n, d), normal(m, d) * 0.8 + 0.5, normal(n, p) if regime.u else None, normal(m, p),
        None if not regime.variance else variance if regime.batch else variance[0],
        (1.0,) * regime.scales if regime.variance else variances,
        (1.0 / regime.scales if regime.equal else 1.25,) * regime.scales, regime.kernel,
    )  # fmt: skip
    return problem, Wanted(*regime.wanted)


def every() -> Iterator[Regime]:
    """For a thorough check: each kernel, and each option in two."""
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for d, p in itertools.product((2, 10, 33, 64, 68, 260), VALUES):
            if d in (10, 68) or p == VALUES[1]:
                yield Regime("fwd", dtype, d, ROWS[1], COLUMNS[1], p)
    yield Regime("fwd", torch.float32, 10, ROWS[0], COLUMNS[2], 1)
    for d in (10, 68):
        usual = Regime("fwd", torch.float32, d, ROWS[0], COLUMNS[0], 8)
        for changed in (
            {"scales": 3}, {"equal": False}, {"variance": True}, {"batch": True},
            {"u": False, "wanted": (True, False, False)}, {"wanted": (False, True, False)},
            {"scales": 3, "variance": True, "wanted": (True, True, True)},
            {"wanted": (False, False, True)},
        ):  # fmt: skip
            yield usual._replace(**changed)
        for name in FAMILIES:
            yield usual._replace(kernel=name)
