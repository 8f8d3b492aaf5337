"""Which tile a Triton kernel takes: looked up in tiles.csv, which `make tiles` writes."""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import NamedTuple

import torch
import triton

TABLE = Path(__file__).with_name("tiles.csv")
FEATURES = (16, 32, 64)
"""The numbers of features, padded, that may be held at once; where there are more, WIDE."""
WIDE = 0
CAPABILITIES = ((8, 0), (9, 0), (10, 0))
# Triton 3.2 would schedule a second product before its operands; with one stage it does not.
PIPELINES = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 3)


class Blocks(NamedTuple):
    """Tile of a kernel that meets rows with columns."""

    rows: int
    columns: int
    features: int
    """Features held at once: all of them, padded, or a part where there are more."""
    warps: int
    stages: int


# Kernels that pack and add up hold so many rows and features at once, whatever they serve.
ROWS, MOST_FEATURES = 16, 32


class Key(NamedTuple):
    """What a tile is chosen by."""

    kernel: str
    """mmd_fwd, mmd_hvp, kernel_product or prototype_margin."""
    numbers: str
    """What products are taken of: half, float32 or float64."""
    features: int
    """All features, padded to one of FEATURES, or WIDE."""
    device: str
    """A compute capability of CAPABILITIES, or "amd"."""


def device_key(device: torch.device) -> str:
    """The row of the table for a device: a capability between two of the table takes the older.

    Newer than all means consumer cards with less shared memory than 9.0 or 10.0: they take 8.0.
    """
    if torch.version.hip:
        return "amd"
    if device.type != "cuda":
        return "9.0"  # the interpreter
    found = torch.cuda.get_device_capability(device)
    of_major = [known for known in CAPABILITIES if known[0] == found[0] and known <= found]
    return "{}.{}".format(*of_major[-1] if of_major else CAPABILITIES[0])


def features_key(d: int) -> int:
    """d rounded up to one of FEATURES, or WIDE: powers of two, so that shapes share binaries."""
    padded = max(FEATURES[0], triton.next_power_of_2(d))
    return padded if padded in FEATURES else WIDE


def choose(kernel: str, d: int, dtype: torch.dtype, device: torch.device) -> Blocks:
    """The tile of a kernel (of `Key`) for d features of which products are taken in `dtype`."""
    numbers = "half" if dtype.itemsize == 2 else "float32" if dtype.itemsize == 4 else "float64"
    tiles, key = table(), Key(kernel, numbers, features_key(d), device_key(device))
    blocks = tiles.get(key) or tiles[key._replace(features=WIDE)]
    if device.type != "cuda":  # the interpreter's time goes by tiles, not by numbers
        return blocks._replace(rows=64, columns=64)
    return blocks if PIPELINES else blocks._replace(stages=1)


@functools.cache
def table(path: Path = TABLE) -> dict[Key, Blocks]:
    """The table's rows."""
    with path.open(newline="") as file:
        return {
            Key(row["kernel"], row["numbers"], int(row["features"]), row["device"]): Blocks(
                *(int(row[name]) for name in ("rows", "columns", "held", "warps", "stages"))
            )
            for row in csv.DictReader(file)
        }
