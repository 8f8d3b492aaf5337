"""What a data set is once it is read: uint8 images, labels, names; its test set and fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

HELD_OUT = 0.1  # share of the images kept for testing where a source has no test set of its own
SEED = 0  # of that split; not the run's, so that runs can be compared
UNLABELLED = -1
_AT_ONCE = 1024  # images moved together


class DataError(ValueError):
    """Data that cannot be used; the message says what it is and what is wanted."""


@dataclass(frozen=True)
class ImageData:
    """Training and test images.

    Attributes:
        name: The data set's name or path.
        train: [n, c, h, w] uint8.
        train_labels: [n] int64 in [0, classes), -1 where an image has none; or None.
        test: [n, c, h, w] uint8.
        test_labels: [n] int64 likewise, or None.
        class_names: One per class; empty without labels.
        notes: What was read and what was done to it, a line each.
    """

    name: str
    train: Tensor
    train_labels: Tensor | None
    test: Tensor
    test_labels: Tensor | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(c, h, w)."""
        c, h, w = self.train.shape[1:]
        return c, h, w


class Part(NamedTuple):
    """What one file or folder holds."""

    images: Tensor
    """[n, c, h, w] uint8; memory of its own, which `assemble` may reorder."""
    labels: Tensor | None
    """[n] int64, -1 where an image has none; or None."""
    names: tuple[str, ...]
    """One per class, or empty where classes go by their numbers."""


def fingerprint(dataset: ImageData) -> str:
    """What tells a data set's content from another's: 32 hexadecimal digits.

    BLAKE2 of every pixel and label, of shapes and class names; not of the data set's name or
    place. It takes about a second per gigabyte.

    Args:
        dataset: In the form in which it is trained on; `draw_once` makes it another.

    Example:
        >>> fingerprint(load("digits")) == fingerprint(load("digits"))
        True
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (dataset.train, dataset.train_labels, dataset.test, dataset.test_labels):
        if part is None:
            digest.update(b"none;")
            continue
        digest.update(f"{list(part.shape)} {part.dtype};".encode())
        for chunk in part.split(_AT_ONCE):
            digest.update(chunk.contiguous().cpu().numpy().data)
    digest.update(repr(dataset.class_names).encode())
    return digest.hexdigest()


def assemble(name: str, train: Part, test: Part | None, notes: tuple[str, ...] = ()) -> ImageData:
    """A data set of what was read, with a tenth held out where there is no test set.

    Args:
        name: The data set's name or path.
        train: Training images; where `test` is None, all images.
        test: Test images, of the same shape.
        notes: See `ImageData`.

    Raises:
        DataError: there are too few images, shapes differ, or test images have classes that
            training ones lack.
    """
    if test is None and len(train.images) < 2:
        raise DataError(f"{name} must hold at least 2 images, got {len(train.images)}")
    if test is not None and test.images.shape[1:] != train.images.shape[1:]:
        raise DataError(
            f"test images must have the training images' shape {list(train.images.shape[1:])}, "
            f"got {list(test.images.shape[1:])}"
        )
    names, labels, test_labels, renumbered = _classes(train, test)
    images, test_images = train.images, None if test is None else test.images
    if test_images is None:
        images, test_images, kept, aside = _hold_out(images)
        if labels is not None:  # either part may be one without labels
            test_labels = _or_none(labels[aside])
            labels = _or_none(labels[kept])
    return ImageData(
        name,
        images.contiguous(),
        labels,
        test_images.contiguous(),
        test_labels,
        names,
        notes + renumbered,
    )


def _hold_out(images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, test images, and which of `images` they are; in place, but for the latter.

    A copy of all would need their memory twice.
    """
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(images), generator=generator, device="cpu")
    count = max(1, round(HELD_OUT * len(images)))
    kept, aside = order[count:].sort().values, order[:count].sort().values
    held_out = images[aside]
    for first in range(0, len(kept), _AT_ONCE):
        chosen = kept[first : first + _AT_ONCE]  # none of which lies before `first`
        images[first : first + len(chosen)] = images[chosen]
    return images[: len(kept)], held_out, kept, aside


def _classes(
    train: Part, test: Part | None
) -> tuple[tuple[str, ...], Tensor | None, Tensor | None, tuple[str, ...]]:
    """Class names, both labels, and a note where classes got other numbers."""
    labels, names = _or_none(train.labels), train.names
    test_labels = None if test is None else _or_none(test.labels)
    if labels is not None and names:
        if test is not None and test.names and test_labels is not None:
            test_labels = _renumbered(test_labels, test.names, names)
        return names, labels, test_labels, ()
    if labels is None:
        return (), None, test_labels, ()
    seen = [part[part != UNLABELLED] for part in (labels, test_labels) if part is not None]
    present = torch.cat(seen).unique()
    names = tuple(str(label) for label in present.tolist())
    if int(present[-1]) + 1 == len(present):
        return names, labels, test_labels, ()
    labels = _positions(labels, present)
    test_labels = None if test_labels is None else _positions(test_labels, present)
    return (
        names,
        labels,
        test_labels,
        (f"labels {some_of(names)} are classes 0 to {len(names) - 1}",),
    )


def _or_none(labels: Tensor | None) -> Tensor | None:
    """Labels, unless no image has one."""
    return None if labels is None or bool((labels == UNLABELLED).all()) else labels


def _positions(labels: Tensor, present: Tensor) -> Tensor:
    """Labels as positions among those present; -1 stays."""
    return torch.where(labels == UNLABELLED, labels, torch.searchsorted(present, labels))


def _renumbered(labels: Tensor, names: tuple[str, ...], wanted: tuple[str, ...]) -> Tensor:
    """Labels into `names` as labels into `wanted`: a test set need not show every class."""
    unknown = sorted(set(names) - set(wanted))
    if unknown:
        raise DataError(f"test images have classes that training ones lack: {', '.join(unknown)}")
    positions = [wanted.index(name) for name in names]
    return torch.tensor([*positions, UNLABELLED], device="cpu")[labels]


def some_of(words: Sequence[str], most: int = 5) -> str:
    """The first few words, for a line."""
    return ", ".join(words[:most]) + (", …" if len(words) > most else "")
