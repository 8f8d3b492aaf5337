"""What a run is told: settings as a user gives them, and with everything filled in.

Both are `Settings`: those of the models, which inherit what `cgm_fast.cgm.models.config` says of
each, and those of data and training, which stand here. `TrainConfig` is what a user gives, where
None means "the data set's own setting"; the command line takes its flags and help from it.
`presets.resolve` makes a `RunConfig` of it, which config.json holds, one name beside the other; so
the names of settings are the format of that file.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Generic, Literal, NoReturn

from cgm_fast.cgm.data import Noise
from cgm_fast.cgm.models.config import (
    DivergenceConfig,
    MarginConfig,
    MMDConfig,
    ModelConfig,
    NoiseConfig,
    PrototypeConfig,
    check_divergence,
)
from cgm_fast.cgm.models.latent import check_power
from cgm_fast.cgm.models.options import Option, Options, Unset, option, options_of, undecided
from cgm_fast.cgm.training.limits import ConfigError, check_path, check_range
from cgm_fast.ops.backends import check_name
from cgm_fast.ops.checks import check_number

LEAST_SIDE = 8  # of images, in pixels; what the networks take
LARGEST_SIDE = 2**14  # of images in a config, so that nobody's file makes a picture of gigabytes
MAX_SEED = 2**32 - 1  # the largest that scikit-learn takes


@dataclass(frozen=True)
class DataSettings(Options):
    """Which images."""

    data: str = "digits"
    """Data set: digits (embedded, 8 x 8), mnist, fashion-mnist, cifar10, the path of an npz with
    `images` [n, h, w, c] uint8 and optional `labels` [n], or arrays as MedMNIST or Keras name them;
    or a folder of images, or of one folder per class, or of such folders named train and test."""
    data_root: str = "data"
    """Folder that holds torchvision's data sets, or NAME-train.npz and NAME-test.npz for one."""
    download: bool = False
    """Download a torchvision data set that is not in data_root."""
    test_data: str | None = None
    """A second npz or folder to test on; without it a tenth is held out."""
    image_size: int | None = option(at_least=LEAST_SIDE)
    """Side in pixels to which the images of a folder are resized; default: the first image's."""
    channels: Literal[1, 3] | None = None
    """Of a folder's images: 1 makes them grey, 3 coloured; default: grey if all of them are."""
    skip_broken: bool = False
    """Leave out images of a folder that cannot be read."""


@dataclass(frozen=True)
class KindSettings(Options):
    """Which model, and where its options come from."""

    model: Literal["cgm", "vae", "cvae", "infovae", "bir-vae"] = "cgm"
    """What to train: the paper's model, or one that it is compared with, whose prior is N(0, I):
    vae; cvae, with labels; infovae (MMD², a learned variance, or a fixed one if sigma2 or
    rate_bits is given); bir-vae (the same at the data set's rate)."""
    supervised: bool = False
    """CGM2: an image's category is its label, or its nearest prototype where the label is -1.
    Otherwise CGM1: its nearest prototype."""
    preset: Literal["tuned", "paper-text", "paper-rate"] = "tuned"
    """The objective's settings where none are given. paper-text: those that the paper prints, with
    noise of variance 0.02. paper-rate: the same, with the rate that it names for the data set.
    tuned: what was found to work better on grey images (docs/cgm/paper.md): λ = 100 for every model
    with an MMD, β = 1; with supervised m = 5 N and τ² = 1, else m = 0.3 N and τ² = 0.3. On others
    it is paper-text."""


# Bases in the order of the help, the last first.
@dataclass(frozen=True)
class Settings(
    MarginConfig[Unset],
    DivergenceConfig[Unset],
    PrototypeConfig[Unset],
    NoiseConfig[None],
    ModelConfig[Unset],
    KindSettings,
    DataSettings,
    Generic[Unset],
):
    """Settings of a run: of its data, of the model of whichever kind, and of the training.

    `Settings[None]` are as given or filled in, `Settings[NoReturn]` filled in. The noise stays as
    given, by its variance or by a rate, for some models learn it: `build.model_config` decides it.
    """

    bandwidth: Literal["paper", "infovae"] | float = "paper"
    """σ of the kernel: paper (σ² = N), infovae (2σ² = N²), or a number."""
    prototype_init: Literal["xavier", "kmeans++"] | Unset = option()
    """Where prototypes start: at random (xavier; default with supervised), or at codes of training
    images chosen by k-means++ (default without: fewer prototypes then die)."""

    network: Literal["dcgan", "resnet"] = "dcgan"
    """Encoder and decoder: strided convolutions, or pre-activation residual blocks."""
    decoder: Literal["same", "pixelcnn", "pixelsnail"] = "same"
    """Another decoder, which is autoregressive: every pixel is told by z and those before it."""
    width: int | Unset = option(at_least=1)
    """Channels of the networks' outermost layer; they double inwards."""
    binarization: Literal["none", "dynamic", "static", "threshold"] | Unset = option()
    """How grey pixels become binary: not, drawn anew at every visit, drawn once, or at half."""
    denoise_variance: float = option(0.0, at_least=0)
    """Variance of Gaussian noise added to what the encoder sees; the clean image is the target."""
    denoise_range: Literal["unit", "signed"] = "unit"
    """Which range of the images that variance is for: [0, 1], or [-1, 1], where it is a quarter."""
    denoise_clip: bool = False
    """Clip noisy images to the range."""

    init: str | None = None
    """Folder of a finished run of the same networks, whose weights to begin with."""
    epochs: int | Unset = option(at_least=1)
    """Passes over the training images."""
    max_steps: int | None = option(at_least=1)
    """Stop after this many steps, whatever the epochs."""
    batch_size: int | Unset = option(at_least=2)
    """Images per step (and per process)."""
    lr: float | Unset = option(above=0)
    """Learning rate of Adam."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """cosine: from lr to none over the whole run, by half a period of a cosine."""
    clip_grad_norm: float | None = option(above=0)
    """Largest norm of the gradient; default: no clipping."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: networks under autocast; losses stay in float32."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    cuda_graph: bool = False
    """Record the train step as CUDA graphs and replay them, which saves most of a small step's
    time; for one process on CUDA, without reseed_dead. To be given anew with resume."""
    seed: int = option(0, at_least=0)
    """Of weights, order and noise."""

    out: str | None = None
    """The run folder; default: runs/<data>-<cgm1, cgm2 or the model>."""
    resume: bool = False
    """Go on with the run in the folder, with its own settings; epochs, max_steps, lr, lr_schedule,
    clip_grad_norm and what is logged and evaluated may be given anew, others must not differ."""
    overwrite: bool = False
    """Replace the run in the folder."""
    log_every: int = option(50, at_least=1)
    """Steps between rows of metrics.csv."""
    checkpoint_every: int | None = option(at_least=1)
    """Steps between checkpoints; default: an epoch."""
    probes: bool = True
    """Whether an evaluation fits classifiers on codes, which takes most of its time."""
    pictures: bool = True
    """Whether an evaluation draws images, which an autoregressive decoder takes long for."""
    evaluate: bool = True
    """Whether to evaluate and draw when training ends; --no-evaluate leaves that to `evaluate`."""
    nll_images: int = option(1000, at_least=1)
    """Test images for the importance-sampled likelihood."""
    nll_samples: int = option(128, at_least=2)
    """Latents per image for it (at least 2)."""

    def __post_init__(self) -> None:
        """Nothing: `check` does it, with an error of its own class, once all that counts is there.

        The command line makes one of defaults before it has read anything.
        """

    @property
    def noise(self) -> Noise:
        """What the encoder's images get, for denoising."""
        return Noise(self.denoise_variance, self.denoise_range == "signed", self.denoise_clip)


@dataclass(frozen=True)
class TrainConfig(Settings[None]):
    """Train a CGM, or a model that it is compared with, and evaluate it.

    Leaves a run folder with config.json, metrics.csv, TensorBoard events, model.safetensors,
    checkpoint.pt, evaluation.json and pictures. An interrupted run goes on with --resume.

    Where the default below is None it depends on the data. digits, mnist, fashion-mnist: N = 10,
    K = 10, batches of 64, Bernoulli pixels; λ = 100 (the paper's 1000: preset). cifar10: N = 300,
    K = 10, batches of 100, Gaussian pixels; λ = 1100. Adam's rate is 1e-4 over 200 epochs; on
    digits 1e-3 over 100. The run folder's config.json tells every setting that was used.
    """


@dataclass(frozen=True)
class RunConfig(Settings[NoReturn]):
    """Settings with everything filled in: what config.json holds.

    Raises:
        ConfigError: something is not.
    """

    image_shape: tuple[int, int, int] = (1, 0, 0)
    """(c, h, w) of the data."""

    def __post_init__(self) -> None:
        of_noise = options_of(NoiseConfig)
        absent = [name for name in undecided(self) if name not in of_noise]
        if self.model in ("cgm", "bir-vae") and self.sigma2 is None and self.rate_bits is None:
            absent.append("sigma2 or rate_bits")
        if absent:
            raise ConfigError(f"config lacks values of {', '.join(absent)}")


SETTINGS = options_of(Settings)
PATHS = ("data", "data_root", "test_data", "init", "out")  # settings that are, or may be, paths


def _of_cgm() -> list[Option]:
    """Settings of the mixture of prototypes, which other models lack."""
    parts = (NoiseConfig, PrototypeConfig, DivergenceConfig, MarginConfig)
    found = [each for part in parts for each in options_of(part).values()]
    shared = options_of(MMDConfig)
    return [each for each in found if not (each.unset or each.optional or each.name in shared)]


OF_CGM = _of_cgm()


def check(config: Settings[None]) -> None:
    """Check what can be checked without the data; raise ConfigError."""
    for each in SETTINGS.values():
        _check_type(each, getattr(config, each.name))
    if config.sigma2 is not None and config.rate_bits is not None:
        raise ConfigError(
            f"give sigma2 or rate_bits, not both; got sigma2={config.sigma2} and "
            f"rate_bits={config.rate_bits}"
        )
    if config.resume and config.overwrite:
        raise ConfigError("give resume or overwrite, not both")
    if config.model in ("vae", "cvae"):
        for name in ("sigma2", "rate_bits"):
            if (value := getattr(config, name)) is not None:
                raise ConfigError(
                    f"{name} must be left out with model {config.model}, whose variance is "
                    f"learned, got {value}"
                )
    if config.supervised != (config.model == "cvae") and config.model != "cgm":
        raise ConfigError(
            f"supervised must be {str(config.model == 'cvae').lower()} with model {config.model}, "
            f"got {str(config.supervised).lower()}"
        )
    if config.model != "cgm":
        given = [each.name for each in OF_CGM if getattr(config, each.name) != each.default]
        if config.prototype_init == "kmeans++":
            given.append("prototype_init")
        if given:
            raise ConfigError(f"{given[0]} must be left out with model {config.model}")
    try:
        for each in SETTINGS.values():
            value = getattr(config, each.name)
            if value is not None and each.bounds:
                check_number(each.name, value, **each.bounds)
                check_range(each.name, value)
        if config.prior_sigma2 is not None:  # which in a run has a density, to be evaluated
            check_number("prior_sigma2", config.prior_sigma2, above=0)
        if not isinstance(config.bandwidth, str):
            check_number("bandwidth", config.bandwidth, above=0)
            check_range("bandwidth", config.bandwidth)
        for name in PATHS:
            check_path(name, getattr(config, name))
        check_name(config.backend)
        check_divergence(config)
        if config.power == "unit" and config.sigma2 is not None:
            check_power(config.sigma2)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.seed > MAX_SEED:
        raise ConfigError(f"seed must be at most {MAX_SEED}, got {config.seed}")


_WORDS = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


def _check_type(known: Option, value: object) -> None:
    """Raise ConfigError unless a value is what its annotation says."""
    none = known.unset or known.optional
    accepted = (*known.types, *((int,) if float in known.types else ()))
    if (
        (none and value is None)
        or value in known.choices
        or (isinstance(value, accepted) and isinstance(value, bool) == (bool in known.types))
    ):
        return
    words = [*known.choices, *(_WORDS[kind] for kind in known.types), *(["none"] if none else [])]
    listed = " or ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]
    raise ConfigError(f"{known.name} must be {listed}, got {value!r}")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """A JSON-ready dictionary of every setting that describes the run, not how it was called."""
    values = dataclasses.asdict(config)
    for transient in ("resume", "overwrite", "download", "cuda_graph"):
        del values[transient]
    return values


def from_dict(values: dict[str, Any]) -> RunConfig:
    """The inverse of `to_dict`.

    Raises:
        ConfigError: a key is unknown, or a value is out of range.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"config must be an object of settings, got {type(values).__name__}")
    known = {f.name for f in dataclasses.fields(RunConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"config holds unknown settings: {', '.join(unknown)}")
    config = RunConfig(**{**values, "image_shape": tuple(values["image_shape"])})
    check(config)
    shape = config.image_shape
    whole = len(shape) == 3 and all(isinstance(size, int) for size in shape)
    if not whole or shape[0] < 1 or min(shape[1:]) < LEAST_SIDE or max(shape) > LARGEST_SIDE:
        raise ConfigError(
            f"image_shape must be [c, h, w] with sides of at least {LEAST_SIDE} and at most "
            f"{LARGEST_SIDE}, got {list(shape)}"
        )
    return config
