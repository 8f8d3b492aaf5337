"""What a run logs: averages over a window of steps, as CSV rows and TensorBoard events."""

from __future__ import annotations

import csv
import math
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgm_fast.cgm.evaluation.rate import rates, with_known_noise
from cgm_fast.cgm.extras import require
from cgm_fast.cgm.files import RunError, reason, write_whole
from cgm_fast.cgm.models.base import LatentModel, Output
from cgm_fast.cgm.models.latent import gaussian_rate_bound
from cgm_fast.cgm.training.runs import EVENTS, METRICS

COLUMNS = (
    "step",
    "epoch",
    "loss",
    "reconstruction",
    "mmd_weighted",
    "margin_weighted",
    "kl",
    "rate_bits",
    "nominal_rate_bits",
    "monte_carlo_rate_bits",
    "usage_bits",
    "within_variance",
    "grad_norm",
    "images_per_second",
)


RATE_CODES = 512  # of the latest ones, for the Monte-Carlo rate: its ceiling is 9 bits
STEPS_HELD = 64  # where they were computed, before a GPU is waited for


class Window:
    """Sums since the last row: losses, and moments of the codes for rate and spread.

    Steps are held as they come and summed many at once, so that a step need not wait for a GPU.
    Its state is part of a checkpoint, so that a resumed run logs what an uninterrupted one does.
    """

    def __init__(self, model: LatentModel) -> None:
        k, latent_dim = model.num_prototypes, model.latent_dim
        # Loss, its four terms, gradient norm.
        self.sums = torch.zeros(6, dtype=torch.float64, device="cpu")
        # Of codes, their squares, the noise's variance, and its logarithm.
        self.moments = torch.zeros(4, latent_dim, dtype=torch.float64, device="cpu")
        # Of the codes of each category, their sum and their number.
        self.of_category = torch.zeros(k, latent_dim + 1, dtype=torch.float64, device="cpu")
        # The latest codes with their noise's variances, where they were computed: no copies.
        self.latest: deque[tuple[Tensor, Tensor]] = deque()
        self.held: list[tuple[Tensor, ...]] = []
        self.steps = 0
        self.images = 0

    def add(self, model: LatentModel, output: Output, grad_norm: Tensor) -> None:
        """Count one step."""
        mmd_weight, margin_weight = model.weights
        terms = (
            output.loss.detach(),
            output.reconstruction,
            mmd_weight * output.mmd,
            margin_weight * output.margin,
            output.kl,
            grad_norm,
        )
        self.held.append((torch.stack(terms), output.r, output.variance, output.assignment))
        self.latest.append((output.r, output.variance))
        while sum(len(r) for r, _ in self.latest) - len(self.latest[0][0]) >= RATE_CODES:
            self.latest.popleft()
        self.steps += 1
        self.images += len(output.r)
        if len(self.held) == STEPS_HELD:
            self._sum()

    def _sum(self) -> None:
        """Add the steps that are held, one after another."""
        if not self.held:
            return
        terms, *codes = zip(*self.held, strict=True)
        self.held = []
        sizes = [len(r) for r in codes[0]]
        parts = (torch.cat(part).cpu().split(sizes) for part in codes)
        for step, r, variance, assignment in zip(torch.stack(terms).cpu(), *parts, strict=True):
            self.sums += step.double()
            r, variance = r.double(), variance.double()
            self.moments += torch.stack(
                (r.sum(0), r.square().sum(0), variance.sum(0), variance.log().sum(0))
            )
            self.of_category.index_add_(0, assignment, torch.cat((r, r.new_ones(len(r), 1)), 1))

    def rate_bits(self) -> float:
        """The Gaussian bound of the rate over the window's codes, in bits."""
        if self.images == 0:
            return math.nan
        self._sum()
        mean, square, noise, log_noise = self.moments / self.images
        return gaussian_rate_bound((square - mean.square()).clamp_min(0), noise, log_noise)

    def codes(self) -> tuple[Tensor, Tensor]:
        """The latest codes and the variances of their noise, both [at most RATE_CODES, N]."""
        r, variance = (torch.cat(parts)[-RATE_CODES:] for parts in zip(*self.latest, strict=True))
        return r, variance

    def within_variance(self) -> float:
        """s²: of the codes of a category, per dimension; the mean over the window's codes."""
        self._sum()
        sums, counts = self.of_category[:, :-1], self.of_category[:, -1:]
        between = (sums.square() / counts.clamp_min(1)).sum()
        square = self.moments[1].sum()
        return float((square - between).clamp_min(0)) / max(self.images * sums.shape[1], 1)

    def row(self, model: LatentModel) -> dict[str, float]:
        """Averages of the window, to be logged; the caller adds step, epoch and speed."""
        names = ("loss", "reconstruction", "mmd_weighted", "margin_weighted", "kl", "grad_norm")
        self._sum()
        row = dict(zip(names, (self.sums / self.steps).tolist(), strict=True))
        row["rate_bits"] = self.rate_bits()
        found = rates(*with_known_noise(*self.codes()))
        row["nominal_rate_bits"] = found.get("nominal", math.nan)  # none of a learned variance
        row["monte_carlo_rate_bits"] = found["monte_carlo"]
        usage = model.usage.cpu().double()
        usage = usage / usage.sum()
        row["within_variance"] = self.within_variance()
        row["usage_bits"] = float(-(usage * usage.clamp_min(1e-300).log2()).sum())
        return row

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        self._sum()
        return {
            "sums": self.sums,
            "moments": self.moments,
            "of_category": self.of_category,
            "codes": [part.cpu() for part in self.codes()] if self.latest else None,
            "steps": self.steps,
            "images": self.images,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint.

        Raises:
            ValueError, TypeError, LookupError: it is not the state of such a window.
        """
        for name in ("sums", "moments", "of_category"):
            _check(name, state[name], list(getattr(self, name).shape), torch.float64)
        for name in ("steps", "images"):
            if type(state[name]) is not int or not 0 <= state[name] < 2**63:
                raise ValueError(f"{name} must be an integer >= 0, got {state[name]!r}")
        if (state["codes"] is None) != (state["steps"] == 0):
            raise ValueError(f"it has {state['steps']} steps, and codes do not go with that")
        if state["codes"] is not None:
            means, variances = state["codes"]
            rows = len(means)
            for name, value in (("codes", means), ("codes' variances", variances)):
                # A float64 model's are float64.
                wide = getattr(value, "dtype", None) == torch.float64
                dtype = torch.float64 if wide else torch.float32
                _check(name, value, [rows, self.moments.shape[1]], dtype)
            if not 0 < rows <= RATE_CODES:
                raise ValueError(f"codes must be 1 to {RATE_CODES}, got {rows}")
        self.sums, self.moments = state["sums"].clone(), state["moments"].clone()
        self.of_category = state["of_category"].clone()
        self.latest.clear()
        self.held.clear()
        if state["codes"] is not None:
            r, variance = state["codes"]
            self.latest.append((r.clone(), variance.clone()))
        self.steps, self.images = state["steps"], state["images"]


def _check(name: str, value: Any, shape: list[int], dtype: torch.dtype) -> None:
    """Raise ValueError unless a value of a checkpoint is a tensor like that."""
    if not isinstance(value, Tensor) or list(value.shape) != shape or value.dtype != dtype:
        tensor = isinstance(value, Tensor)
        found = f"{list(value.shape)} {value.dtype}" if tensor else type(value).__name__
        raise ValueError(f"{name} must be {shape} {dtype}, got {found}")


class MetricsLog:
    """metrics.csv and TensorBoard events of a run folder.

    Args:
        path: The run folder.
        step: The step from which the run goes on; later rows of an interrupted run are dropped.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.file = path / METRICS
        rows: list[list[str]] = []
        if self.file.exists():
            lines = self.file.read_text(errors="replace").splitlines()
            rows = [
                row
                for row in (line.split(",") for line in lines)
                if len(row) == len(COLUMNS) and row[0].isdecimal() and int(row[0]) <= step
            ]
        text = "\n".join(",".join(row) for row in [list(COLUMNS), *rows]) + "\n"
        write_whole(self.file, text.encode())
        require("tensorboard", "TensorBoard events")
        writer = require("torch.utils.tensorboard", "TensorBoard events").SummaryWriter
        self.folder = path / EVENTS
        try:
            self.events = writer(str(self.folder), purge_step=step + 1 if step else None)
        except OSError as error:
            raise RunError(f"{self.folder} could not be written: {reason(error)}") from error

    def write(self, row: dict[str, float]) -> None:
        """Append one row."""
        try:
            with self.file.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(
                    [row[name] if name in ("step", "epoch") else f"{row[name]:.6g}"
                     for name in COLUMNS]
                )  # fmt: skip
        except OSError as error:
            raise RunError(f"{self.file} could not be written: {reason(error)}") from error
        try:
            for name in COLUMNS[2:]:
                if not math.isnan(row[name]):
                    self.events.add_scalar(name, row[name], row["step"])
        except OSError as error:
            raise RunError(f"{self.folder} could not be written: {reason(error)}") from error

    def close(self) -> None:
        """Flush the events; a full disk has been reported elsewhere."""
        with suppress(OSError):
            self.events.close()


def all_finite(*values: Tensor) -> Tensor:
    """Whether every value is finite, [] bool; to look at it waits for a GPU, once for all."""
    return torch.stack([torch.isfinite(value).all() for value in values]).all()
