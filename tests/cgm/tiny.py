"""Data, settings and models so small that a run of several epochs takes a fraction of a second."""

import csv
import dataclasses
import math
import os
import signal
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from cgm_fast.cgm.files import LOCK
from cgm_fast.cgm.models import CGM
from cgm_fast.cgm.training.config import TrainConfig
from cgm_fast.cgm.training.pipeline import TrainResult, train
from cgm_fast.cgm.training.states import load_checkpoint

IMAGES, SIDE, CLASSES = 40, 8, 3  # of which a tenth is held out for testing


def pixels(n=IMAGES, channels=1, side=SIDE, seed=0):
    """Random images [n, h, w, c] uint8, with a bright row that tells the class i % CLASSES."""
    images = np.random.default_rng(seed).integers(0, 128, (n, side, side, channels), dtype=np.uint8)
    images[np.arange(n), np.arange(n) % CLASSES] += 127
    return images


def write_npz(path, n=IMAGES, channels=1, side=SIDE, labels=True, seed=0):
    arrays = {"images": pixels(n, channels, side, seed)}
    if labels:
        arrays["labels"] = np.arange(n) % CLASSES
    np.savez(path, **arrays)
    return path


def write_pictures(folder, counts, size=(10, 8), mode="RGB"):
    """A folder per class, of so many one-coloured images."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            colour = (20 * i, 100, 200) if mode == "RGB" else 20 * i
            Image.new(mode, size, colour).save(folder / name / f"{i}.png")


def settings(folder: Path, **changes) -> TrainConfig:
    """Nine steps, two epochs of four and part of a third, into `folder`/run."""
    data = folder / "tiny.npz"
    if not data.exists():
        write_npz(data)
    defaults = {
        "data": str(data),
        "out": str(folder / "run"),
        "width": 4,
        "latent_dim": 3,
        "num_prototypes": CLASSES,
        "batch_size": 8,
        "lr": 1e-3,
        "max_steps": 9,
        "log_every": 2,
        "checkpoint_every": 3,
        "device": "cpu",
        "evaluate": False,
        "nll_images": 3,
        "nll_samples": 4,
    }
    return TrainConfig(**{**defaults, **changes})


def arguments(folder: Path, **changes) -> list[str]:
    """The same settings as arguments of `cgm-fast train`."""
    words, default = ["train"], TrainConfig()
    for field in dataclasses.fields(TrainConfig):
        name, value = field.name, getattr(settings(folder, **changes), field.name)
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool) and value != getattr(default, name):
            words.append(option if value else option.replace("--", "--no-"))
        elif value != getattr(default, name):
            words += [option, str(value)]
    return words


def run(folder: Path, report=None, **changes) -> TrainResult:
    return train(settings(folder, **changes), report)


def stop_after(step, number=signal.SIGINT):
    """A report that sends this process a signal after a step; the run stops after the next."""

    def report(now, total, latest):
        if now == step:
            os.kill(os.getpid(), number)

    return report


# What a run can hold: running statistics, prototypes that move by themselves, draws of its own.
KINDS = {
    "cgm1": {},
    "cgm2": {"supervised": True, "clip_grad_norm": 1.0, "lr_schedule": "cosine"},
    "ema": {"descriptor": "ema", "reseed_dead": 2, "num_prototypes": 9, "power": "unit"},
    "batch_mean": {"descriptor": "batch_mean", "binarization": "dynamic"},
    "attention": {"descriptor": "attention", "denoise_variance": 0.1, "supervised": True},
    "gaussian": {"likelihood": "gaussian", "reseed_dead": 1, "num_prototypes": 9},
    "bf16": {"precision": "bf16", "prototype_init": "xavier"},
    "cvae": {"model": "cvae", "supervised": True},
    "infovae": {"model": "infovae", "decoder": "pixelcnn"},
}


def linear_model(latent_dim=3, num_prototypes=3, shape=(1, 8, 8), **options) -> CGM:
    """A CGM of one linear layer each way."""
    size = int(torch.tensor(shape).prod())
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(size, latent_dim))
    decoder = nn.Sequential(nn.Linear(latent_dim, size), nn.Unflatten(1, shape))
    return CGM(encoder, decoder, latent_dim=latent_dim, num_prototypes=num_prototypes, **options)


def same(a, b) -> bool:
    """Whether two checkpoints, or parts of them, are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)  # a rate that a model does not have
    return a == b


def listed(folder) -> list[str]:
    """Names in a folder, but for the lock, which some versions of filelock leave there."""
    return sorted(set(os.listdir(folder)) - {LOCK})


def checkpoint(folder, name="run"):
    """A run's checkpoint, but for the speed, which is never the same."""
    content = load_checkpoint(folder / name)
    content["latest"].pop("images_per_second", None)
    return content


def metrics(folder, name="run"):
    """The rows of a run's metrics.csv, but for the speed."""
    with (folder / name / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {key: value for key, value in row.items() if key != "images_per_second"} for row in rows
    ]
