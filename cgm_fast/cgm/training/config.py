"""What a run is told, and what is filled in for it: the paper's settings per data set.

`TrainConfig` is what a user gives: None means "the data set's own setting". `resolve` fills
those in and checks the rest, so that a run's config.json holds every number that was used.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from cgm_fast.cgm.data import UNLABELLED, ImageData, Noise
from cgm_fast.cgm.models.divergence import Divergence
from cgm_fast.cgm.models.latent import DEFAULT_SIGMA2, resolve_sigma2
from cgm_fast.cgm.training.limits import ConfigError, check_path, check_range
from cgm_fast.ops.backends import AUTO, check_name
from cgm_fast.ops.checks import check_number


@dataclass(frozen=True)
class TrainConfig:
    """Train a CGM, or a model that it is compared with, and evaluate it.

    Leaves a run folder with config.json, metrics.csv, TensorBoard events, model.safetensors,
    checkpoint.pt, evaluation.json and pictures. An interrupted run goes on with --resume.

    Where the default below is None it depends on the data. digits, mnist, fashion-mnist: N = 10,
    K = 10, batches of 64, Bernoulli pixels; λ = 100 (the paper's 1000: preset). cifar10: N = 300,
    K = 10, batches of 100, Gaussian pixels; λ = 1100. Adam's rate is 1e-4 over 200 epochs; on
    digits 1e-3 over 100. The run folder's config.json tells every setting that was used.
    """

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
    image_size: int | None = None
    """Side in pixels to which the images of a folder are resized; default: the first image's."""
    channels: Literal[1, 3] | None = None
    """Of a folder's images: 1 makes them grey, 3 coloured; default: grey if all of them are."""
    skip_broken: bool = False
    """Leave out images of a folder that cannot be read."""

    model: Literal["cgm", "vae", "cvae", "infovae", "bir-vae"] = "cgm"
    """What to train: the paper's model, or one that it is compared with, whose prior is N(0, I):
    vae; cvae, with labels; infovae (MMD², a learned variance, or a fixed one if sigma2 or
    rate_bits is given); bir-vae (the same at the data set's rate)."""
    supervised: bool = False
    """CGM2: an image's category is its label, or its nearest prototype where the label is -1.
    Otherwise CGM1: its nearest prototype."""
    latent_dim: int | None = None
    """N, the number of latent dimensions."""
    num_prototypes: int | None = None
    """K, the number of prototypes (at least 2)."""
    preset: Literal["tuned", "paper-text", "paper-rate"] = "tuned"
    """The objective's settings where none are given. paper-text: those that the paper prints, with
    noise of variance 0.02. paper-rate: the same, with the rate that it names for the data set.
    tuned: what was found to work better on grey images (docs/cgm/paper.md): λ = 100 for every model
    with an MMD, β = 1; with supervised m = 5 N and τ² = 1, else m = 0.3 N and τ² = 0.3. On others
    it is paper-text."""
    sigma2: float | None = None
    """Variance of the encoder's noise. Give this or rate_bits, not both."""
    rate_bits: float | None = None
    """Nominal rate I in bits per image; the noise variance is 4^(-I/N)."""
    prior_sigma2: float | None = None
    """τ², variance of a prior component; default: the preset's, where tuned, else the noise's."""
    mmd_weight: float | None = None
    """λ, the weight of MMD² against nats per image."""
    margin_weight: float | None = None
    """β, the weight of the prototype margin loss."""
    margin: float | None = None
    """m, the margin on the squared distance to other prototypes."""
    bandwidth: Literal["paper", "infovae"] | float = "paper"
    """σ of the kernel: paper (σ² = N), infovae (2σ² = N²), or a number."""
    descriptor: Literal["learned", "ema", "batch_mean", "attention"] = "learned"
    """How prototypes are made: parameters, running means, batch means, weighted batch means."""
    assignment: Literal["euclidean", "cosine", "dot"] = "euclidean"
    """What an image is nearest to a prototype by, without labels: distance, or a similarity."""
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
    negatives: Literal["sum", "mean"] = "sum"
    """What the margin loss makes of the other prototypes' parts."""
    normalize: bool = False
    """Scale codes and prototypes to unit length for the margin loss."""
    prototype_init: Literal["xavier", "kmeans++"] | None = None
    """Where prototypes start: at random (xavier; default with supervised), or at codes of training
    images chosen by k-means++ (default without: fewer prototypes then die)."""
    reseed_dead: int = 0
    """Steps without a member after which a prototype moves to a code; 0: never."""
    power: Literal["free", "unit"] = "free"
    """unit: standardise codes so that the nominal rate is the rate of a Gaussian code."""

    network: Literal["dcgan", "resnet"] = "dcgan"
    """Encoder and decoder: strided convolutions, or pre-activation residual blocks."""
    decoder: Literal["same", "pixelcnn", "pixelsnail"] = "same"
    """Another decoder, which is autoregressive: every pixel is told by z and those before it."""
    width: int | None = None
    """Channels of the networks' outermost layer; they double inwards."""
    likelihood: Literal["bernoulli", "gaussian", "gaussian-fixed", "logistic-mixture"] | None = None
    """p(x given z): Bernoulli pixels, Gaussian ones with a learned or a fixed scale, or a mixture
    of discretised logistic distributions over 256 levels."""
    binarization: Literal["none", "dynamic", "static", "threshold"] | None = None
    """How grey pixels become binary: not, drawn anew at every visit, drawn once, or at half."""
    denoise_variance: float = 0.0
    """Variance of Gaussian noise added to what the encoder sees; the clean image is the target."""
    denoise_range: Literal["unit", "signed"] = "unit"
    """Which range of the images that variance is for: [0, 1], or [-1, 1], where it is a quarter."""
    denoise_clip: bool = False
    """Clip noisy images to the range."""

    init: str | None = None
    """Folder of a finished run of the same networks, whose weights to begin with."""
    epochs: int | None = None
    """Passes over the training images."""
    max_steps: int | None = None
    """Stop after this many steps, whatever the epochs."""
    batch_size: int | None = None
    """Images per step (and per process)."""
    lr: float | None = None
    """Learning rate of Adam."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """cosine: from lr to none over the whole run, by half a period of a cosine."""
    clip_grad_norm: float | None = None
    """Largest norm of the gradient; default: no clipping."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: networks under autocast; losses stay in float32."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    backend: str = AUTO
    """Implementation of the losses: auto, or a name shown by `cgm-fast doctor`."""
    seed: int = 0
    """Of weights, order and noise."""

    out: str | None = None
    """The run folder; default: runs/<data>-<cgm1, cgm2 or the model>."""
    resume: bool = False
    """Go on with the run in the folder, with its own settings; epochs, max_steps, lr, lr_schedule,
    clip_grad_norm and what is logged and evaluated may be given anew, others must not differ."""
    overwrite: bool = False
    """Replace the run in the folder."""
    log_every: int = 50
    """Steps between rows of metrics.csv."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; default: an epoch."""
    probes: bool = True
    """Whether an evaluation fits classifiers on codes, which takes most of its time."""
    pictures: bool = True
    """Whether an evaluation draws images, which an autoregressive decoder takes long for."""
    evaluate: bool = True
    """Whether to evaluate and draw when training ends; --no-evaluate leaves that to `evaluate`."""
    nll_images: int = 1000
    """Test images for the importance-sampled likelihood."""
    nll_samples: int = 128
    """Latents per image for it (at least 2)."""

    @property
    def noise(self) -> Noise:
        """What the encoder's images get, for denoising."""
        return Noise(self.denoise_variance, self.denoise_range == "signed", self.denoise_clip)


@dataclass(frozen=True)
class RunConfig(TrainConfig):
    """Settings with everything filled in: what config.json holds."""

    image_shape: tuple[int, int, int] = (1, 0, 0)
    """(c, h, w) of the data."""


@dataclass(frozen=True)
class Preset:
    """Settings for a kind of data; section 1.3 of the paper's tables where it names them."""

    latent_dim: int
    num_prototypes: int
    mmd_weight: float
    batch_size: int
    rate_bits: float
    epochs: int
    lr: float
    width: int
    likelihood: str
    binarization: str


# A rate is one of two ways to give the noise, and λ goes with β and m: not filled in like others.
PRESET_SETTINGS = tuple(
    f.name for f in dataclasses.fields(Preset) if f.name not in ("rate_bits", "mmd_weight")
)

_MNIST = Preset(10, 10, 1000.0, 64, 15.0, 200, 1e-4, 64, "bernoulli", "dynamic")
PRESETS = {
    # Small images, little data: ten times the paper's step, so that a minute is enough.
    "digits": Preset(10, 10, 1000.0, 64, 15.0, 100, 1e-3, 32, "bernoulli", "none"),
    "mnist": _MNIST,
    "fashion-mnist": _MNIST,
    "cifar10": Preset(300, 10, 1100.0, 100, 120.0, 200, 1e-4, 64, "gaussian", "none"),
}
# An npz or a folder: the paper's settings for ImageNet 64 x 64, with fewer prototypes and
# dimensions, which suit collections that are smaller than ImageNet.
GREY = dataclasses.replace(_MNIST, binarization="none")
COLOUR = Preset(128, 10, 1100.0, 64, 120.0, 200, 1e-4, 64, "gaussian", "none")


def preset_for(data: ImageData) -> Preset:
    """The preset of a data set by name, or by its number of channels."""
    return PRESETS.get(data.name, GREY if data.image_shape[0] == 1 else COLOUR)


def resolve(config: TrainConfig, data: ImageData) -> RunConfig:
    """Fill in what was left to the data set, and check what was given.

    Raises:
        ConfigError: a setting is out of range or contradicts another or the data.
    """
    check(config)
    preset = preset_for(data)
    filled: dict[str, Any] = {
        name: getattr(preset, name) for name in PRESET_SETTINGS if getattr(config, name) is None
    }
    if config.prototype_init is None:
        random = config.supervised or config.model != "cgm"
        filled["prototype_init"] = "xavier" if random else "kmeans++"
    for name, value in _of_objective(config, preset, _sigma2(config, preset)).items():
        if getattr(config, name) is None:
            filled[name] = value
    noise_given = config.sigma2 is not None or config.rate_bits is not None
    if not noise_given and config.model in ("cgm", "bir-vae"):
        if config.preset == "paper-rate" or config.model == "bir-vae":
            filled["rate_bits"] = preset.rate_bits
        else:
            filled["sigma2"] = DEFAULT_SIGMA2
    if config.binarization is None and config.likelihood not in (None, preset.likelihood):
        filled["binarization"] = "none"
    given = dataclasses.asdict(config)
    resolved = RunConfig(**{**given, **filled, "image_shape": data.image_shape})
    assert resolved.latent_dim is not None
    assert resolved.num_prototypes is not None
    assert resolved.batch_size is not None
    if min(data.image_shape[1:]) < LEAST_SIDE:
        raise ConfigError(
            f"data must hold images of at least {LEAST_SIDE} x {LEAST_SIDE} pixels, got "
            f"{data.image_shape[1]} x {data.image_shape[2]}"
        )
    if resolved.model == "cvae" and (lacking := _unlabelled(data.test, data.test_labels)):
        raise ConfigError(
            f"model cvae needs labels of the test images too, and {lacking} of those of "
            f"{config.test_data or data.name} have none"
        )
    if resolved.supervised:
        if data.train_labels is None:
            raise ConfigError(f"supervised needs labels, and {data.name} has none")
        lacking = _unlabelled(data.train, data.train_labels)
        if lacking and resolved.model == "cvae":
            raise ConfigError(
                f"model cvae needs a label for each image, and {lacking} of those of {data.name} "
                "have none"
            )
        classes = int(data.train_labels.max()) + 1
        if classes > resolved.num_prototypes:
            raise ConfigError(
                f"num_prototypes must be at least the number of classes {classes} with "
                f"supervised, got {resolved.num_prototypes}"
            )
    if resolved.batch_size > len(data.train):
        raise ConfigError(
            f"batch_size must be at most the {len(data.train)} training images, "
            f"got {resolved.batch_size}"
        )
    if resolved.prototype_init == "kmeans++" and resolved.num_prototypes > len(data.train):
        raise ConfigError(
            f"num_prototypes must be at most the {len(data.train)} training images with "
            f"prototype_init kmeans++, got {resolved.num_prototypes}"
        )
    if resolved.likelihood != "bernoulli" and resolved.binarization != "none":
        raise ConfigError(
            f"binarization must be none with the {resolved.likelihood} likelihood, "
            f"got {resolved.binarization}"
        )
    return resolved


def _unlabelled(images: Tensor, labels: Tensor | None) -> int:
    """How many images have no label."""
    return len(images) if labels is None else int((labels == UNLABELLED).sum())


def _sigma2(config: TrainConfig, preset: Preset) -> float:
    """σ², from either way to give it."""
    try:
        return resolve_sigma2(
            config.sigma2, config.rate_bits, config.latent_dim or preset.latent_dim
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _of_objective(config: TrainConfig, preset: Preset, sigma2: float) -> dict[str, float]:
    """λ, β, m and τ² where they are not given."""
    if config.preset != "tuned" or preset.likelihood != "bernoulli":
        return {"mmd_weight": preset.mmd_weight, "margin_weight": 1.0, "margin": 1.0}
    objective = {"mmd_weight": 100.0, "margin_weight": 1.0, "margin": 1.0}
    if config.model == "cgm":
        latent_dim = float(config.latent_dim or preset.latent_dim)
        # Where prototypes choose their own images, those that push hard end with all of them.
        objective["margin"] = (5.0 if config.supervised else 0.3) * latent_dim
        objective["prior_sigma2"] = max(1.0 if config.supervised else 0.3, sigma2)
    return objective


LEAST_SIDE = 8  # of images, in pixels; what the networks take
LARGEST_SIDE = 2**14  # of images in a config, so that nobody's file makes a picture of gigabytes
MAX_SEED = 2**32 - 1  # the largest that scikit-learn takes

# Setting: the least value allowed, and whether that value itself is allowed.
_BOUNDS: dict[str, tuple[float, bool]] = {
    "image_size": (LEAST_SIDE, True),
    "latent_dim": (1, True),
    "num_prototypes": (2, True),
    "sigma2": (0, False),
    "rate_bits": (0, True),
    "prior_sigma2": (0, False),
    "mmd_weight": (0, True),
    "margin_weight": (0, True),
    "margin": (0, True),
    "reseed_dead": (0, True),
    "width": (1, True),
    "denoise_variance": (0, True),
    "epochs": (1, True),
    "max_steps": (1, True),
    "batch_size": (2, True),
    "lr": (0, False),
    "clip_grad_norm": (0, False),
    "seed": (0, True),
    "log_every": (1, True),
    "checkpoint_every": (1, True),
    "nll_images": (1, True),
    "nll_samples": (2, True),
}


def check(config: TrainConfig) -> None:
    """Check what can be checked without the data; raise ConfigError."""
    for name, hint in get_type_hints(TrainConfig).items():
        _check_type(name, getattr(config, name), hint)
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
        given = [name for name, default in OF_CGM.items() if getattr(config, name) != default]
        if config.prototype_init == "kmeans++":
            given.append("prototype_init")
        if given:
            raise ConfigError(f"{given[0]} must be left out with model {config.model}")
    try:
        for name, (bound, included) in _BOUNDS.items():
            value = getattr(config, name)
            if value is not None:
                limit = {"at_least": bound} if included else {"above": bound}
                check_number(name, value, **limit)
                check_range(name, value)
        if not isinstance(config.bandwidth, str):
            check_number("bandwidth", config.bandwidth, above=0)
            check_range("bandwidth", config.bandwidth)
        for name in PATHS:
            check_path(name, getattr(config, name))
        check_name(config.backend)
        Divergence(config.divergence, config.prior_sampling, config.estimator, config.conditional)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.seed > MAX_SEED:
        raise ConfigError(f"seed must be at most {MAX_SEED}, got {config.seed}")
    if config.power == "unit" and config.sigma2 is not None and config.sigma2 > 1:
        raise ConfigError(f"power=unit needs sigma2 <= 1, got {config.sigma2}")


PATHS = ("data", "data_root", "test_data", "init", "out")  # settings that are, or may be, paths

# Settings of the mixture of prototypes, which other models lack.
OF_CGM = {
    field.name: field.default
    for field in dataclasses.fields(TrainConfig)
    if field.name
    in (
        "descriptor", "assignment", "prior_sampling", "divergence", "estimator", "conditional",
        "detach_prior", "negatives", "normalize", "reseed_dead", "power",
    )
}  # fmt: skip

_WORDS = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    NoneType: "none",
}


def _check_type(name: str, value: object, hint: Any) -> None:
    """Raise ConfigError unless a value is what its annotation says."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    types = [kind for kind in kinds if get_origin(kind) is not Literal]
    accepted = (*types, *((int,) if float in types else ()))
    if value in choices or (
        isinstance(value, accepted) and isinstance(value, bool) == (bool in types)
    ):
        return
    words = [*choices, *(_WORDS[kind] for kind in types)]
    listed = " or ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]
    raise ConfigError(f"{name} must be {listed}, got {value!r}")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """A JSON-ready dictionary of every setting that describes the run, not how it was called."""
    values = dataclasses.asdict(config)
    for transient in ("resume", "overwrite", "download"):
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
    needed = (*PRESET_SETTINGS, "prototype_init", "mmd_weight", "margin_weight", "margin")
    absent = [name for name in needed if getattr(config, name) is None]
    if config.model in ("cgm", "bir-vae") and config.sigma2 is None and config.rate_bits is None:
        absent.append("sigma2 or rate_bits")
    if absent:
        raise ConfigError(f"config lacks values of {', '.join(absent)}")
    shape = config.image_shape
    whole = len(shape) == 3 and all(isinstance(size, int) for size in shape)
    if not whole or shape[0] < 1 or min(shape[1:]) < LEAST_SIDE or max(shape) > LARGEST_SIDE:
        raise ConfigError(
            f"image_shape must be [c, h, w] with sides of at least {LEAST_SIDE} and at most "
            f"{LARGEST_SIDE}, got {list(shape)}"
        )
    return config
