"""The processes that train together (torchrun) and the device of this one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed, nn

from cgm_fast.cgm.files import RunError
from cgm_fast.cgm.training.config import ConfigError

T = TypeVar("T")


class Group(NamedTuple):
    """Which of how many processes this one is."""

    size: int = 1
    rank: int = 0
    local_rank: int | None = None
    """Among those on this machine; None if nobody said."""


def read_group() -> Group:
    """The group that torchrun's environment variables describe; one process without them.

    WORLD_SIZE says whether there is a group. RANK alone means nothing: jobs of an array have one
    each, and every one of them is a run of its own. An empty variable counts as absent.

    Raises:
        ConfigError: there is a group, and a variable is missing or no number of the right size.
    """
    count = _variable("WORLD_SIZE", 1, None) or 1
    if count == 1:
        return Group()
    absent = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if absent:
        raise ConfigError(
            f"WORLD_SIZE is {count} and {' and '.join(absent)} must be set too, as torchrun does; "
            "unset WORLD_SIZE to train in one process"
        )
    _variable("MASTER_PORT", 1, 2**16)
    return Group(count, _variable("RANK", 0, count) or 0, _variable("LOCAL_RANK", 0, None))


def _variable(name: str, least: int, end: int | None) -> int | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if (
        not (text.isascii() and text.isdecimal())
        or int(text) < least
        or int(text) >= (end or 2**31)
    ):
        limits = f"in [{least}, {end})" if end is not None else f">= {least}"
        raise ConfigError(f"{name} must be an integer {limits}, got {text!r}")
    return int(text)


class Workers:
    """One process, or those that torchrun started, or that share the caller's process group.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", "mps"; with several processes on CUDA each takes
            the device of its local rank.

    Raises:
        ConfigError: no such device here, the environment describes half a group (see
            `read_group`), or the processes do not find each other.
    """

    def __init__(self, device: str = "auto") -> None:
        self._started = False
        if distributed.is_available() and distributed.is_initialized():
            local = _variable("LOCAL_RANK", 0, None)
            group = Group(distributed.get_world_size(), distributed.get_rank(), local)
        else:
            group = read_group()
        self.count, self.rank = group.size, group.rank
        self.device = pick_device(device)
        if self.count == 1:
            return
        if self.device.type == "cuda":
            local = group.local_rank
            index = self.rank % torch.cuda.device_count() if local is None else local
            self.device = pick_device(f"cuda:{index}")
            torch.cuda.set_device(self.device)
        if not distributed.is_initialized():
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            try:
                distributed.init_process_group(backend)
            except (RuntimeError, ValueError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise ConfigError(
                    f"process {self.rank} of {self.count} could not join the others at "
                    f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {reason}"
                ) from error
            self._started = True

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the processes."""
        if self.count == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def place(self, data: Tensor) -> Tensor:
        """The data on the device if it leaves most of its memory free, else where it is."""
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if data.numel() * data.element_size() > free // 2:
                return data
        return data.to(self.device)

    def any(self, flag: int) -> int:
        """The largest flag over the processes, so that all stop at the same step."""
        if self.count == 1:
            return flag
        shared = torch.tensor(flag, device=self.device)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return int(shared)

    def gather(self, value: dict[str, Tensor]) -> list[Any]:
        """Every process's value, in order of rank, on the first; elsewhere empty."""
        if self.count == 1:
            return [value]
        values: list[Any] | None = [None] * self.count if self.first else None
        distributed.gather_object(value, values)
        return values or []

    def concatenate(self, value: Tensor) -> Tensor:
        """Every process's rows, in order of rank, on every process; all have the same number."""
        if self.count == 1:
            return value
        parts = [torch.zeros_like(value) for _ in range(self.count)]
        distributed.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    def share(self, value: Tensor) -> None:
        """Replace a tensor's content by what the first process has."""
        if self.count > 1:
            distributed.broadcast(value.detach(), 0)

    def barrier(self) -> None:
        """Wait for the others."""
        if self.count > 1:
            distributed.barrier()

    def on_first(self, action: Callable[[], T]) -> T:
        """Do something in the first process alone; all have its result, or its RunError.

        Whatever else it raises, it raises in the first process.
        """
        if self.count == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = action()
            except RunError as error:
                outcome[1] = str(error)
        distributed.broadcast_object_list(outcome, 0)
        if outcome[1] is not None:
            raise RunError(outcome[1])
        result: T = outcome[0]
        return result

    def close(self) -> None:
        """End the process group that this object began."""
        if self._started:
            distributed.destroy_process_group()
            self._started = False


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" is CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: the name is unknown, or there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    kind, _, index = name.partition(":")
    if kind not in present or not (index or "0").isdecimal():
        raise ConfigError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}")
    if int(index or 0) >= present[kind]:
        raise ConfigError(
            f"device {name!r} is not available here ({kind} devices: {present[kind]})"
        )
    return torch.device(kind, int(index)) if index else torch.device(kind)
