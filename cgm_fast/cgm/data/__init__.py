"""Images to train on: torchvision's sets, an npz, a folder, or the digits that need no download.

Everything is held as uint8 [n, c, h, w]; `prepare` turns a batch into what a likelihood takes.
"""

from cgm_fast.cgm.data.batches import BINARIZATIONS, Noise, draw_once, prepare
from cgm_fast.cgm.data.dataset import HELD_OUT, UNLABELLED, DataError, ImageData, fingerprint
from cgm_fast.cgm.data.npz import MAX_CLASSES
from cgm_fast.cgm.data.sources import load, load_images

__all__ = [
    "BINARIZATIONS",
    "DataError",
    "HELD_OUT",
    "ImageData",
    "MAX_CLASSES",
    "Noise",
    "UNLABELLED",
    "draw_once",
    "fingerprint",
    "load",
    "load_images",
    "prepare",
]
