"""Data sets that others keep: scikit-learn's embedded digits, and torchvision's."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cgm_fast.cgm.data.dataset import SEED, DataError, ImageData
from cgm_fast.cgm.extras import require

_MNIST_FILES = [
    f"{part}-{kind}"
    for part in ("train", "t10k")
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
]
# Class and folder of each.
TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
}


def digits() -> ImageData:
    """1797 handwritten digits of 8 x 8 pixels and 17 grey levels, embedded in scikit-learn."""
    datasets = require("sklearn.datasets", "the digits data set")
    split = require("sklearn.model_selection", "the digits data set").train_test_split
    found = datasets.load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)[:, None]
    train, test, train_labels, test_labels = split(
        images, found.target, test_size=0.2, random_state=SEED, stratify=found.target
    )
    return ImageData(
        "digits",
        torch.from_numpy(train),
        torch.from_numpy(train_labels).long(),
        torch.from_numpy(test),
        torch.from_numpy(test_labels).long(),
        tuple(str(i) for i in range(10)),
    )


def torchvision_set(name: str, root: Path, download: bool) -> ImageData:
    """One of `TORCHVISION`, from its own files below `root`.

    Raises:
        DataError: it is not there, cannot be read or downloaded, or is damaged.
        MissingExtraError: torchvision is not installed.
    """
    datasets = require("torchvision.datasets", f"the {name} data set")
    cls_name, folder = TORCHVISION[name]
    cls = getattr(datasets, cls_name)
    try:
        with _unpacked(name, root, folder) as usable:
            train, test = (cls(usable, train=part, download=download) for part in (True, False))
    except DataError:
        raise
    except (EOFError, ValueError, AssertionError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{name} in {root / folder} is damaged: {error}") from error
    except (RuntimeError, OSError) as error:
        if download:
            raise DataError(f"{name} could not be downloaded to {root}: {error}") from error
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise DataError(f"{name} in {root / folder} cannot be read: {error}") from error
        raise DataError(
            f"{name} is not in {root / folder}: pass --data-root with the folder that holds it, "
            "or --download to fetch it"
        ) from error

    def tensors(part: Any) -> tuple[Tensor, Tensor]:
        # On the CPU whatever torch's default device: batches go where the model is.
        images = torch.as_tensor(np.asarray(part.data), device="cpu")
        images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
        return images.contiguous(), torch.as_tensor(part.targets, device="cpu").long()

    return ImageData(name, *tensors(train), *tensors(test), tuple(train.classes))


@contextmanager
def _unpacked(name: str, root: Path, folder: str) -> Iterator[Path]:
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
            with gzip.open(path) as file:
                _unpack(name, file, target / path.stem)
        yield Path(copy)


def _unpack(name: str, file: Any, target: Path) -> None:
    try:
        with target.open("wb") as out:
            shutil.copyfileobj(file, out)
    except (gzip.BadGzipFile, EOFError):
        raise
    except OSError as error:
        raise DataError(
            f"{name} could not be unpacked to {tempfile.gettempdir()}: {error.strerror}; TMPDIR "
            "names a folder with room for 60 MB"
        ) from error
