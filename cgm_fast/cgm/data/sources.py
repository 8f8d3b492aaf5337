"""Where images come from: a name, the path of an npz, of a folder, or of one image."""

from __future__ import annotations

import difflib
from pathlib import Path

from torch import Tensor

from cgm_fast.cgm.data.dataset import DataError, ImageData, Part, assemble
from cgm_fast.cgm.data.folders import find_splits, list_images, read_folder
from cgm_fast.cgm.data.npz import read_npz
from cgm_fast.cgm.data.pictures import SUFFIXES, Seen, read_picture
from cgm_fast.cgm.data.sets import TORCHVISION, digits, torchvision_set


def load(
    name: str,
    *,
    root: str | Path = "data",
    download: bool = False,
    test: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    skip_broken: bool = False,
) -> ImageData:
    """Load a data set.

    An npz holds `images` and optional `labels` [n] (and `names`, one per class or per image), or
    arrays named as in MedMNIST's (`train_images`, `train_labels`, `test_images`, …) or Keras'
    (`x_train`, `y_train`, …). Images are [n, h, w], [n, h, w, c] or [n, c, h, w] with c 1 or 3:
    integers in [0, 255], floats in [0, 1] or booleans. A label of -1 stands for none.

    A folder holds one folder of images per class, or images without classes; or such folders
    named train or training, and test, testing, val, valid or validation. Hidden ones are skipped.

    Args:
        name: "digits", "mnist", "fashion-mnist", "cifar10", or the path of an npz or a folder.
        root: Where torchvision's sets lie, or are to be put; in place of one, NAME-train.npz and
            NAME-test.npz.
        download: Whether they may be downloaded.
        test: For an npz or a folder, a second one to test on; without it a tenth is held out,
            unless there is a test set already.
        image_size: Side to which a folder's images are resized; None for the first image's.
        channels: Of a folder's images, 1 for grey or 3 for colour; None for 1 if all are grey.
        skip_broken: Leave out a folder's images that cannot be read, instead of raising.

    Returns:
        The images; its `notes` say what was read.

    Raises:
        DataError: there is no such data, it is not as described, or does not fit into memory.
        MissingExtraError: reading it needs a package that is not installed.

    Example:
        >>> load("digits").image_shape
        (1, 8, 8)
    """
    if channels not in (None, 1, 3):
        raise DataError(f"channels must be 1, 3 or None, got {channels}")
    if test is not None and (name == "digits" or name in TORCHVISION):
        raise DataError(f"test data is for an npz or a folder; {name} has test images of its own")
    if name == "digits":
        return digits()
    if name in TORCHVISION:
        pair = [Path(root) / f"{name}-{part}.npz" for part in ("train", "test")]
        own = Path(root) / TORCHVISION[name][1]
        if not own.exists() and all(file.exists() for file in pair):
            return assemble(name, read_npz(pair[0])[0], read_npz(pair[1], "test")[0])
        return torchvision_set(name, Path(root), download)
    path = Path(name)
    if path.suffix == ".npz":
        part, own_test, notes = read_npz(path)
        if test is not None:
            own_test, _, more = read_npz(Path(test), "test")
            notes += more
        return assemble(name, part, own_test, notes)
    if path.is_dir():
        return _folder(path, None if test is None else Path(test), image_size, channels,
                       skip_broken)  # fmt: skip
    known = ("digits", *TORCHVISION)
    close = difflib.get_close_matches(name, known, 1)
    raise DataError(
        f"data must be one of {', '.join(known)}, the path of an npz file or of a folder of "
        f"images; got {name!r}, which is none of these"
        + (f" (did you mean {close[0]}?)" if close else "")
    )


def load_images(
    name: str,
    shape: tuple[int, int, int],
    *,
    count: int | None = None,
    root: str | Path = "data",
    skip_broken: bool = False,
) -> Tensor:
    """Images as a model of some shape takes them, in their own order.

    Args:
        name: As for `load`, or the path of one image. Of a source with a test set, its test
            images; else all images, a folder's by name.
        shape: (c, h, w). Images of files are made grey or coloured, cut and resized to it; other
            sources must have it.
        count: How many of the first; None for all.
        root: As for `load`.
        skip_broken: As for `load`.

    Returns:
        [n, c, h, w] uint8.

    Raises:
        DataError: there are no such images, or they have another shape.
        MissingExtraError: reading them needs a package that is not installed.
    """
    path, channels, size = Path(name), shape[0], shape[1:]
    if path.suffix == ".npz":
        images = read_npz(path, "test")[0].images
    elif name == "digits" or name in TORCHVISION:
        images = load(name, root=root).test
    elif path.is_dir():
        splits = find_splits(path)
        listing = list_images(splits.test or splits.train)
        files = listing.files if skip_broken else listing.files[:count]
        images = read_folder(
            listing._replace(files=files, labels=None),
            size=size,
            channels=channels,
            skip_broken=skip_broken,
        )[0].images
    elif path.is_file() and path.suffix.lower() in SUFFIXES:
        images = read_picture(path, channels, size)[None]
    else:
        raise DataError(
            f"data must be the path of an npz, of a folder of images or of an image "
            f"({', '.join(SUFFIXES)}), got {name!r}"
        )
    if tuple(images.shape[1:]) != tuple(shape):
        raise DataError(f"images in {name} must be {list(shape)}, got {list(images.shape[1:])}")
    return images[:count]


def _folder(
    path: Path,
    test: Path | None,
    image_size: int | None,
    channels: int | None,
    skip_broken: bool,
) -> ImageData:
    notes: tuple[str, ...] = ()
    train = path
    if test is None:
        train, test, unread = find_splits(path)
        if unread is not None:
            notes += (f"{path}: not read: {unread.name}",)
    else:
        # A test set may be given as a folder of splits, of which it is the test set's.
        train = find_splits(path).train
        splits = find_splits(test) if test.is_dir() else None
        test = splits.test or splits.train if splits is not None else test
    seen = Seen()
    size = None if image_size is None else (image_size, image_size)
    part, said = read_folder(
        list_images(train), size=size, channels=channels, skip_broken=skip_broken, seen=seen
    )
    own_test: Part | None = None
    if test is not None:
        _, c, h, w = part.images.shape
        own_test, of_test = read_folder(
            list_images(test), size=(h, w), channels=c, skip_broken=skip_broken, seen=seen
        )
        said += of_test
    return assemble(str(path), part, own_test, said + notes + seen.notes())
