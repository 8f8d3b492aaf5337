"""The definitions as double broadcasts that store every pair, and derivatives of any function.

In float64 they are the oracle; in the inputs' own dtype they are plain eager PyTorch, whose error
a kernel is measured against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


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
