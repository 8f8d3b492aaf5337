"""The options of the models: of each its name, type, default, bounds and meaning, here and once.

A part of a model has its options in a dataclass, `NoiseConfig[None]` as given or
`NoiseConfig[NoReturn]` as decided (see `options`). `CGMConfig` is the tree of decided ones that a
`CGM` takes, `VAEConfig` that of a `VAE`; `of` makes one from options by name, and is the one place
where what was left out becomes a number. The settings of a run (`cgm_fast.cgm.training.config`)
inherit the same dataclasses as given, and so do the flags of the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NoReturn, TypeVar

from cgm_fast.cgm.models.latent import check_power, resolve_sigma2
from cgm_fast.cgm.models.options import Options, Tree, Unset, option, take
from cgm_fast.ops.checks import check_number


@dataclass(frozen=True)
class ModelConfig(Options, Generic[Unset]):
    """What every model has."""

    latent_dim: int | Unset = option(otherwise=10, at_least=1)
    """N, the number of latent dimensions."""
    likelihood: Literal["bernoulli", "gaussian", "gaussian-fixed", "logistic-mixture"] | Unset = (
        option(otherwise="bernoulli")
    )
    """p(x given z): Bernoulli pixels, Gaussian ones with a learned or a fixed scale, or a mixture
    of discretised logistic distributions over 256 levels."""
    backend: str = "auto"
    """Implementation of the losses: auto, or a name shown by `cgm-fast doctor`."""


@dataclass(frozen=True)
class NoiseConfig(Options, Generic[Unset]):
    """The noise on codes, and on the prototypes in the prior."""

    sigma2: float | Unset = option(above=0)
    """Variance of the encoder's noise. Give this or rate_bits, not both."""
    rate_bits: float | None = option(at_least=0)
    """Nominal rate I in bits per image; the noise variance is 4^(-I/N)."""
    prior_sigma2: float | Unset = option(at_least=0)
    """τ², variance of a prior component; default: the preset's, where tuned, else the noise's."""
    power: Literal["free", "unit"] = "free"
    """unit: standardise codes so that the nominal rate is the rate of a Gaussian code."""


def decide_noise(given: NoiseConfig[None], latent_dim: int) -> NoiseConfig[NoReturn]:
    """σ² from either way to give it, or 0.02; τ² as given, or σ².

    Raises:
        ValueError: both ways are given, or the one given is out of range.
    """
    sigma2 = resolve_sigma2(given.sigma2, given.rate_bits, latent_dim)
    tau2 = sigma2 if given.prior_sigma2 is None else given.prior_sigma2
    return NoiseConfig(sigma2=sigma2, prior_sigma2=tau2, power=given.power)


@dataclass(frozen=True)
class PrototypeConfig(Options, Generic[Unset]):
    """The prototypes, which are the centres of the prior's components."""

    num_prototypes: int | Unset = option(otherwise=10, at_least=2)
    """K, the number of prototypes (at least 2)."""
    descriptor: Literal["learned", "ema", "batch_mean", "attention"] = "learned"
    """How prototypes are made: parameters, running means, batch means, weighted batch means."""
    assignment: Literal["euclidean", "cosine", "dot"] = "euclidean"
    """What an image is nearest to a prototype by, without labels: distance, or a similarity."""
    reseed_dead: int = option(0, at_least=0)
    """Steps without a member after which a prototype moves to a code; 0: never."""


@dataclass(frozen=True)
class MMDConfig(Options, Generic[Unset]):
    """The weight and the kernel of an MMD² between encoded samples and the prior's."""

    mmd_weight: float | Unset = option(otherwise=1000.0, at_least=0)
    """λ, the weight of MMD² against nats per image."""
    bandwidth: Literal["paper", "infovae"] | float | Sequence[float] = "paper"
    """σ of the kernel: paper (σ² = N), infovae (2σ² = N²), a number or several."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.bandwidth
        for sigma in given if isinstance(given, Sequence) else (given,):
            if isinstance(sigma, int | float):  # the loss knows what else there may be
                check_number("bandwidth", sigma, above=0)


@dataclass(frozen=True)
class DivergenceConfig(MMDConfig[Unset], Generic[Unset]):
    """The term L_M of eq. 6: the paper's MMD², or another reading (see `divergence`).

    Raises:
        ValueError: an option does not go with another.
    """

    prior_sampling: Literal["assigned", "iid"] = "assigned"
    """Where the MMD's prior samples are: around their images' prototypes, or any at random."""
    divergence: Literal["mmd2", "mmd", "energy"] = "mmd2"
    """What λ weighs: MMD², its root, or the energy distance; λ is of another scale for each."""
    estimator: Literal["biased", "unbiased"] = "biased"
    """Of MMD²; unbiased goes with prior_sampling iid."""
    conditional: bool = False
    """MMD² of each category's own samples, instead of all together."""
    detach_prior: bool = False
    """Keep the MMD from moving the prototypes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_divergence(self)


def check_divergence(given: DivergenceConfig[Any], kind: str | None = None) -> None:
    """Raise ValueError unless options of a divergence go together.

    Args:
        given: The options.
        kind: What it is in place of `given.divergence`.
    """
    mmd2 = (kind or given.divergence) == "mmd2"
    # Assigned samples are no draws of the prior's own: unbiased, it would be biased with them.
    if given.estimator == "unbiased" and given.prior_sampling != "iid":
        raise ValueError("estimator must be biased unless prior_sampling is iid, got unbiased")
    if given.estimator == "unbiased" and not mmd2:
        raise ValueError("estimator must be biased unless divergence is mmd2, got unbiased")
    if given.conditional and not (mmd2 and given.prior_sampling == "assigned"):
        raise ValueError(
            "conditional must be left out unless divergence is mmd2 and prior_sampling assigned"
        )


@dataclass(frozen=True)
class MarginConfig(Options, Generic[Unset]):
    """The term L_D of eq. 6, which pulls codes to their prototypes and away from others."""

    margin_weight: float | Unset = option(otherwise=1.0, at_least=0)
    """β, the weight of the prototype margin loss."""
    margin: float | Unset = option(otherwise=1.0, at_least=0)
    """m, the margin on the squared distance to other prototypes."""
    negatives: Literal["sum", "mean"] = "sum"
    """What the margin loss makes of the other prototypes' parts."""
    normalize: bool = False
    """Scale codes and prototypes to unit length for the margin loss."""


@dataclass(frozen=True, kw_only=True)
class CGMConfig(Tree, ModelConfig[NoReturn]):
    """The options of a `CGM`, all of them decided: its own, and those of its parts.

        config = CGMConfig.of(num_prototypes=20, rate_bits=15)
        config.latent_dim, config.prototypes.num_prototypes, config.noise.sigma2  # 10, 20, 0.125

    Raises:
        ValueError: an option is left out or out of range, or does not go with another.
    """

    noise: NoiseConfig[NoReturn]
    prototypes: PrototypeConfig[NoReturn]
    mmd: DivergenceConfig[NoReturn]
    margin_loss: MarginConfig[NoReturn]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise.power == "unit":
            check_power(self.noise.sigma2)

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> CGMConfig:
        """See `Tree`."""
        common = vars(take(ModelConfig, options))
        return cls(
            **common,
            noise=decide_noise(take(NoiseConfig, options), common["latent_dim"]),
            prototypes=take(PrototypeConfig, options),
            mmd=take(DivergenceConfig, options),
            margin_loss=take(MarginConfig, options),
        )


@dataclass(frozen=True, kw_only=True)
class VAEConfig(Tree, ModelConfig[NoReturn]):
    """The options of a `VAE`, all of them decided.

    Raises:
        ValueError: an option is left out or out of range.
    """

    sigma2: float | None = option(above=0)
    """A fixed variance of q(z given x); None for a learned one."""
    kl_weight: float = 1.0
    """Of the KL divergence: 1, or 0."""
    classes: int = option(0, at_least=0)
    """0, or how many labels encoder and decoder see (CVAE)."""
    mmd: MMDConfig[NoReturn]

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> VAEConfig:
        """See `Tree`; without an MMD unless λ is given."""
        options.setdefault("mmd_weight", 0.0)
        return take(cls, options, mmd=take(MMDConfig, options))


Config = TypeVar("Config", CGMConfig, VAEConfig)


def decide(
    kind: type[Config], config: Config | None, options: dict[str, Any], codes: int | None
) -> Config:
    """The config of a model that was given one, or options by name.

    Args:
        kind: Of config.
        config: As given; None for one of `options`.
        options: By name; of them latent_dim is the encoder's where it is left out.
        codes: N, where the encoder says it of itself.

    Raises:
        TypeError: config and options are both given, or an option is unknown.
        ValueError: as the config does; latent_dim is not the encoder's.
    """
    if config is None:
        if options.get("latent_dim") is None:
            options = {**options, "latent_dim": codes}
        config = kind.of(**options)
    elif options:
        raise TypeError(f"give a config or options, not both; got both, with {', '.join(options)}")
    if codes not in (None, config.latent_dim):
        raise ValueError(f"latent_dim must be the encoder's {codes}, got {config.latent_dim}")
    return config
