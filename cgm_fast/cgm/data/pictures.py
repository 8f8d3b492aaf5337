"""One image file as 8-bit grey or colour pixels, as a viewer shows it: Pillow, and what it leaves.

Deep pixels are scaled by their mode's range, transparent ones lie on white, and a camera's
orientation is applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cgm_fast.cgm.data.dataset import DataError
from cgm_fast.cgm.extras import require

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# What is read under any of these names. Not all that Pillow can: EPS would start another program.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000")
DEEPEST = 2**16 - 1  # the highest value of 16-bit pixels
WHITE = 255


class Header(NamedTuple):
    """What a file says before its pixels are read."""

    side: int
    """The shorter one, in pixels."""
    grey: bool
    """Whether its mode or its palette has grey values alone."""


@dataclass
class Seen:
    """What was done to the images read, to be said once for all of them."""

    transparent: int = 0
    turned: int = 0
    deep: int = 0
    highest: int = 0
    frames: int = 0

    def notes(self) -> tuple[str, ...]:
        """A line for each thing that was done."""
        lines = {
            "images with transparent pixels, put on white": self.transparent,
            "images turned as their camera's orientation says": self.turned,
            f"16-bit images, scaled from [0, {DEEPEST}], the highest value being "
            f"{self.highest}": self.deep,
            "images of several frames, of which the first is read": self.frames,
        }
        return tuple(f"{line}: {count}" for line, count in lines.items() if count)


def read_header(path: Path) -> Header:
    """Size and kind of an image file, without its pixels.

    Raises:
        DataError: it is not an image, or cannot be read.
        MissingExtraError: Pillow is not installed.
    """
    pil = require("PIL.Image", "a folder of images")
    try:
        with pil.open(path, formats=FORMATS) as image:
            return Header(min(image.size), _is_grey(image))
    except Exception as error:  # Pillow also raises classes of its own
        raise _unreadable(path, error) from error


def read_picture(
    path: Path, channels: int, size: tuple[int, int], seen: Seen | None = None
) -> Tensor:
    """The centre of an image, of the largest window of the wanted shape, resized to it.

    Args:
        path: The file.
        channels: 1 for grey, 3 for colour.
        size: (h, w) in pixels.
        seen: Counts what was done.

    Returns:
        [channels, h, w] uint8.

    Raises:
        DataError: it cannot be read, or its pixels are of a kind whose range is not known.
        MissingExtraError: Pillow is not installed.
    """
    pil = require("PIL.Image", "a folder of images")
    seen = Seen() if seen is None else seen
    try:
        with pil.open(path, formats=FORMATS) as file:
            # The further frames of a phone's MPO are other renderings of the same picture.
            seen.frames += getattr(file, "is_animated", False) and file.format != "MPO"
            image = _eight_bit(pil, path, _upright(file, seen), file.format, seen)
            wanted = "L" if channels == 1 else "RGB"
            image = image if image.mode == wanted else image.convert(wanted)
            pixels = np.array(_window(image, size).resize(size[::-1], pil.BILINEAR))
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    return torch.from_numpy(pixels.reshape(*size, channels).transpose(2, 0, 1).copy())


_ORIENTATION = 0x0112  # the tag of EXIF


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, MemoryError):
        return DataError(f"{path} does not fit into the memory that is left")
    return DataError(f"{path} cannot be read as an image: {error}")


def _upright(image: Any, seen: Seen) -> Any:
    """An image as its camera was held."""
    try:
        turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:
        # Damaged EXIF, for which Pillow has no class of errors: SyntaxError, struct.error and more
        # come out of its parser. It says nothing then, and the pixels may be sound.
        return image
    if not turned:
        return image
    seen.turned += 1
    return require("PIL.ImageOps", "a folder of images").exif_transpose(image)


def _is_grey(image: Any) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")


def _eight_bit(pil: Any, path: Path, image: Any, form: str | None, seen: Seen) -> Any:
    """An image of 8-bit grey or colour without transparency."""
    mode = image.mode
    # Pillow before 11.3 opens 16-bit files of these formats as 32-bit images.
    if mode.startswith("I;16") or (mode == "I" and form in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.int64)
        seen.deep += 1
        seen.highest = max(seen.highest, int(values.max()))
        return pil.fromarray(((values * 255 + DEEPEST // 2) // DEEPEST).astype(np.uint8))
    if mode == "F":
        values = np.asarray(image)
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # which NaN is not
            raise DataError(
                f"{path} has floating-point pixels, which must be in [0, 1], got "
                f"[{low:g}, {high:g}]"
            )
        return pil.fromarray(np.round(values * 255).astype(np.uint8))
    if mode in ("LA", "PA", "RGBA") or (mode != "1" and "transparency" in image.info):
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < WHITE:
            seen.transparent += 1
            ground = pil.new("RGBA", image.size, (WHITE,) * 4)
            image = pil.alpha_composite(ground, image)
        return image.convert("RGB")
    if mode not in ("1", "L", "P", "RGB", "CMYK", "YCbCr"):
        raise DataError(
            f"{path} has pixels of mode {mode}, whose range is not known; what is read is grey or "
            "colour of 8 or 16 bits, and floating-point grey in [0, 1]"
        )
    if mode in ("L", "RGB"):
        return image
    return image.convert("L" if mode == "1" else "RGB")


def _window(image: Any, size: tuple[int, int]) -> Any:
    """The largest centred part of an image with the wanted ratio of sides."""
    (width, height), (h, w) = image.size, size
    scale = min(width / w, height / h)
    cut_w, cut_h = (min(side, max(1, round(scale * s))) for side, s in ((width, w), (height, h)))
    left, top = round((width - cut_w) / 2), round((height - cut_h) / 2)
    return image.crop((left, top, left + cut_w, top + cut_h))
