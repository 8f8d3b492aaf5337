"""Where importance sampling draws the latents of an image from: Gaussians, and a t at the mode.

The encoder's N(r, σ²) is a poor likeness of p(z given x) once σ² is fixed: the posterior is
narrower along some directions and wider along others. A multivariate t around the posterior's mode,
with the precision of a Laplace approximation, has both, and tails that are heavier than any
posterior with a Gaussian prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cgm_fast.cgm.models.base import LatentModel
from cgm_fast.cgm.models.prior import Mixture

DEGREES = 8.0  # of freedom of the t
ROUNDS, STEPS = 3, 4  # of a new Jacobian, and with one
MANY = 64  # dimensions, from which on Jacobians cost too much for more than one round
JACOBIAN = 1 << 25  # its elements at once


class Component(Protocol):
    """A density of latents [N] to draw from; everything in float64."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, N]."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Of z [S, N]: [S]."""


@dataclass(frozen=True)
class Normal:
    """N(mean, diag variance), both [N]."""

    mean: Tensor
    variance: Tensor

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, N]."""
        return self.mean + self.variance.sqrt() * _randn(count, self.mean, generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """Of z [S, N]: [S]."""
        squares = (z - self.mean).square() / self.variance
        return -0.5 * (squares + torch.log(2 * math.pi * self.variance)).sum(-1)


@dataclass(frozen=True)
class StudentT:
    """A multivariate t around a mode [N]; factor [N, N] is its precision's Cholesky factor."""

    mode: Tensor
    factor: Tensor

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, N]."""
        noise = _randn(count, self.mode, generator)
        steps = torch.linalg.solve_triangular(self.factor.T, noise.T, upper=True).T
        # χ² of an even number of degrees is a sum of squared normal deviates.
        squares = torch.randn(
            count, int(DEGREES), device=noise.device, dtype=noise.dtype, generator=generator
        ).square()
        return self.mode + steps * (DEGREES / squares.sum(1, keepdim=True)).sqrt()

    def log_prob(self, z: Tensor) -> Tensor:
        """Of z [S, N]: [S]."""
        n = z.shape[1]
        squares = ((z - self.mode) @ self.factor).square().sum(1)
        constant = math.lgamma((DEGREES + n) / 2) - math.lgamma(DEGREES / 2)
        constant -= 0.5 * n * math.log(DEGREES * math.pi)
        density = constant + self.factor.diagonal().log().sum()
        return density - 0.5 * (DEGREES + n) * torch.log1p(squares / DEGREES)


def draw(
    components: Sequence[Component], counts: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Latents [S, N], so many of each component in turn, and log q̃ [S] of the mixture."""
    z = torch.cat([c.sample(n, generator) for c, n in zip(components, counts, strict=True)])
    total = sum(counts)
    shares = [
        c.log_prob(z) + math.log(n / total) for c, n in zip(components, counts, strict=True) if n
    ]
    return z, torch.logsumexp(torch.stack(shares), 0)


def _randn(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(count, len(like), device=like.device, dtype=like.dtype, generator=generator)


def at_modes(
    model: LatentModel,
    x: Tensor,
    labels: Tensor | None,
    code: Tensor,
    variance: Tensor,
    prior: Mixture,
) -> list[StudentT] | None:
    """A t at a mode of p(z given x) for each image, found from the encoder's mean.

    Gauss-Newton: the likelihood's Fisher information, J^T W J with J by differences over half a
    deviation of the encoder's noise, and the prior's precision give both the steps and the t.

    Args:
        model: In evaluation mode.
        x: [B, c, h, w], what is explained.
        labels: [B], for a decoder that sees them.
        code: [B, N] float64 means of q(z given x).
        variance: [B, N] its variances.
        prior: In float64.

    Returns:
        One for each image; None where the likelihood does not tell its information.
    """
    params = model.decode(code[:1].float(), x[:1], None if labels is None else labels[:1])
    if model.likelihood.information(params) is None:
        return None
    at_once = max(1, JACOBIAN // (code.shape[1] * params[0].numel()))
    found: list[StudentT] = []
    for part in torch.arange(len(x), device=code.device).split(at_once):
        own = None if labels is None else labels[part]
        found += _modes(model, x[part], own, code[part], variance[part], prior)
    return found


def _modes(
    model: LatentModel,
    x: Tensor,
    labels: Tensor | None,
    code: Tensor,
    variance: Tensor,
    prior: Mixture,
) -> list[StudentT]:
    def log_joint(z: Tensor) -> Tensor:
        return model.log_prob(z.float(), x, labels).double() + prior.log_prob(z)

    def precision(z: Tensor) -> Tensor:
        params = model.decode(z.float(), x, labels)
        information = model.likelihood.information(params)
        assert information is not None
        weight = information.flatten(1).double()
        columns = []
        for j in range(z.shape[1]):
            step = torch.zeros_like(z)
            step[:, j] = 0.5 * variance[:, j].sqrt()
            ahead, behind = (model.decode(at.float(), x, labels) for at in (z + step, z - step))
            columns.append((ahead - behind).flatten(1).double() / (2 * step[:, j : j + 1]))
        jacobian = torch.stack(columns, 2)
        return (jacobian * weight.unsqueeze(2)).mT @ jacobian + prior.precision(z)

    return _climb(log_joint, precision, code, variance)


def _factor(precision: Tensor, variance: Tensor) -> Tensor:
    """Cholesky factors [B, N, N]; the encoder's where a decoder is too wild to have one."""
    factor, failed = torch.linalg.cholesky_ex(precision)
    sound = (failed == 0) & factor.isfinite().flatten(1).all(1)
    return torch.where(sound[:, None, None], factor, torch.diag_embed(variance.rsqrt()))


def _climb(
    log_joint: Callable[[Tensor], Tensor],
    precision: Callable[[Tensor], Tensor],
    start: Tensor,
    variance: Tensor,
) -> list[StudentT]:
    """From start [B, N] uphill by steps precision⁻¹ ∇, which only count where they climb."""
    z, value = start, log_joint(start)
    for _ in range(ROUNDS if start.shape[1] <= MANY else 1):
        factor = _factor(precision(z), variance)
        size = torch.ones_like(value)
        for _ in range(STEPS):
            with torch.enable_grad():
                at = z.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(log_joint(at).sum(), at)
            step = torch.cholesky_solve(gradient.unsqueeze(2), factor).squeeze(2)
            trial = z + size.unsqueeze(1) * step
            reached = log_joint(trial)
            better = reached > value
            z = torch.where(better.unsqueeze(1), trial, z)
            value = torch.where(better, reached, value)
            size = torch.where(better, size, 0.3 * size)
    factor = _factor(precision(z), variance)
    return [StudentT(*each) for each in zip(z, factor, strict=True)]
