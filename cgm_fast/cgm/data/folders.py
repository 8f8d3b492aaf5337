"""Folders of images: which files are read, which class and which split they belong to."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from cgm_fast.cgm.data.dataset import HELD_OUT, DataError, Part, some_of
from cgm_fast.cgm.data.memory import gigabytes, require_memory
from cgm_fast.cgm.data.pictures import SUFFIXES, Header, Seen, read_header, read_picture

# What systems and programs leave beside files; so are names that begin with a dot.
SYSTEM_FOLDERS = {
    "@eadir", "#recycle", "$recycle.bin", "__macosx", "__pycache__", "lost+found",
    "system volume information",
}  # fmt: skip
TRAIN = ("train", "training")
TEST = ("test", "testing")
VALIDATION = ("val", "valid", "validation")

# A size that nobody asked for is questioned above both of these.
LARGE_SIDE = 256
LARGE_TOTAL = 2**30


class Listing(NamedTuple):
    """The image files of a folder, in order."""

    path: Path
    files: list[Path]
    labels: list[int] | None
    """Each file's class; None where there are no classes."""
    names: tuple[str, ...]
    left_out: tuple[str, ...]
    """What lies there and is not read, a line each."""


class Splits(NamedTuple):
    """The parts of a folder."""

    train: Path
    test: Path | None
    unread: Path | None
    """Validation images beside test images."""


def find_splits(path: Path) -> Splits:
    """A folder's own training and test set, if its folders are called so.

    They are splits and not classes of these names if the training set holds folders, or if there
    are none but splits.

    Raises:
        DataError: two folders are training sets, or there are splits without one.
    """
    folders = _folders(path)
    found = {
        kind: [folder for folder in folders if folder.name.lower() in kind]
        for kind in (TRAIN, TEST, VALIDATION)
    }
    for kind, same in found.items():
        if len(same) > 1:
            names = " and ".join(folder.name for folder in same)
            raise DataError(f"{path} must hold one of {', '.join(kind)}, got {names}")
    train, test, validation = (same[0] if same else None for same in found.values())
    none_else = sum(map(len, found.values())) == len(folders)
    if train is None:
        if folders and none_else and any(_folders(folder) for folder in folders):
            names = " and ".join(folder.name for folder in folders)
            raise DataError(f"{path} holds {names} and no folder named {' or '.join(TRAIN)}")
        return Splits(path, None, None)
    if not none_else and not _folders(train):
        return Splits(path, None, None)
    return Splits(train, test or validation, validation if test else None)


def list_images(path: Path) -> Listing:
    """The images of a folder: of one folder per class, or without classes in the folder itself.

    Raises:
        DataError: there are none, a class has none, or a link leads back to a folder around it.
    """
    if not path.is_dir():
        raise DataError(f"{path} must be a folder with one folder of images per class, and is none")
    classes = _folders(path)
    beside, others = _files(path)
    files: list[Path] = []
    labels: list[int] = []
    empty: list[str] = []
    for label, folder in enumerate(classes):
        before = len(files)
        for inner in sorted(_walk(folder, (path.resolve(),)), key=str):
            images, rest = _files(inner)
            files += images
            others += rest
        labels += [label] * (len(files) - before)
        if len(files) == before:
            empty.append(folder.name)
    left_out: tuple[str, ...] = ()
    if others:
        left_out = (f"{path}: not read: {_kinds(others)}",)
    if not files and beside:
        return Listing(path, beside, None, (), left_out)
    if not files or empty:
        raise DataError(
            f"{path} must hold images, or one folder of images per class"
            + (f"; there are none in {some_of(empty)}" if empty else "")
            + f" (files whose names end in {', '.join(SUFFIXES)})"
        )
    if beside:
        left_out += (f"{path}: not read: images beside the classes' folders, {len(beside)}",)
    return Listing(path, files, labels, tuple(folder.name for folder in classes), left_out)


def read_folder(
    listing: Listing,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    skip_broken: bool = False,
    seen: Seen | None = None,
) -> tuple[Part, tuple[str, ...]]:
    """Read the images of a folder, each cut to the wanted ratio of sides and resized.

    Args:
        listing: Which.
        size: (h, w) in pixels; None for a square of the first image's shorter side.
        channels: 1 or 3; None for 1 where all images are grey.
        skip_broken: Leave out images that cannot be read.
        seen: Counts what was done to them.

    Returns:
        The images, and notes on what was read.

    Raises:
        DataError: an image cannot be read, or together they do not fit into memory.
    """
    headers, broken = _headers(listing.files, skip_broken)
    if not headers:
        raise DataError(f"{listing.path} holds no image that can be read: {broken[0]}")
    if channels is None:
        channels = 1 if all(header.grey for header in headers.values()) else 3
    asked = size is not None
    side = next(iter(headers.values())).side
    h, w = size or (side, side)
    total = int(len(headers) * channels * h * w * (1 + HELD_OUT))
    what = f"{len(headers)} images of {h} x {w} pixels in {listing.path}"
    hint = "pass --image-size with the side to resize them to, such as 64"
    if not asked and side > LARGE_SIDE and total > LARGE_TOTAL:
        raise DataError(f"{what}, the first one's size, would take {gigabytes(total)}: {hint}")
    require_memory(what, total, hint)
    try:
        images = torch.empty((len(headers), channels, h, w), dtype=torch.uint8, device="cpu")
    except RuntimeError as error:  # a limit that only the allocator knows
        raise DataError(f"{what} do not fit into the memory that is left: {hint}") from error
    kept: list[int] = []
    for index in headers:
        try:
            images[len(kept)] = read_picture(listing.files[index], channels, (h, w), seen)
        except DataError as error:
            if not skip_broken:
                raise _with_hint(error) from error
            broken.append(str(error))
            continue
        kept.append(index)
    if not kept:
        raise DataError(f"{listing.path} holds no image that can be read: {broken[0]}")
    labels = None
    if listing.labels is not None:
        labels = torch.tensor([listing.labels[index] for index in kept], device="cpu")
    classes = f" of {len(listing.names)} classes ({some_of(listing.names)})" if labels is not None \
        else " without labels"  # fmt: skip
    notes = [
        f"{listing.path}: {len(kept)} images{classes}, {'grey' if channels == 1 else 'colour'}, "
        f"{h} x {w} pixels" + ("" if asked else ", the first one's shorter side"),
        *listing.left_out,
    ]
    if broken:
        notes.append(f"{listing.path}: left out: {len(broken)}, such as: {broken[0]}")
    return Part(images[: len(kept)], labels, listing.names), tuple(notes)


def _headers(files: list[Path], skip_broken: bool) -> tuple[dict[int, Header], list[str]]:
    """The files that are images, by their positions, and why the others are not."""
    headers: dict[int, Header] = {}
    broken: list[str] = []
    for index, file in enumerate(files):
        try:
            headers[index] = read_header(file)
        except DataError as error:
            if not skip_broken:
                raise _with_hint(error) from error
            broken.append(str(error))
    return headers, broken


def _with_hint(error: DataError) -> DataError:
    return DataError(f"{error} (--skip-broken leaves such files out)")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def _entries(path: Path) -> list[Path]:
    try:
        return sorted((path / name for name in os.listdir(path) if not _hidden(name)), key=str)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _folders(path: Path) -> list[Path]:
    return [entry for entry in _entries(path) if entry.is_dir()]


def _files(path: Path) -> tuple[list[Path], list[Path]]:
    """Image files of a folder, and its other files."""
    files = [entry for entry in _entries(path) if not entry.is_dir()]
    images = [file for file in files if file.name.lower().endswith(SUFFIXES)]
    return images, [file for file in files if not file.name.lower().endswith(SUFFIXES)]


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """A folder and all below it, links too.

    Raises:
        DataError: a link leads to a folder above it, whose images would be read without end.
    """
    real = folder.resolve()
    if real in above:
        raise DataError(f"{folder} is a link to {real}, which holds it: remove the link")
    yield folder
    for inner in _folders(folder):
        yield from _walk(inner, (*above, real))


def _kinds(files: list[Path]) -> str:
    """How many files have which endings."""
    counts = Counter(file.suffix.lower() or "without an ending" for file in files)
    return "files, " + some_of([f"{count} {ending}" for ending, count in counts.most_common()])
