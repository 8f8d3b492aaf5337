"""What the paper claims beside its tables: one setting of CGM varied at a time, and few shots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cgm_fast.cgm.data import ImageData, load
from cgm_fast.cgm.evaluation.codes import encode_images
from cgm_fast.cgm.experiments.study import RATE_NOTE, RATES, Study, Trained, interval, rate_columns
from cgm_fast.cgm.experiments.tables import nll
from cgm_fast.cgm.training.presets import PRESETS
from cgm_fast.cgm.training.workers import pick_device

COLUMNS = (
    "setting", "NLL", "NLL, own prior", "MSE", "linear error %", "MLP error %",
    "nearest prototype %", *RATES, "epochs", "steps", "seeds", "seconds a run",
)  # fmt: skip
NOTES = """on dynamically binarised MNIST: −log p(x) in nats under the prior with weights, means
and covariances fitted to training codes, mean squared error per pixel, errors of probes on r and of
the nearest prototype, where categories are labels."""


class Sweep(NamedTuple):
    """Settings by their label, and what the paper says of them."""

    settings: dict[str, dict[str, Any]]
    claim: str
    supervised: bool = True


EPOCHS = "epochs"  # in a sweep's settings: times the study's
BATCH = PRESETS["mnist"].batch_size
BATCHES = (BATCH // 2, BATCH, 2 * BATCH, 4 * BATCH)


def _over(symbol: str, setting: str, values: Sequence[float]) -> dict[str, dict[str, Any]]:
    return {f"{symbol} = {value:g}": {setting: value} for value in values}


SWEEPS = {
    "mmd-weight": Sweep(
        _over("λ", "mmd_weight", (0.0, 10.0, 100.0, 1000.0, 10000.0)),
        "The paper's claim (II-E): training is robust to λ.",
    ),
    "margin-weight": Sweep(
        {
            **_over("β", "margin_weight", (0.0, 0.1, 1.0, 10.0, 100.0, 1000.0)),
            "InfoVAE": {"model": "infovae", "supervised": False, "sigma2": 0.02},
        },
        "The paper's claim (III-A): with β to 0 the model tends to InfoVAE, here with the same "
        "fixed variance.",
    ),
    "margin": Sweep(
        _over("m", "margin", (1.0, 3.0, 10.0, 30.0, 100.0)),
        "Codes of a category lie within N τ² of their prototype, 10 here; a margin below that "
        "tells categories apart only where they already are.",
    ),
    "prior-variance": Sweep(
        _over("τ²", "prior_sigma2", (0.02, 0.1, 0.3, 1.0)),
        "The paper leaves the variance of a prior component open; σ² is 0.02.",
    ),
    "batch-size": Sweep(
        {
            **{f"{value} images a step": {"batch_size": value} for value in BATCHES},
            **{
                f"{value} images a step, as many steps": {
                    "batch_size": value,
                    EPOCHS: value / BATCH,
                }
                for value in BATCHES
                if value != BATCH
            },
        },
        "The paper's claim (IV-D): more examples of a category make the prior's estimate better. "
        "Either the number of epochs is the same, or, with fewer or more of them, that of steps "
        f"as with {BATCH} images.",
    ),
    "num-prototypes": Sweep(
        _over("K", "num_prototypes", (5, 10, 20, 50)),
        f"The same claim: with fewer categories each has more of a batch's {BATCH} images.",
        supervised=False,
    ),
    "latent-dim": Sweep(
        _over("N", "latent_dim", (2, 5, 10, 20, 50)),
        "The paper's claim (IV-B2): more dimensions disentangle better.",
    ),
    "descriptor": Sweep(
        {name: {"descriptor": name} for name in ("learned", "ema", "batch_mean", "attention")},
        "The paper's claim (II-D): weighting the mean by attention is a marginal improvement.",
    ),
}


def sweep(name: str, study: Study) -> None:
    """A table with a row for each setting of one of `SWEEPS`."""
    rows = []
    settings_of, claim, supervised = SWEEPS[name]
    whole = study.base.epochs or PRESETS["mnist"].epochs
    for label, changes in settings_of.items():
        settings = {"data": "mnist", "supervised": supervised} | changes
        if EPOCHS in changes:
            settings[EPOCHS] = max(1, round(whole * changes[EPOCHS]))
        folder = label.replace(" = ", "-").replace(",", "").replace(" ", "-")
        found = [study.train(f"{folder}-{seed}", **settings, seed=seed) for seed in study.seeds]
        rows.append(_row(label, found))
    model = "CGM2" if supervised else "CGM1"
    notes = f"{claim}\n\n{model} {NOTES}\n\n{RATE_NOTE}"
    study.write_table(f"sweep-{name}", COLUMNS, rows, notes)


def _row(label: str, found: Sequence[Trained]) -> dict[str, Any]:
    reports = [run.evaluation for run in found]
    row: dict[str, Any] = {
        "setting": label,
        "NLL": interval([nll(run) for run in found]),
        "NLL, own prior": interval([nll(run, "paper") for run in found]),
        "MSE": interval([report["mean_squared_error"] for report in reports], 5),
        "linear error %": interval([100 * each["probe_error"]["linear_r"] for each in reports]),
        "MLP error %": interval([100 * each["probe_error"]["mlp_r"] for each in reports]),
        **rate_columns(found),
        "epochs": found[0].epochs,
        "steps": found[0].steps,
        "seeds": len(found),
        "seconds a run": round(sum(run.seconds for run in found) / len(found)),
    }
    if "nearest_prototype_error" in reports[0]:
        errors = [100 * each["nearest_prototype_error"] for each in reports]
        row["nearest prototype %"] = interval(errors)
    return row


SHOTS = (1, 5, 20)
EPISODES = 500


def few_shot(study: Study) -> None:
    """Classes that were never trained on, told by the nearest mean of a few codes."""
    whole = load("mnist", root=study.base.data_root, download=study.base.download)
    known = study.out / "mnist-0-to-4.npz"
    if not known.exists():
        _write(known, whole, 5)
    rows = []
    for name, changes in (
        ("CGM2", {"supervised": True, "num_prototypes": 5}),
        ("CGM1", {"num_prototypes": 5}),
        ("InfoVAE", {"model": "infovae"}),
        ("VAE", {"model": "vae"}),
    ):
        found = [
            study.train(
                f"{name.lower()}-{seed}",
                data=str(known),
                binarization="dynamic",
                latent_dim=10,
                seed=seed,
                **changes,
                **study.light,
            )
            for seed in study.seeds
        ]
        row: dict[str, Any] = {"system": name, "seeds": len(found), **rate_columns(found)}
        accuracies = [_episodes(run, whole, study.base.device) for run in found]
        for shots in SHOTS:
            values = [100 * each[shots] for each in accuracies]
            row[f"{shots}-shot accuracy %"] = interval(values)
        rows.append(row)
    study.write_table(
        "few-shot",
        ("system", *(f"{shots}-shot accuracy %" for shots in SHOTS), *RATES, "seeds"),
        rows,
        f"Trained on the digits 0 to 4; 5 to 9 of the test images are told by the nearest mean of "
        f"so many codes of each, over {EPISODES} draws of these (section III-C).\n\n{RATE_NOTE}",
    )


def _write(path: Any, whole: ImageData, classes: int) -> None:
    """The training images of the first classes, as an npz."""
    assert whole.train_labels is not None
    chosen = whole.train_labels < classes
    images = whole.train[chosen].permute(0, 2, 3, 1).numpy()
    np.savez_compressed(path, images=images, labels=whole.train_labels[chosen].numpy())


def _episodes(run: Trained, whole: ImageData, device: str) -> dict[int, float]:
    """Mean accuracy by the number of shots."""
    model, config, _ = run.load(pick_device(device))
    assert whole.test_labels is not None
    r = encode_images(model, whole.test, config.binarization, config.seed).cpu()
    codes = [r[whole.test_labels == k] for k in range(5, 10)]
    generator = torch.Generator().manual_seed(config.seed)
    return {shots: _accuracy(codes, shots, generator) for shots in SHOTS}


def _accuracy(codes: Sequence[Tensor], shots: int, generator: torch.Generator) -> float:
    """Of the other codes of each class, by the nearest mean of `shots` of them; over episodes."""
    total = 0.0
    for _ in range(EPISODES):
        means, others = [], []
        for of_class in codes:
            order = torch.randperm(len(of_class), generator=generator, device="cpu")
            means.append(of_class[order[:shots]].mean(0))
            others.append(of_class[order[shots : shots + 50]])
        centres = torch.stack(means)
        right = [
            float((torch.cdist(other, centres).argmin(1) == k).float().mean())
            for k, other in enumerate(others)
        ]
        total += sum(right) / len(right)
    return total / EPISODES
