"""Images from an npz: this project's names for its arrays, MedMNIST's, or Keras'."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cgm_fast.cgm.data.dataset import UNLABELLED, DataError, Part
from cgm_fast.cgm.data.memory import require_memory

MAX_CLASSES = 2**16  # labels beyond this are taken for a mistake: there is a name for every class
FORM = "[n, h, w], [n, h, w, c] or [n, c, h, w] with c 1 or 3"
_AT_ONCE = 1024  # images converted together


class Names(NamedTuple):
    """What a set's arrays are called."""

    images: str
    labels: str


WHOLE = Names("images", "labels")
SPLITS = {
    "train": (Names("train_images", "train_labels"), Names("x_train", "y_train")),
    "test": (Names("test_images", "test_labels"), Names("x_test", "y_test")),
    "validation": (Names("val_images", "val_labels"), Names("x_val", "y_val")),
}
KNOWN = tuple(pair[0] for pairs in ((WHOLE,), *SPLITS.values()) for pair in pairs)


def read_npz(path: Path, split: str = "train") -> tuple[Part, Part | None, tuple[str, ...]]:
    """Read an npz.

    Args:
        path: The file. It holds `images` and optional `labels` and `names` (one per class or per
            image); or these as MedMNIST or Keras name them, for each split.
        split: Which of the latter is wanted, "train" or "test".

    Returns:
        The images; the test images, where "train" is wanted and the file has some; notes.

    Raises:
        DataError: the file cannot be read, or not in the memory that is left, or is not as
            described.
    """
    members = _members(path)
    if WHOLE.images in members:
        return _part(path, members, WHOLE), None, ()
    found = {
        name: pair
        for name, pairs in SPLITS.items()
        for pair in pairs[::-1]
        if pair.images in members
    }
    if split == "test" and found:
        wanted = next(found[name] for name in ("test", "validation", "train") if name in found)
        return _part(path, members, wanted), None, (f"{path}: {wanted.images}",)
    if "train" not in found:
        raise DataError(
            f"{path} has no array named 'images' ({FORM}), nor 'train_images' or 'x_train'; it "
            f"holds {', '.join(sorted(members)) or 'none'}"
        )
    test = found.get("test", found.get("validation"))
    note = f"{path}: {found['train'].images}" + (f", {test.images} to test on" if test else "")
    if "test" in found and "validation" in found:
        note += f"; {found['validation'].images} is not read"
    part = _part(path, members, found["train"])
    return part, None if test is None else _part(path, members, test), (note,)


class Header(NamedTuple):
    """What a member says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def _members(path: Path) -> dict[str, Header | None]:
    """The file's arrays, without reading their content; None for a member that is no array."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename.removesuffix(".npy"): _header(archive, info)
                for info in archive.infolist()
            }
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as an npz file: {error}") from error
    except Exception as error:  # decompressors raise classes of their own
        raise DataError(f"{path} is damaged: {error}") from error


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Header | None:
    with archive.open(info) as member:
        try:
            if np.lib.format.read_magic(member) != (1, 0):
                return None  # of fields, whose names take longer than images can be described in
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        except ValueError:
            return None
    return Header(shape, dtype)


def _part(path: Path, members: dict[str, Header | None], names: Names) -> Part:
    """Images and labels by these names, and the names of classes."""
    wanted = [name for name in (names.images, names.labels, "names") if name in members]
    size = 0
    for name in wanted:
        header = members[name]
        if header is None:
            raise DataError(f"'{name}' in {path} is no plain numpy array")
        if header.dtype.hasobject:
            raise DataError(
                f"'{name}' in {path} is an array of Python objects, which are not read "
                f"(allow_pickle=False): save it with a dtype of numbers or text"
            )
        size += int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize
    images = members[names.images]
    assert images is not None
    channels_last = _layout(path, names.images, images)
    count = int(np.prod(images.shape, dtype=object))
    copied = images.dtype != np.uint8 or (channels_last and images.shape[-1] > 1)
    require_memory(f"'{names.images}' in {path}, {list(images.shape)} {images.dtype},",
                   size + count * copied)  # fmt: skip
    arrays = _read(path, wanted)
    labels = arrays.get(names.labels)
    if labels is not None:
        labels = _checked_labels(path, names.labels, labels, images.shape[0])
    class_names, labels = _names(path, arrays.get("names"), labels)
    pixels = _pixels(path, names.images, arrays[names.images], channels_last)
    return Part(
        torch.from_numpy(pixels), None if labels is None else torch.from_numpy(labels), class_names
    )


def _read(path: Path, wanted: list[str]) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            return {name: found[name] for name in wanted}
    except MemoryError as error:
        raise DataError(f"{path} does not fit into the memory that is left: {error}") from error
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"{path} cannot be read as an npz file: {error}") from error
    except Exception as error:  # zipfile and decompressors raise classes of their own
        raise DataError(f"{path} is damaged: {error}") from error


def _layout(path: Path, name: str, images: Header) -> bool:
    """Whether channels come last, or are absent, rather than first.

    Raises:
        DataError: the array cannot be one of images.
    """
    shape, kind = images.shape, images.dtype.kind
    last = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    first = len(shape) == 4 and shape[1] in (1, 3)
    if not (last or first) or kind not in "buif":
        raise DataError(
            f"'{name}' in {path} must be {FORM}, of integers in [0, 255], floats in [0, 1] or "
            f"booleans, got {list(shape)} {images.dtype}"
        )
    if min(shape) == 0:
        raise DataError(f"'{name}' in {path} is empty: {list(shape)}")
    return last


def _pixels(path: Path, name: str, images: Any, channels_last: bool) -> Any:
    """Images of any accepted kind as [n, c, h, w] uint8."""
    if channels_last:
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    if images.dtype != np.uint8:
        found = np.empty(images.shape, np.uint8)
        for first in range(0, len(images), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            found[part] = _bytes(path, name, images[part])
        images = found
    elif images.max() == 1:
        # As levels of 255 they would be black, without a word.
        raise DataError(
            f"'{name}' in {path} holds no level but 0 and 1 of 255: save black and white images "
            "as booleans or floats, or times 255"
        )
    return np.ascontiguousarray(images)


def _bytes(path: Path, name: str, images: Any) -> Any:
    """Some images as uint8, if their values tell which levels they mean."""
    low, high = images.min(), images.max()
    if images.dtype == bool:
        return images * np.uint8(255)
    if images.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # which NaN is not
            raise DataError(f"'{name}' in {path} has floats, which must be in [0, 1], got "
                            f"[{low:g}, {high:g}]")  # fmt: skip
        return np.round(images.astype(np.float32) * 255)
    if low < 0 or high > 255:
        raise DataError(f"'{name}' in {path} has integers, which must be in [0, 255], got "
                        f"[{low}, {high}]")  # fmt: skip
    return images


def _checked_labels(path: Path, name: str, labels: Any, count: int) -> Any:
    """Labels [n] or [n, 1] as [n] int64."""
    shape, kind = labels.shape, labels.dtype
    if shape == (count, 1):
        labels = labels[:, 0]
    fits = labels.shape == (count,) and kind.kind in "iu"
    if not fits or labels.min() < UNLABELLED or labels.max() >= MAX_CLASSES:
        raise DataError(
            f"'{name}' in {path} must be [{count}] integers in [0, {MAX_CLASSES}), or -1 for an "
            f"image without a label, got {list(shape)} {kind}"
            + (f" in [{labels.min()}, {labels.max()}]" if fits else "")
        )
    return labels.astype(np.int64)


def _names(path: Path, names: Any, labels: Any) -> tuple[tuple[str, ...], Any]:
    """A name for each class, where there is one for each image or each class; and the labels."""
    if names is None or labels is None or labels.max() == UNLABELLED:
        return (), labels
    classes = int(labels.max()) + 1
    if names.shape == labels.shape and len(names) != classes:
        return _names_by_image(path, names, labels)
    if names.ndim != 1 or len(names) < classes:
        raise DataError(
            f"'names' in {path} must hold one name for each of the {classes} classes, or of the "
            f"{len(labels)} images, got {list(names.shape)}"
        )
    return tuple(str(name) for name in names), labels


def _names_by_image(path: Path, names: Any, labels: Any) -> tuple[tuple[str, ...], Any]:
    """Classes that no image shows have no name, and no number."""
    found: dict[int, str] = {}
    for label, name in zip(labels.tolist(), names.tolist(), strict=True):
        if label != UNLABELLED and found.setdefault(label, str(name)) != str(name):
            raise DataError(
                f"'names' in {path} must be the same for all images of a class, got "
                f"{found[label]!r} and {str(name)!r} for class {label}"
            )
    present = sorted(found)
    positions = np.where(labels == UNLABELLED, labels, np.searchsorted(present, labels))
    return tuple(found[label] for label in present), positions
