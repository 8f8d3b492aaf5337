"""For testing kernels, ours or yours: inputs, formulas in float64, error budgets, poisoned memory.

The formulas are the definitions, written as double broadcasts that store every pair. In float64
they are the oracle; in the inputs' own dtype they are plain eager PyTorch, whose error a kernel is
measured against. Nothing here calls the rest of the package.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

LOSS_TOLERANCE = 1e-6
"""|L − L64| over the sum of the magnitudes of L's terms (`mmd_magnitude`), in float32."""
GRADIENT_TOLERANCE = 1e-5
"""‖g − g64‖ over ‖g64‖, in float32."""


# Inputs


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


# Formulas


def _pairs(a: Tensor, b: Tensor, by_product: bool = False) -> Tensor:
    """|a_i − b_j|², [..., n, m], from plain differences or from a matrix product."""
    if by_product:
        squares = a.square().sum(-1, keepdim=True) + b.square().sum(-1).unsqueeze(-2)
        return (squares - 2 * a @ b.mT).clamp_min(0)
    return (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)


def _mmd_blocks(
    x: Tensor,
    y: Tensor,
    sigma: Tensor | Sequence[float],
    estimator: str,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    kernel_agg: str,
    dtype: torch.dtype,
    by_product: bool = False,
    phi: Callable[[Tensor], Tensor] = torch.exp,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Coefficients c_ij and kernel values k_ij = phi(−u_ij / 2σ²) of the blocks xx, yy and xy."""
    x, y = x.to(dtype), y.to(dtype)
    sigma = torch.as_tensor(sigma, dtype=dtype, device=x.device)
    sigma = sigma if sigma.dim() == 2 else sigma.reshape(1, -1)  # [b or 1, s]
    if x.dim() == 2:
        sigma = sigma[0]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        h = sigma.square()[..., None, None]
        k = phi(-_pairs(a, b, by_product).unsqueeze(-3) / (2 * h))  # [..., s, n, m]
        return k.mean(-3) if kernel_agg == "mean" else k.sum(-3)

    weights = []
    for z, given in ((x, x_weights), (y, y_weights)):
        uniform = torch.full(z.shape[-2:-1], 1 / z.shape[-2], dtype=dtype, device=z.device)
        weights.append(uniform if given is None else given.to(dtype))
    for z, w in ((x, weights[0]), (y, weights[1])):
        c = w.unsqueeze(-1) * w.unsqueeze(-2)
        if estimator == "unbiased":
            off = 1 - torch.eye(z.shape[-2], dtype=dtype, device=z.device)
            total = w.sum(-1)
            rest = total.square() - w.square().sum(-1)
            c = c * off * (total.square() / rest)[..., None, None]
        yield c, kernel(z, z)
    yield -2 * weights[0].unsqueeze(-1) * weights[1].unsqueeze(-2), kernel(x, y)


def mmd_formula(
    x: Tensor,
    y: Tensor,
    *,
    sigma: Tensor | Sequence[float],
    estimator: str = "biased",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    kernel_agg: str = "mean",
    dtype: torch.dtype = torch.float64,
    by_product: bool = False,
) -> Tensor:
    """Eq. 5 with the Gaussian kernel of eq. 7, as printed: [] or [b]. Stores every pair, d wide.

    Args:
        x: [n, d] or [b, n, d].
        y: [m, d] or [b, m, d].
        sigma: Bandwidths, [s] or [b, s].
        estimator: "biased" or "unbiased" (i = j left out, the rest scaled to the same mass).
        x_weights: [n] or [b, n], in place of 1/n.
        y_weights: [m] or [b, m], in place of 1/m.
        kernel_agg: "mean" or "sum" over bandwidths.
        dtype: To compute in; float64 makes it the oracle.
        by_product: Squared distances as |a|² + |b|² − 2ab, which stores only n x m: what eager
            code does in practice, and so what a kernel's error is measured against.
    """
    blocks = _mmd_blocks(
        x, y, sigma, estimator, x_weights, y_weights, kernel_agg, dtype, by_product
    )
    return torch.stack([(c * k).sum((-2, -1)) for c, k in blocks]).sum(0)


def mmd_magnitude(
    x: Tensor,
    y: Tensor,
    *,
    sigma: Tensor | Sequence[float],
    estimator: str = "biased",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    kernel_agg: str = "mean",
) -> Tensor:
    """Σ |c_ij| min(1 − k_ij, k_ij max(1, t_ij)): what the error of a loss is measured by.

    With t = u / 2σ², the kernel's exponent: a relative error ε of u changes k by k t ε, which is
    less than (1 − k) ε and, of a pair far apart, more than k ε. In float64, [] or [b]; arguments as
    in `mmd_formula`. Beside it the loss may be rounded to its own dtype (`assert_loss_close`).

    Not for samples in clusters much narrower than a bandwidth and farther apart than one: their
    distances may come from |a|² + |b|² − 2ab, and `mmd_total` is the measure.
    """

    def size(exponent: Tensor) -> Tensor:
        far = exponent.exp() * (-exponent).clamp_min(1)
        return torch.minimum(-torch.expm1(exponent), far)

    blocks = _mmd_blocks(
        x, y, sigma, estimator, x_weights, y_weights, kernel_agg, torch.float64, phi=size
    )
    sizes = [(c.abs() * k).sum((-2, -1)) for c, k in blocks]
    return torch.stack(sizes).sum(0)


def mmd_total(
    x: Tensor,
    y: Tensor,
    *,
    sigma: Tensor | Sequence[float],
    estimator: str = "biased",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    kernel_agg: str = "mean",
) -> Tensor:
    """Σ |c_ij| |k_ij − 1|, no less than `mmd_magnitude`; in float64, differentiable.

    The error of every loss is within the tolerance of it, also where samples lie in clusters.
    Its derivative in a bandwidth or a (positive) weight is, up to sign, what the error of the
    loss's derivative in that is measured by: the same sum of its terms' magnitudes.
    """
    blocks = _mmd_blocks(
        x, y, sigma, estimator, x_weights, y_weights, kernel_agg, torch.float64, phi=torch.expm1
    )
    return torch.stack([(c.abs() * -k).sum((-2, -1)) for c, k in blocks]).sum(0)


def prototype_margin_formula(
    r: Tensor,
    g: Tensor,
    labels: Tensor | None = None,
    *,
    margin: float = 1.0,
    negatives: str = "sum",
    reduction: str = "mean",
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Eq. 8 as printed: loss [] and assignment [B]. Stores every pair, d wide."""
    distance = _pairs(r.to(dtype), g.to(dtype))  # [B, k]
    assignment = distance.argmin(1) if labels is None else labels
    own = torch.nn.functional.one_hot(assignment.long(), g.shape[0]).bool()
    hinge = (margin - distance).relu().masked_fill(own, 0).sum(1)  # on the margin: no slope
    if negatives == "mean":
        hinge = hinge / (g.shape[0] - 1)
    loss = distance[own] + hinge
    return loss.mean() if reduction == "mean" else loss.sum(), assignment


def cgm_formula(
    r: Tensor,
    g: Tensor,
    labels: Tensor | None,
    noise: Tensor,
    *,
    sigma2: float = 0.02,
    prior_sigma2: float | None = None,
    mmd_weight: float = 1000.0,
    margin_weight: float = 1.0,
    margin: float = 1.0,
    sigma: Sequence[float] | None = None,
    kernel_agg: str = "mean",
    negatives: str = "sum",
    detach_prior: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Eq. 6 less its first term: loss [], MMD² [], margin loss [], assignment [B], z [B, d]."""
    r, g, noise = r.to(dtype), g.to(dtype), noise.to(dtype)
    sigma = (math.sqrt(r.shape[1]),) if sigma is None else sigma
    tau2 = sigma2 if prior_sigma2 is None else prior_sigma2
    pull, k = prototype_margin_formula(
        r, g, labels, margin=margin, negatives=negatives, dtype=dtype
    )
    z = r + math.sqrt(sigma2) * noise[0]
    centres = g.detach() if detach_prior else g
    prior = centres[k] + math.sqrt(tau2) * noise[1]
    mmd = mmd_formula(z, prior, sigma=sigma, kernel_agg=kernel_agg, dtype=dtype)
    return mmd_weight * mmd + margin_weight * pull, mmd, pull, k, z


def derivatives(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    order: int = 2,
    seed: int = 0,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Value, gradient, and the Hessian applied to random directions, of a sum over a batch.

    Args:
        function: Takes the inputs, returns a tensor; its sum is differentiated.
        inputs: Where to evaluate. Copies of them require a gradient.
        order: 1 leaves out the Hessian's product.
        seed: Of the directions, one normal tensor for each input.

    Returns:
        The function's value, a gradient for each input, a product for each input.
    """
    inputs = [value.detach().requires_grad_() for value in inputs]
    value = function(*inputs)
    gradient = torch.autograd.grad(value.sum(), inputs, create_graph=order > 1)
    if order < 2:
        return value.detach(), list(gradient), []
    generator = torch.Generator().manual_seed(seed)
    along = [
        torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part)
        for part in gradient
    ]
    product = torch.autograd.grad(gradient, inputs, along, materialize_grads=True)
    return value.detach(), [part.detach() for part in gradient], list(product)


# Error budgets


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


# Poisoned memory


@contextmanager
def poisoned_memory(package: str) -> Iterator[None]:
    """Fill what `torch.empty`, `empty_like` and `new_empty` give the package's modules with NaN.

    Integers become the lowest number of their type. So an output that a kernel did not write is
    seen. Calls from other modules, and calls while torch.compile traces, are left alone.
    """

    def poison(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(allocate)
        def poisoned(*args: Any, **kwargs: Any) -> Tensor:
            out = allocate(*args, **kwargs)
            if torch.compiler.is_compiling() or type(out) is not Tensor or out.is_meta:
                return out
            frame = sys._getframe(1)
            while frame.f_back is not None and frame.f_globals is globals():  # nested poison
                frame = frame.f_back
            caller = frame.f_globals.get("__name__", "")
            if caller == package or caller.startswith(package + "."):
                with torch.no_grad():
                    out.fill_(_poison_of(out.dtype))
            return out

        return poisoned

    with torch.device("cpu"):  # torch notes once what its default device is for: the true functions
        torch.empty(0)
    owners: list[tuple[Any, str]]
    owners = [(torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")]
    saved = [vars(owner).get(name) for owner, name in owners]
    for owner, name in owners:
        setattr(owner, name, poison(getattr(owner, name)))
    try:
        yield
    finally:
        for (owner, name), allocate in zip(owners, saved, strict=True):
            if allocate is None:  # inherited
                delattr(owner, name)
            else:
                setattr(owner, name, allocate)


def _poison_of(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    if dtype is torch.bool:
        return True
    return torch.iinfo(dtype).min or torch.iinfo(dtype).max
