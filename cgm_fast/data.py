"""Images to train on: torchvision's sets, an npz, a folder, or the digits that need no download.

Everything is held as uint8 [n, c, h, w]; `prepare` turns a batch into what a likelihood takes.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cgm_fast.extras import require

BINARIZATIONS = ("none", "dynamic", "static", "threshold")
HELD_OUT = 0.1  # share of the images kept for testing where a source has no test set of its own
MAX_CLASSES = 2**16  # labels beyond this are taken for a mistake: there is a name for every class
_SEED = 0  # of that split; not the run's, so that runs can be compared

_MNIST_FILES = [
    f"{part}-{kind}"
    for part in ("train", "t10k")
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
]
_TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
}


class DataError(ValueError):
    """Data that cannot be used; the message says what it is and what is wanted."""


@dataclass(frozen=True)
class ImageData:
    """Training and test images.

    Attributes:
        name: The data set's name or path.
        train: [n, c, h, w] uint8.
        train_labels: [n] int64 in [0, classes), or None.
        test: [n, c, h, w] uint8.
        test_labels: [n] int64, or None.
        class_names: One per class; empty without labels.
    """

    name: str
    train: Tensor
    train_labels: Tensor | None
    test: Tensor
    test_labels: Tensor | None
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(c, h, w)."""
        c, h, w = self.train.shape[1:]
        return c, h, w


def load(
    name: str,
    *,
    root: str | Path = "data",
    download: bool = False,
    test: str | None = None,
    image_size: int | None = None,
) -> ImageData:
    """Load a data set.

    Args:
        name: "digits", "mnist", "fashion-mnist", "cifar10", the path of an npz with `images`
            [n, h, w, c] uint8 and optional `labels` [n] (and `names`, one per class or per
            image), or of a folder with one folder of images per class (or such folders under
            `train` and `test`).
        root: Where torchvision's sets lie, or are to be put; in place of one, NAME-train.npz and
            NAME-test.npz.
        download: Whether they may be downloaded.
        test: For an npz or a folder, a second one to test on; without it a tenth is held out.
        image_size: Side to which a folder's images are resized; None for the first image's.

    Raises:
        DataError: there is no such data, or it is not as described.
        MissingExtraError: reading it needs a package that is not installed.
    """
    if test is not None and (name == "digits" or name in _TORCHVISION):
        raise DataError(f"test data is for an npz or a folder; {name} has test images of its own")
    if name == "digits":
        return _digits()
    if name in _TORCHVISION:
        pair = [Path(root) / f"{name}-{part}.npz" for part in ("train", "test")]
        if (
            all(file.exists() for file in pair)
            and not (Path(root) / _TORCHVISION[name][1]).exists()
        ):
            return _with_test(name, *map(_npz, pair))
        return _torchvision(name, Path(root), download)
    path = Path(name)
    if path.suffix == ".npz":
        return _with_test(name, _npz(path), None if test is None else _npz(Path(test)))
    if path.is_dir():
        return _folder(path, None if test is None else Path(test), image_size)
    known = ", ".join(("digits", *_TORCHVISION))
    raise DataError(
        f"data must be one of {known}, the path of an npz file or of a folder of images; "
        f"got {name!r}, which is none of these"
    )


def draw_once(data: ImageData) -> ImageData:
    """The same with every pixel drawn once and for all with its grey value as probability.

    As in Larochelle's statically binarised MNIST, of which this is another draw, with labels.
    """
    generator = torch.Generator().manual_seed(_SEED)

    def drawn(images: Tensor) -> Tensor:
        return torch.cat(
            [prepare(part, "dynamic", False, generator).byte() * 255 for part in images.split(4096)]
        )

    return dataclasses.replace(data, train=drawn(data.train), test=drawn(data.test))


def prepare(
    images: Tensor, binarization: str, continuous: bool, generator: torch.Generator | None = None
) -> Tensor:
    """A batch of uint8 images as floats in [0, 1].

    Args:
        images: [B, c, h, w] uint8.
        binarization: "none"; "dynamic": each pixel drawn anew with its grey value as
            probability; "threshold": at half; "static": the same, of images that `draw_once` has
            made black and white.
        continuous: Whether the likelihood is a density, for which 8-bit values are spread
            uniformly over their interval (dequantised).
        generator: For the draws; None for torch's own.

    Raises:
        ValueError: unknown binarization.
    """
    if binarization == "dynamic":
        grey = images.float() / 255
        noise = torch.rand(grey.shape, device=grey.device, generator=generator)
        return (noise < grey).float()
    if binarization in ("static", "threshold"):
        return (images > 127).float()
    if binarization != "none":
        raise ValueError(
            f"binarization must be one of {', '.join(BINARIZATIONS)}, got {binarization!r}"
        )
    if continuous:
        noise = torch.rand(images.shape, device=images.device, generator=generator)
        return (images.float() + noise) / 256
    return images.float() / 255


@dataclass(frozen=True)
class Noise:
    """Gaussian noise for images, to be taken off them again (section IV-D).

    Attributes:
        variance: For images in [0, 1].
        signed: Whether it is for images in [-1, 1] instead: a quarter of it on [0, 1].
        clip: Whether noisy images are clipped to the range.
    """

    variance: float
    signed: bool = False
    clip: bool = False

    def add(self, clean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Noisy versions of images in [0, 1] of any shape; the generator is on their device."""
        deviation = math.sqrt(self.variance) * (0.5 if self.signed else 1.0)
        noise = torch.randn(clean.shape, device=clean.device, generator=generator)
        noisy = clean + deviation * noise
        return noisy.clamp(0, 1) if self.clip else noisy

    def __str__(self) -> str:
        """For notes: the same variance is four times as much noise on one range."""
        clipped = "clipped" if self.clip else "not clipped"
        return f"variance {self.variance:g} on [{'-1' if self.signed else '0'}, 1], {clipped}"


def _digits() -> ImageData:
    """1797 handwritten digits of 8 x 8 pixels and 17 grey levels, embedded in scikit-learn."""
    datasets = require("sklearn.datasets", "the digits data set")
    split = require("sklearn.model_selection", "the digits data set").train_test_split
    digits = datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    train, test, train_labels, test_labels = split(
        images, digits.target, test_size=0.2, random_state=_SEED, stratify=digits.target
    )
    return ImageData(
        "digits",
        torch.from_numpy(train),
        torch.from_numpy(train_labels).long(),
        torch.from_numpy(test),
        torch.from_numpy(test_labels).long(),
        tuple(str(i) for i in range(10)),
    )


def _torchvision(name: str, root: Path, download: bool) -> ImageData:
    datasets = require("torchvision.datasets", f"the {name} data set")
    cls_name, folder = _TORCHVISION[name]
    cls = getattr(datasets, cls_name)
    try:
        with _unpacked(root, folder) as usable:
            train, test = (cls(usable, train=part, download=download) for part in (True, False))
    except (EOFError, ValueError, AssertionError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{name} in {root / folder} is damaged: {error}") from error
    except (RuntimeError, OSError) as error:
        if download:
            raise DataError(f"{name} could not be downloaded to {root}: {error}") from error
        raise DataError(
            f"{name} is not in {root / folder}: pass --data-root with the folder that holds it, "
            "or --download to fetch it"
        ) from error

    def tensors(part: Any) -> tuple[Tensor, Tensor]:
        images = torch.as_tensor(np.asarray(part.data))
        images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
        return images.contiguous(), torch.as_tensor(part.targets).long()

    return ImageData(name, *tensors(train), *tensors(test), tuple(train.classes))


@contextmanager
def _unpacked(root: Path, folder: str) -> Iterator[Path]:
    """The root, or a temporary one with the files unpacked that lie there as .gz.

    torchvision would unpack them beside the originals, which may be read-only, and would fetch
    anew what fails its check.
    """
    raw = root / folder
    packed = [raw / f"{file}.gz" for file in _MNIST_FILES]
    unpacked = all((raw / file).exists() for file in _MNIST_FILES)
    if unpacked or not all(path.exists() for path in packed):
        yield root
        return
    with tempfile.TemporaryDirectory() as copy:
        target = Path(copy) / folder
        target.mkdir(parents=True)
        for path in packed:
            with gzip.open(path) as file, (target / path.stem).open("wb") as out:
                shutil.copyfileobj(file, out)
        yield Path(copy)


def _npz(path: Path) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            arrays = {key: found[key] for key in ("images", "labels", "names") if key in found}
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"{path} cannot be read as an npz file: {error}") from error
    except Exception as error:  # zipfile and zlib raise classes of their own
        raise DataError(f"{path} is damaged: {error}") from error
    if "images" not in arrays:
        raise DataError(f"{path} has no array named 'images' ([n, h, w, c] uint8)")
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            f"'images' in {path} must be [n, h, w, c] uint8 with c 1 or 3, got "
            f"{list(images.shape)} {images.dtype}"
        )
    if min(images.shape) == 0:
        raise DataError(f"'images' in {path} is empty: {list(images.shape)}")
    labels = arrays.get("labels")
    if labels is not None:
        fits = labels.shape == images.shape[:1] and labels.dtype.kind in "iu"
        if not fits or labels.min() < 0 or labels.max() >= MAX_CLASSES:
            raise DataError(
                f"'labels' in {path} must be [{images.shape[0]}] integers in [0, {MAX_CLASSES}), "
                f"got {list(labels.shape)} {labels.dtype}"
                + (f" in [{labels.min()}, {labels.max()}]" if fits else "")
            )
    names = _names(path, arrays.get("names"), labels)
    tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return tensor, None if labels is None else torch.from_numpy(labels.astype(np.int64)), names


def _names(path: Path, names: Any, labels: Any) -> tuple[str, ...]:
    """A name for each class, where there is one for each image or each class."""
    if names is None or labels is None:
        return ()
    classes = int(labels.max()) + 1
    if names.shape == labels.shape and len(names) != classes:
        return _names_by_image(path, names, labels, classes)
    if names.ndim != 1 or len(names) < classes:
        raise DataError(
            f"'names' in {path} must hold one name for each of the {classes} classes, or of the "
            f"{len(labels)} images, got {list(names.shape)}"
        )
    return tuple(str(name) for name in names)


def _names_by_image(path: Path, names: Any, labels: Any, classes: int) -> tuple[str, ...]:
    """Classes that no image shows go by their number."""
    found: dict[int, str] = {}
    for label, name in zip(labels.tolist(), names.tolist(), strict=True):
        if found.setdefault(label, str(name)) != str(name):
            raise DataError(
                f"'names' in {path} must be the same for all images of a class, got "
                f"{found[label]!r} and {str(name)!r} for class {label}"
            )
    return tuple(found.get(k, str(k)) for k in range(classes))


def _folder(path: Path, test: Path | None, image_size: int | None) -> ImageData:
    if test is None and (path / "train").is_dir():
        candidates = [path / name for name in ("test", "val") if (path / name).is_dir()]
        path, test = path / "train", candidates[0] if candidates else None
    train = _read_folder(path, image_size)
    size = train[0].shape[-1]
    return _with_test(str(path), train, None if test is None else _read_folder(test, size))


def _read_folder(path: Path, image_size: int | None) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    datasets = require("torchvision.datasets", "a folder of images")
    transforms = require("torchvision.transforms.v2.functional", "a folder of images")
    try:
        folder = datasets.ImageFolder(path)
    except OSError as error:
        raise DataError(
            f"{path} must hold one folder of images per class, as torchvision's ImageFolder "
            f"takes it: {error}"
        ) from error
    images, labels = [], []
    for file, label in folder.samples:
        try:
            image = folder.loader(file)
        except Exception as error:  # PIL also raises classes of its own
            raise DataError(f"{file} cannot be read as an image: {error}") from error
        image_size = min(image.size) if image_size is None else image_size
        square = transforms.center_crop(image, [min(image.size)] * 2)
        pixels = np.array(transforms.resize(square, [image_size] * 2))
        images.append(torch.from_numpy(pixels).permute(2, 0, 1))
        labels.append(label)
    return torch.stack(images), torch.tensor(labels), tuple(folder.classes)


def _with_test(
    name: str,
    train: tuple[Tensor, Tensor | None, tuple[str, ...]],
    test: tuple[Tensor, Tensor | None, tuple[str, ...]] | None,
) -> ImageData:
    images, labels, names = train
    if test is None:
        if len(images) < 2:
            raise DataError(f"{name} must hold at least 2 images, got {len(images)}")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(_SEED))
        held_out = max(1, round(HELD_OUT * len(images)))
        kept, aside = order[held_out:].sort().values, order[:held_out].sort().values
        test_images, test_labels = images[aside], None if labels is None else labels[aside]
        images, labels = images[kept], None if labels is None else labels[kept]
    else:
        test_images, test_labels, test_names = test
        if test_images.shape[1:] != images.shape[1:]:
            raise DataError(
                f"test images must have the training images' shape {list(images.shape[1:])}, "
                f"got {list(test_images.shape[1:])}"
            )
        if names and test_names and test_labels is not None:
            test_labels = _renumbered(test_labels, test_names, names)
    if labels is not None and not names:
        highest = [part.max() for part in (labels, test_labels) if part is not None]
        names = tuple(str(i) for i in range(int(max(highest)) + 1))
    return ImageData(
        name, images.contiguous(), labels, test_images.contiguous(), test_labels, names
    )


def _renumbered(labels: Tensor, names: tuple[str, ...], wanted: tuple[str, ...]) -> Tensor:
    """Labels into `names` as labels into `wanted`: a test set need not show every class."""
    unknown = sorted(set(names) - set(wanted))
    if unknown:
        raise DataError(f"test images have classes that training ones lack: {', '.join(unknown)}")
    return torch.tensor([wanted.index(name) for name in names])[labels]
