"""A train step as CUDA graphs: recorded once, then replayed, a launch instead of hundreds.

There are two, for a step makes one decision: its gradient is computed, the processor looks whether
all of it is finite, and only then is it applied. Between them is all that a step waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from cgm_fast.cgm.models.base import Output
from cgm_fast.cgm.training.config import Settings
from cgm_fast.cgm.training.limits import ConfigError
from cgm_fast.cgm.training.workers import Workers

WARM_UP = 3
"""Steps that run as they are before one is recorded. In these, libraries set themselves up, the
optimizer makes its state, and kernels are compiled and checked, none of which a capture can hold.
"""

T = TypeVar("T")


class Computed(NamedTuple):
    """What the first half of a step gives."""

    output: Output
    norm: Tensor
    """[], of the gradient."""
    finite: Tensor
    """[] bool, whether all terms and the norm are."""
    before: list[Tensor]
    """The model's buffers as they were."""


def check_graph(config: Settings[None], workers: Workers) -> None:
    """Raise ConfigError if a run asks for CUDA graphs and cannot have any."""
    if not config.cuda_graph:
        return
    if workers.device.type != "cuda":
        raise ConfigError(
            f"cuda_graph needs a CUDA GPU, and device {config.device} is {workers.device.type} here"
        )
    if workers.count > 1:
        raise ConfigError(f"cuda_graph must be left out with {workers.count} processes")
    if config.reseed_dead:
        raise ConfigError(
            "cuda_graph must be left out with reseed_dead, for which every step looks at the "
            f"categories that have not occurred, got reseed_dead {config.reseed_dead}"
        )


class GraphedStep:
    """Both halves of a step, as they are for the first steps, then replayed.

    The first steps count: they are the run's own. Recording executes nothing.

    Args:
        compute: Of images [B, c, h, w] and labels [B] or None, both on the device.
        apply: Of what the model returned for them. Neither half may wait for the GPU.
        device: The GPU.
    """

    def __init__(
        self,
        compute: Callable[[Tensor, Tensor | None], Computed],
        apply: Callable[[Output], None],
        device: torch.device,
    ) -> None:
        self._compute, self._apply = compute, apply
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._warm = 0
        self._graphs: tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph] | None = None

    def compute(self, images: Tensor, labels: Tensor | None) -> Computed:
        """The first half; images and labels have the same shapes and dtypes in every step.

        Raises:
            ConfigError: the step cannot be recorded.
        """
        if self._warm < WARM_UP:
            self._warm += 1
            return self._aside(lambda: self._compute(images, labels))
        if self._graphs is None:
            self._graphs = self._record(images, labels)
        self._images.copy_(images)
        if self._labels is not None:
            assert labels is not None
            self._labels.copy_(labels)
        self._graphs[0].replay()
        output = self._computed.output
        # Metrics keep these, where the next step writes its own.
        kept = {name: getattr(output, name).clone() for name in ("r", "variance", "assignment")}
        return self._computed._replace(output=output._replace(**kept))

    def apply(self, output: Output) -> None:
        """The second half, for what the first has returned."""
        if self._graphs is None:
            self._aside(lambda: self._apply(output))
        else:
            self._graphs[1].replay()

    def _aside(self, work: Callable[[], T]) -> T:
        """Run something on the stream that the capture will use."""
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            value = work()
        here.wait_stream(self._stream)
        return value

    def _record(
        self, images: Tensor, labels: Tensor | None
    ) -> tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph]:
        """Record both halves; what the graphs read and write stays where it is for good."""
        self._images = images.clone()
        self._labels = None if labels is None else labels.clone()
        first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(first, stream=self._stream):
                self._computed = self._compute(self._images, self._labels)
            # Replayed in turns: the second may use what the first has no more need of.
            with torch.cuda.graph(second, pool=first.pool(), stream=self._stream):
                self._apply(self._computed.output)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a failed capture is an error too
            reason = (str(cause).splitlines() or [type(cause).__name__])[0]
            raise ConfigError(
                f"cuda_graph must be left out: this step cannot be recorded ({reason})"
            ) from error
        return first, second
