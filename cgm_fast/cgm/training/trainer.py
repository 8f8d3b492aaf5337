"""The trainer: Adam on eq. 6, in a loop that can be read from top to bottom.

One process, or several under torchrun (DistributedDataParallel; each computes the MMD of its own
batch). The order of images depends on (seed, epoch) alone and every random state is in the
checkpoint, so on a CPU a resumed run equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cgm_fast.cgm.data import ImageData, fingerprint, prepare
from cgm_fast.cgm.files import RunError
from cgm_fast.cgm.models.base import LatentModel, Output
from cgm_fast.cgm.models.cgm import CGM
from cgm_fast.cgm.training.config import RunConfig
from cgm_fast.cgm.training.graph import Computed, GraphedStep
from cgm_fast.cgm.training.limits import ConfigError
from cgm_fast.cgm.training.metrics import MetricsLog, Window, all_finite
from cgm_fast.cgm.training.runs import create, reopen
from cgm_fast.cgm.training.signals import BROKEN_PIPE, StopSignals
from cgm_fast.cgm.training.states import (
    CHECKPOINT,
    load_checkpoint,
    restore,
    restore_model,
    restore_optimizer,
    save_checkpoint,
    save_model,
)
from cgm_fast.cgm.training.workers import Workers


class NonFiniteError(FloatingPointError):
    """Training met NaN or infinity; the message names the step and the term."""


Report = Callable[[int, int, dict[str, float]], None]


class Trainer:
    """Trains a model on images and keeps its run folder.

    Args:
        model: On the CPU; it is moved to the workers' device.
        data: What to train on.
        config: Resolved settings.
        path: The run folder; made by `fit` if it is a new run.
        workers: The processes that train together, and this one's device.
        report: Called after each step with (step, total steps, latest averages).
        warn: Called before training with what a user should know.

    Raises:
        ConfigError: the processes together need more images per step than there are.
    """

    def __init__(
        self,
        model: LatentModel,
        data: ImageData,
        config: RunConfig,
        path: Path,
        workers: Workers,
        report: Report | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.config, self.path, self.workers, self.report = config, path, workers, report
        self.warn = warn
        # Convolutions take up to a fifth less time where channels come last.
        self.model = model.to(workers.device).to(memory_format=torch.channels_last)
        self.network: nn.Module = workers.wrap(self.model)
        self.fingerprint = fingerprint(data)
        self.images = workers.place(data.train)
        self.labels = (
            workers.place(data.train_labels)
            if config.supervised and data.train_labels is not None
            else None
        )
        # A graph holds addresses: of the rate, which a schedule changes, and of Adam's step.
        rate = torch.tensor(config.lr, dtype=torch.float32, device=workers.device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=rate if config.cuda_graph else config.lr,
            capturable=config.cuda_graph,
        )
        self.compute, self.apply = self._compute, self._apply
        if config.cuda_graph:
            graphed = GraphedStep(self._compute, self._apply, workers.device)
            self.compute, self.apply = graphed.compute, graphed.apply
        # Batches are full (drop_last), so that the bias of the MMD is the same at every step.
        self.steps_per_epoch = len(data.train) // (config.batch_size * workers.count)
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"batch_size {config.batch_size} times {workers.count} processes exceeds the "
                f"{len(data.train)} training images"
            )
        self.total_steps = config.epochs * self.steps_per_epoch
        if config.max_steps is not None:
            self.total_steps = min(self.total_steps, config.max_steps)
        self.step = 0
        self.window = Window(self.model)
        self.latest: dict[str, float] = {}

    def fit(self) -> int | None:
        """Train to the end, or until a signal asks to stop.

        Returns:
            None at the end; the number of the signal that stopped the run, after saving.

        Raises:
            ConfigError: a step cannot be recorded as CUDA graphs, which was asked for.
            NonFiniteError: a term or the gradient is not finite. The state before that step is
                saved; the step is not applied.
            RunError: the run folder cannot be written or resumed.
        """
        with StopSignals() as signals:
            self._begin()
            log = MetricsLog(self.path, self.step) if self.workers.first else None
            try:
                return self._loop(log, signals)
            finally:
                if log is not None:
                    log.close()

    def _begin(self) -> None:
        """Read the run's checkpoint, or make its folder and save the initial state."""
        if self.config.resume and (self.path / CHECKPOINT).exists():
            self._load()
            self.workers.on_first(lambda: reopen(self.path, self.config, self.workers.count))
            return
        self.workers.on_first(lambda: create(self.path, self.config, self.workers.count))
        torch.manual_seed(self.config.seed + self.workers.rank)
        self._initialise_prototypes()
        self._save()

    def _loop(self, log: MetricsLog | None, signals: StopSignals) -> int | None:
        config = self.config
        checkpoint_every = config.checkpoint_every or self.steps_per_epoch
        self.model.train()
        started, since = time.perf_counter(), self.step
        order, order_epoch = torch.empty(0, dtype=torch.int64), -1
        while self.step < self.total_steps:
            epoch = self.step // self.steps_per_epoch
            if epoch != order_epoch:
                order, order_epoch = self._order(epoch).to(self.images.device), epoch
            output, grad_norm = self._train_step(order)
            self.step += 1
            self.window.add(self.model, output, grad_norm)
            done = self.step == self.total_steps
            if self.step % config.log_every == 0 or done:
                elapsed = time.perf_counter() - started
                images = (self.step - since) * self._batch * self.workers.count
                self.latest = {
                    "step": self.step,
                    "epoch": epoch,
                    "images_per_second": images / elapsed,
                    **self.window.row(self.model),
                }
                if log is not None:
                    log.write(self.latest)
                self.window = Window(self.model)
                started, since = time.perf_counter(), self.step
            stop = self.workers.any(signals.received)
            if self.step % checkpoint_every == 0 or done or stop:
                self._save()
            if self.report is not None:
                try:
                    self.report(self.step, self.total_steps, self.latest)
                except OSError:  # nobody is there to read it: the other end of a pipe has gone
                    signals.note(BROKEN_PIPE)
                    self.report = None
            if stop:
                return stop
        if self.workers.first:
            save_model(self.path, self.model)
        return self.workers.any(signals.received) or None

    def _set_rate(self) -> None:
        """The learning rate of the coming step, a function of its number alone."""
        rate = self.config.lr
        if self.config.lr_schedule == "cosine":
            rate *= 0.5 + 0.5 * math.cos(math.pi * self.step / self.total_steps)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    @property
    def _batch(self) -> int:
        return self.config.batch_size

    def _order(self, epoch: int) -> Tensor:
        """This process's images of an epoch, in order; the same whoever asks, whenever."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.images), generator=generator, device="cpu")
        return order[self.workers.rank :: self.workers.count]

    def _train_step(self, order: Tensor) -> tuple[Output, Tensor]:
        self._set_rate()
        random = _random_state(self.workers.device)
        position = self.step % self.steps_per_epoch * self._batch
        index = order[position : position + self._batch]
        images, labels = self.images[index].to(self.workers.device), None
        if self.labels is not None:
            labels = self.labels[index].to(self.workers.device)
        computed = self.compute(images, labels)
        self._stop_unless_finite(computed, random)  # all that a step waits for a GPU
        self.apply(computed.output)
        return computed.output, computed.norm

    def _compute(self, images: Tensor, labels: Tensor | None) -> Computed:
        """The first half of a step, up to the gradient."""
        before = [buffer.clone() for buffer in self.model.buffers()]  # which forward changes
        x, target = self._prepare(images)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            self.workers.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        ):
            output: Output = self.network(x, labels, target)
        output.loss.backward()
        limit = self.config.clip_grad_norm
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), math.inf if limit is None else limit
        )
        output = output._replace(loss=output.loss.detach())
        return Computed(output, norm, all_finite(*_terms(output).values(), norm), before)

    def _apply(self, output: Output) -> None:
        """The second half, once the gradient is known to be finite."""
        self.optimizer.step()
        self._after_step(output)

    def _after_step(self, output: Output) -> None:
        """Update what the model counts from all processes' batches, so that it stays the same."""
        everywhere = output._replace(
            r=self.workers.concatenate(output.r),
            assignment=self.workers.concatenate(output.assignment),
        )
        self.model.after_step(everywhere)
        if self.config.reseed_dead:  # at codes that each process drew for itself
            self.workers.share(self.model.prototypes)

    def _prepare(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder sees and what the decoder must explain."""
        target = prepare(images, self.config.binarization, self.model.likelihood.continuous)
        noise = self.config.noise
        return (noise.add(target) if noise.variance else target), target

    @torch.no_grad()
    def _stop_unless_finite(self, computed: Computed, random: dict[str, Tensor]) -> None:
        """Save the state before this step and stop in every process, if any met NaN or infinity."""
        if not self.workers.any(not computed.finite):
            return
        for buffer, value in zip(self.model.buffers(), computed.before, strict=True):
            buffer.copy_(value)
        _set_random_state(random, self.workers.device)
        self._save()
        terms, norm = _terms(computed.output), computed.norm
        values = {name: float(value) for name, value in terms.items()}
        found = [f"{name} is {x}" for name, x in values.items() if not math.isfinite(x)]
        if not self.workers.any(bool(found)):
            found = [f"the gradient's norm is {float(norm)}"]
        elif not found:  # though the gradient, of all processes' batches, is not finite here either
            found = ["another process met a value that is not finite"]
        raise NonFiniteError(
            f"step {self.step + 1}: {found[0]}; the step was not applied and the state before it "
            f"is in {self.path / CHECKPOINT}"
        )

    @torch.no_grad()
    def _initialise_prototypes(self) -> None:
        if self.config.prototype_init != "kmeans++" or not isinstance(self.model, CGM):
            return
        if self.config.init is not None:  # which has prototypes
            return
        from cgm_fast.cgm.evaluation.codes import encode_images
        from cgm_fast.cgm.extras import require

        cluster = require("sklearn.cluster", "prototype_init=kmeans++")
        count = min(len(self.images), max(4096, 10 * self.model.num_prototypes))
        generator = torch.Generator().manual_seed(self.config.seed)
        order = torch.randperm(len(self.images), generator=generator, device="cpu")
        chosen = order[:count].sort().values
        images = self.images[chosen.to(self.images.device)]
        self.model.eval()
        r = encode_images(self.model, images, self.config.binarization)
        centres, _ = cluster.kmeans_plusplus(
            r.cpu().double().numpy(), self.model.num_prototypes, random_state=self.config.seed
        )
        for k, centre in enumerate(torch.from_numpy(centres)):
            self.model.descriptor.move(k, centre.to(self.model.prototypes))
        self.workers.share(self.model.prototypes)

    def _save(self) -> None:
        """Write a checkpoint: the first process writes, with every process's random state."""
        states = self.workers.gather(_random_state(self.workers.device))
        if not self.workers.first:
            return
        save_checkpoint(
            self.path,
            {
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "window": self.window.state_dict(),
                "latest": self.latest,
                "random": states,
                "data": self.fingerprint,
            },
        )

    def _load(self) -> None:
        content, file = load_checkpoint(self.path), self.path / CHECKPOINT
        step = content["step"]
        if step > self.total_steps:
            raise RunError(
                f"{self.path} is at step {step}, and epochs or max_steps ask for {self.total_steps}"
                " in all: ask for more, or pass --out for another run"
            )
        if content.get("data", self.fingerprint) != self.fingerprint:  # older ones have none
            raise RunError(
                f"{self.path} was trained on other images than those of {self.config.data}: their "
                "content or class names changed; pass --data with those of the run"
            )
        self._warn_of_other_processes(len(content["random"]))
        restore_model(file, self.model, content["model"])
        restore_optimizer(file, self.optimizer, content["optimizer"])
        restore(file, "window", self.window.load_state_dict, content["window"])
        restore(file, "random", self._load_random_state, content["random"])
        self.step, self.latest = step, content["latest"]

    def _warn_of_other_processes(self, before: int) -> None:
        now = self.workers.count
        if before != now and self.warn is not None and self.workers.first:
            self.warn(
                f"the run was of {before} process{'es' if before > 1 else ''} and goes on with "
                f"{now}: a step is now of {self._batch * now} images instead of "
                f"{self._batch * before}, and an epoch of {self.steps_per_epoch} steps"
            )

    def _load_random_state(self, states: list[dict[str, Tensor]]) -> None:
        if len(states) == self.workers.count:
            _set_random_state(states[self.workers.rank], self.workers.device)
        else:  # another number of processes: the run goes on, with noise of its own
            torch.manual_seed(self.config.seed + self.step * self.workers.count + self.workers.rank)


def _terms(output: Output) -> dict[str, Tensor]:
    """What a step's loss is made of, by the names that an error calls them."""
    return {
        "the reconstruction term": output.reconstruction,
        "the MMD term": output.mmd,
        "the margin term": output.margin,
        "the KL term": output.kl,
        "the loss": output.loss,
    }


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
