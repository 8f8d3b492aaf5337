"""Which tile a Triton kernel takes: looked up in tiles.csv, which `make tiles` writes.

A tile that fits the registers with one version of Triton may not with the next, so that the table
has rows by version. A version that is not there takes those of the one before.
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import NamedTuple

import torch
import triton

TABLE = Path(__file__).with_name("tiles.csv")
FEATURES = (16, 32, 64, 128, 256)
"""The numbers of features, padded, whose sums may be held at once; where there are more, WIDE."""
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
    sums: int
    """Features whose sums are held at once; what is packed is padded to a multiple."""
    warps: int
    stages: int
    programs: int = 1
    """How many a multiprocessor holds at once, by their registers: 1 for as many as it may."""

    def options(self, device: torch.device) -> dict[str, int]:
        """Of a launch."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        if self.programs > 1 and device.type == "cuda" and torch.version.hip is None:
            options["maxnreg"] = self.most_registers
        return options

    @property
    def most_registers(self) -> int:
        """Of a thread, for so many programs; in eights, as they are given out."""
        return min(255, 65536 // (32 * self.warps * self.programs) // 8 * 8)


# Kernels that pack and add up hold so many rows and features at once, whatever they serve.
ROWS, MOST_FEATURES = 16, 32


class Key(NamedTuple):
    """What a tile is chosen by."""

    kernel: str
    """mmd_fwd, mmd_general, mmd_hvp, kernel_product or prototype_margin."""
    numbers: str
    """What products are taken of: half, tf32 (of mmd_fwd and mmd_general), float32 or float64."""
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


def choose(
    kernel: str, d: int, dtype: torch.dtype, device: torch.device, tf32: bool = False
) -> Blocks:
    """The tile of a kernel (of `Key`) for d features of which products are taken in `dtype`, or of
    float32 in tf32."""
    numbers = "half" if dtype.itemsize == 2 else "float32" if dtype.itemsize == 4 else "float64"
    if tf32 and numbers == "float32":
        numbers = "tf32"
    tiles, key = table(), Key(kernel, numbers, features_key(d), device_key(device))
    blocks = tiles.get(key) or tiles[key._replace(features=WIDE)]
    if device.type != "cuda":  # the interpreter's time goes by tiles, not by numbers
        return blocks._replace(rows=64, columns=64)
    return blocks if PIPELINES else blocks._replace(stages=1)


@functools.cache
def table(path: Path = TABLE) -> dict[Key, Blocks]:
    """The table's rows for the Triton at hand: of its version, or of the one before, or the next.

    This is asked for each kernel and device, of which a version may have fewer rows.
    """
    versions: dict[tuple[str, str], dict[tuple[int, ...], dict[Key, Blocks]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            key = Key(row["kernel"], row["numbers"], int(row["features"]), row["device"])
            of_kernel = versions.setdefault((key.kernel, key.device), {})
            of_version = of_kernel.setdefault(numbers_of(row["triton"]), {})
            of_version[key] = Blocks(*(int(row[name]) for name in OF_TILES))
    found: dict[Key, Blocks] = {}
    for of_kernel in versions.values():
        found |= of_kernel[max(of_kernel, key=_suits)]
    return found


OF_TILES = ("rows", "columns", "held", "sums", "warps", "stages", "programs")
"""The table's columns that are fields of `Blocks`."""


def numbers_of(version: str) -> tuple[int, ...]:
    """Its first two."""
    return tuple(int(part) for part in version.split(".")[:2])


def _suits(version: tuple[int, ...]) -> tuple[int, ...]:
    """The larger the better: not later than the one at hand, then late; else early."""
    if version <= numbers_of(triton.__version__):
        return 1, *version
    return 0, *(-part for part in version)
