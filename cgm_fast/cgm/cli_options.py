"""What the commands take: a dataclass for each, whose docstrings are the help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cgm_fast.cgm.experiments.catalogue import Experiment
from cgm_fast.cgm.training.config import TrainConfig


@dataclass(frozen=True)
class OnRun:
    """Options of every command that takes a finished run."""

    run: str
    """The run folder."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


@dataclass(frozen=True)
class Evaluate(OnRun):
    """Evaluate a run again; writes its evaluation.json and pictures."""

    data_root: str | None = None
    """Folder that holds torchvision's data sets; default: as in training."""
    nll_images: int | None = None
    """Test images for the importance-sampled likelihood; default: as in training."""
    nll_samples: int | None = None
    """Latents per image for it; default: as in training."""


@dataclass(frozen=True)
class Generate(OnRun):
    """Generate images: a row per category, one category, or categories by mixing weight."""

    category: int | None = None
    """Only this category."""
    mixing: Literal["empirical", "uniform"] | None = None
    """Draw each image's category: by its share of the training images, or all alike."""
    prior: Literal["own", "fitted"] = "own"
    """The model's own, or one with means and covariances of the training images' latents."""
    data_root: str | None = None
    """Folder that holds torchvision's data sets, for a fitted prior; default: as in training."""
    count: int | None = None
    """How many images, with a category, a mixing or an .npz; default: 100."""
    seed: int = 0
    """Of the draws."""
    out: str = "generated.png"
    """A .png picture, or an .npz with `images` [n, h, w, c] uint8 and `labels` [n]."""


@dataclass(frozen=True)
class Reconstruct(OnRun):
    """Draw test images above their reconstructions."""

    count: int = 50
    """How many images."""
    data: str | None = None
    """An npz, a folder of images or one image; default: the run's own test images."""
    skip_broken: bool = False
    """Leave out images of a folder that cannot be read."""
    data_root: str | None = None
    """Folder that holds torchvision's data sets; default: as in training."""
    out: str = "reconstructed.png"
    """The picture."""


@dataclass(frozen=True)
class Denoise(OnRun):
    """Add noise to test images and reconstruct them; best on a run trained with the same noise."""

    variance: float = 0.5
    """Variance of the Gaussian noise."""
    range: Literal["unit", "signed"] = "unit"
    """Which range of the images that is for: [0, 1], or [-1, 1], where it is a quarter."""
    clip: bool = False
    """Clip noisy images to the range."""
    count: int = 1000
    """How many images the measurements are over."""
    seed: int = 0
    """Of the noise."""
    data_root: str | None = None
    """Folder that holds torchvision's data sets; default: as in training."""
    out: str = "denoised.png"
    """The picture: clean, noisy, denoised."""


@dataclass(frozen=True)
class Latents(OnRun):
    """Draw the codes of test images with the prototypes."""

    data_root: str | None = None
    """Folder that holds torchvision's data sets; default: as in training."""
    out: str = "latents.png"
    """A .png scatter (two dimensions, or two principal components), or an .npz with `r`, `labels`,
    `assignment` and `prototypes`."""


@dataclass(frozen=True)
class Doctor:
    """Show versions, devices, which implementations are usable and why not, and build flags."""

    verify: bool = False
    """Compare every implementation with float64 on the CPU, in every regime, on every device; where
    one is wrong, the exit code is 1. Compiles all of Triton's kernels, which takes minutes."""


COMMANDS: dict[str, Any] = {
    "train": TrainConfig,
    "evaluate": Evaluate,
    "generate": Generate,
    "reconstruct": Reconstruct,
    "denoise": Denoise,
    "latents": Latents,
    "experiment": Experiment,
    "doctor": Doctor,
}
