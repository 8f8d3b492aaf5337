"""The processes that train together (torchrun) and the device of this one."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, distributed, nn

from cgm_fast.training.config import ConfigError


class Workers:
    """One process, or those that torchrun started.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", "mps"; with several processes on CUDA each takes
            the device of its local rank.

    Raises:
        ConfigError: no such device here.
    """

    def __init__(self, device: str = "auto") -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.device = pick_device(device)
        self._started = False
        if self.count == 1:
            return
        if self.device.type == "cuda":
            self.device = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
            torch.cuda.set_device(self.device)
        if not distributed.is_initialized():
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            distributed.init_process_group(backend)
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
