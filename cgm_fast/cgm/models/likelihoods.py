"""p(x given z): what the decoder's output means. All log-probabilities are in nats per image.

Images are in [0, 1]: binary, or grey for the Bernoulli likelihood (then the expected loss over
random binarisations), or dequantised, (v + u)/256 with v in 0..255 and u in [0, 1), for densities,
or v/255 for probabilities of levels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cgm_fast.cgm.models.precision import widened
from cgm_fast.ops.checks import check_number


class Likelihood(nn.Module):
    """Interface: subclasses map decoder outputs `params` [B, p, h, w] to densities of images."""

    def channels(self, of_image: int) -> int:
        """How many decoder channels describe a pixel of so many image channels."""
        return of_image

    continuous = False
    """Whether this is a density, of dequantised images."""

    levels = False
    """Whether images are 8-bit levels v/255, whose bits per dimension are nats over D ln 2."""

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """log p(x given z) of images x [B, c, h, w], summed over pixels: [B], nats."""
        raise NotImplementedError

    def information(self, params: Tensor) -> Tensor | None:
        """Fisher information of each of `params` [B, p, h, w], if pixels are independent in them.

        For Laplace approximations of p(z given x); None where there is no such diagonal.
        """
        return None

    def mean(self, params: Tensor) -> Tensor:
        """The expected image [B, c, h, w]."""
        raise NotImplementedError

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """An image [B, c, h, w] drawn from p(x given z)."""
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Independent binary pixels; `params` are logits."""

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Minus the binary cross-entropy, [B]."""
        loss = nn.functional.binary_cross_entropy_with_logits(params, x, reduction="none")
        return -loss.flatten(1).sum(1)

    def information(self, params: Tensor) -> Tensor:
        """p (1 − p) of the pixels' probabilities."""
        p = params.sigmoid()
        return p * (1 - p)

    def mean(self, params: Tensor) -> Tensor:
        """The pixels' probabilities."""
        return params.sigmoid()

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Binary pixels."""
        return torch.bernoulli(params.sigmoid(), generator=generator)


class Gaussian(Likelihood):
    """Independent Gaussian pixels around the decoder's output, with one scale for all.

    Args:
        sigma: Standard deviation, in units of [0, 1] images; the initial one if learned.
        learned: Whether log σ is a parameter.
    """

    continuous = True
    log_sigma: Tensor

    def __init__(self, sigma: float = 0.1, *, learned: bool = True) -> None:
        super().__init__()
        log_sigma = torch.tensor(math.log(check_number("sigma", sigma, above=0)))
        if learned:
            self.log_sigma = nn.Parameter(log_sigma)
        else:
            self.register_buffer("log_sigma", log_sigma)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log-density of the pixels, [B]."""
        log_sigma = widened(self.log_sigma)
        residual = (x - params) * torch.exp(-log_sigma)
        log_density = -0.5 * residual.square() - log_sigma - 0.5 * math.log(2 * math.pi)
        return log_density.flatten(1).sum(1)

    def information(self, params: Tensor) -> Tensor:
        """1 / σ², everywhere."""
        return torch.exp(-2 * widened(self.log_sigma)).expand_as(params)

    def mean(self, params: Tensor) -> Tensor:
        """The decoder's output, within the range of images."""
        return params.clamp(0, 1)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pixels with their noise, within the range of images."""
        noise = torch.randn(
            params.shape, device=params.device, dtype=params.dtype, generator=generator
        )
        return (params + widened(self.log_sigma).exp() * noise).clamp(0, 1)


class LogisticMixture(Likelihood):
    """A pixel's 256 levels by a mixture of discretised logistic distributions.

    Salimans, Karpathy, Chen, Kingma, "PixelCNN++", ICLR 2017: a level's probability is the mass of
    a mixture of logistic distributions within half a level of it, the tails going to the outermost
    levels. The channels of a pixel share the choice of a component, and a later channel's mean is
    linear in the earlier ones. Images are v/255.

    Args:
        components: How many.

    Raises:
        ValueError: there is none.
    """

    levels = True

    def __init__(self, components: int = 5) -> None:
        super().__init__()
        self.components = int(check_number("components", components, at_least=1))

    def channels(self, of_image: int) -> int:
        """Logits; means and log-scales of each channel; coefficients of earlier channels."""
        return self.components * (1 + 2 * of_image + of_image * (of_image - 1) // 2)

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits [B, 1, M, h, w], means and log-scales [B, c, M, h, w], coefficients."""
        b, _, h, w = params.shape
        per = params.shape[1] // self.components
        channels = next(c for c in range(1, per) if self.channels(c) == params.shape[1])
        groups = params.view(b, per, self.components, h, w)
        logits, means, scales, linear = groups.split(
            (1, channels, channels, per - 1 - 2 * channels), 1
        )
        return logits, means, scales.clamp_min(-7), linear.tanh()

    def _centres(self, means: Tensor, linear: Tensor, x: Tensor) -> Tensor:
        """Each channel's means, given the channels before it in x [B, c, 1, h, w] in [-1, 1]."""
        found, at = [means[:, 0]], 0
        for c in range(1, means.shape[1]):
            centre = means[:, c]
            for earlier in range(c):
                centre = centre + linear[:, at] * x[:, earlier]
                at += 1
            found.append(centre)
        return torch.stack(found, 1)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """log of the levels' probability, [B]."""
        logits, means, scales, linear = self._parts(params)
        x = (2 * x - 1).unsqueeze(2)
        offset = x - self._centres(means, linear, x)
        precision = torch.exp(-scales)
        above, below = precision * (offset + 1 / 255), precision * (offset - 1 / 255)
        # Of a level of next to no mass, the density at its middle.
        middle = precision * offset
        thin = middle - scales - 2 * nn.functional.softplus(middle) + math.log(2 / 255)
        mass = above.sigmoid() - below.sigmoid()
        inner = torch.where(mass > 1e-5, mass.clamp_min(1e-12).log(), thin)
        least = nn.functional.logsigmoid(above)
        most = -nn.functional.softplus(below)
        log_mass = torch.where(x < -0.999, least, torch.where(x > 0.999, most, inner))
        log_pixel = torch.logsumexp(log_mass.sum(1) + logits.squeeze(1).log_softmax(1), 1)
        return log_pixel.flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        """The mixture's mean, but for what lies beyond the outermost levels."""
        logits, means, _, linear = self._parts(params)
        x = torch.zeros_like(means)  # of each component, a channel's from those before it
        for c in range(means.shape[1]):
            x[:, c] = self._centres(means, linear, x)[:, c]
        return ((logits.softmax(2) * x).sum(2).clamp(-1, 1) + 1) / 2

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Levels v/255: a component, then a channel after the other."""
        logits, means, scales, linear = self._parts(params)
        b, _, m, h, w = logits.shape
        chosen = torch.multinomial(
            logits.softmax(2).permute(0, 1, 3, 4, 2).reshape(-1, m), 1, generator=generator
        )
        at = chosen.view(b, 1, 1, h, w)

        def pick(values: Tensor) -> Tensor:
            return values.gather(2, at.expand(-1, values.shape[1], -1, -1, -1))

        means, scales, linear = pick(means), pick(scales), pick(linear)
        uniform = torch.rand(
            means.shape, device=means.device, dtype=means.dtype, generator=generator
        )
        noise = scales.exp() * uniform.clamp(1e-5, 1 - 1e-5).logit()
        x = torch.zeros_like(means)
        for c in range(means.shape[1]):
            centres = self._centres(means, linear, x)[:, c]
            level = ((centres + noise[:, c] + 1) * 127.5).round().clamp(0, 255)
            x[:, c] = level / 127.5 - 1
        return (x.squeeze(2) + 1) / 2


def bits_per_dim(nats: float, dimensions: int, *, dequantised: bool = True) -> float:
    """Bits per dimension of 8-bit images from −log p in nats.

    Args:
        nats: Of the density of dequantised [0, 1] images; or of the probability of levels.
        dimensions: Pixels times channels.
        dequantised: Which of the two.
    """
    return nats / (dimensions * math.log(2)) + (8 if dequantised else 0)


LIKELIHOODS = ("bernoulli", "gaussian", "gaussian-fixed", "logistic-mixture")


def make_likelihood(name: str) -> Likelihood:
    """The likelihood of this name, one of `LIKELIHOODS`.

    Raises:
        ValueError: no likelihood has this name.
    """
    if name == "bernoulli":
        return Bernoulli()
    if name in ("gaussian", "gaussian-fixed"):
        return Gaussian(learned=name == "gaussian")
    if name == "logistic-mixture":
        return LogisticMixture()
    raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {name!r}")
