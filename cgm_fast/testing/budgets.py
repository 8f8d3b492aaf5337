"""Error budgets: how far from its oracle a kernel's result may be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOSS_TOLERANCE = 1e-6
"""|L − L64| over the sum of the magnitudes of L's terms (`mmd_magnitude`), in float32."""
GRADIENT_TOLERANCE = 1e-5
"""‖g − g64‖ over ‖g64‖, in float32."""


def relative_l2(value: Tensor, oracle: Tensor) -> float:
    """‖value − oracle‖ / ‖oracle‖ in float64; 0 where both are zero."""
    error = float((value.double() - oracle.double()).norm())
    return error / float(oracle.double().norm()) if error else 0.0


def cosine(value: Tensor, oracle: Tensor) -> float:
    """The cosine of the angle between two tensors taken as vectors; 1 where they are equal."""
    a, b = value.double().flatten(), oracle.double().flatten()
    return 1.0 if torch.equal(a, b) else float(a @ b / (a.norm() * b.norm()))


def rounding(terms: int, dtype: torch.dtype = torch.float64) -> float:
    """What a sum of `terms` may lose, relative to its terms' magnitudes: 16 roundings for each.

    The bound for float64 results, for which no oracle is more exact: both sides round.
    """
    return 16 * terms * torch.finfo(dtype).eps


def assert_loss_close(
    value: Tensor, oracle: Tensor, magnitude: Tensor | float, tolerance: float = LOSS_TOLERANCE
) -> None:
    """Assert |L − L64| <= tolerance · magnitude, the sum of the magnitudes of L's terms.

    L is besides rounded to its dtype.
    """
    error = (value.double() - oracle.double()).abs()
    allowed = tolerance * torch.as_tensor(magnitude, dtype=torch.float64, device=error.device)
    allowed = allowed + torch.finfo(value.dtype).eps * oracle.double().abs()
    # Not `error > allowed`: a NaN must fail.
    assert bool((error <= allowed).all()), (
        f"loss {value.tolist()} is off its oracle {oracle.tolist()} by {error.tolist()}, "
        f"allowed {allowed.tolist()}"
    )


def assert_gradient_close(
    value: Tensor, oracle: Tensor, tolerance: float = GRADIENT_TOLERANCE
) -> None:
    """Assert ‖g − g64‖ <= tolerance · ‖g64‖, and the cosine that this implies.

    A half-precision gradient may be off by one rounding step of its own dtype besides.
    """
    assert value.shape == oracle.shape, f"shape {list(value.shape)}, not {list(oracle.shape)}"
    norm = float(oracle.double().norm())
    floor = 0.0
    if value.dtype in (torch.float16, torch.bfloat16):
        limits = torch.finfo(value.dtype)
        tolerance += limits.eps
        floor = limits.smallest_normal * limits.eps * math.sqrt(value.numel())  # subnormals
    error = float((value.double() - oracle.double()).norm())
    assert error <= tolerance * norm + floor, (
        f"gradient is off its oracle by {error:.3g} in norm, {error / max(norm, 1e-300):.3g} of "
        f"it; allowed {tolerance:.3g} and {floor:.3g}"
    )
    if floor < 0.1 * tolerance * norm:
        # |a − b| <= t|b| puts a within an angle of arcsin(t); t² covers the floor and rounding.
        assert cosine(value, oracle) >= 1 - tolerance**2 - 4 * torch.finfo(torch.float64).eps


def assert_error_budget(
    value: Tensor, oracle: Tensor, eager: Tensor, *, factor: float = 2.0
) -> None:
    """Assert that a kernel errs at most `factor` times as much as eager PyTorch, plus one rounding.

    Both in the largest element and in the L2 norm. The usual factors: 2 for values, 3 for
    gradients. One to a handful of elements get a second rounding: eager's error in so few is a
    lucky or unlucky draw, not a scale.

    Args:
        value: What the kernel computed.
        oracle: The formula in float64, from differences.
        eager: The formula in the dtype that the kernel computes in, by products.
        factor: How much worse than eager PyTorch a kernel may be.
    """
    step = torch.finfo(value.dtype).eps * (2 if value.numel() < 8 else 1)
    oracle = oracle.double()
    for name, norm in (
        ("largest", lambda t: float(t.abs().max())),
        ("L2", lambda t: float(t.norm())),
    ):
        error, reference = norm(value.double() - oracle), norm(eager.double() - oracle)
        allowed = factor * reference + step * norm(oracle)
        assert error <= allowed, (
            f"{name} error {error:.3g}, allowed {allowed:.3g} = {factor:g} x eager's "
            f"{reference:.3g} + a rounding step of {step * norm(oracle):.3g}"
        )
