"""Who is compared: cgm_fast's implementations, and other ways to get the same numbers."""

from __future__ import annotations

import functools
import importlib
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops.backends import BACKENDS, availability

Step = Callable[[], Any]

TF32 = ("cuda", "triton", "matmul")
"""Implementations that read torch's float32_matmul_precision."""


@dataclass(frozen=True)
class Peer:
    """One way to compute an op.

    Args:
        name: What the tables call it.
        prepare: Inputs to a step without arguments, which is what is timed. A step returns loss
            and gradients, then perhaps the assignment; where `assigns_only`, the assignment.
        needs: Modules that must be importable.
        devices: Types of device it serves.
        ours: An implementation of this package.
        compiles: Something is compiled at the first call for a shape, which takes seconds.
        assigns_only: Computes the assignment and nothing else.
        stores_pairs: Memory grows with the number of pairs.
        precision: torch's float32_matmul_precision that it runs at, and is judged by: other than
            "highest" is a column of its own, beside others of that precision.
        backend: The implementation's name, where it is not the peer's.
        captures: Whether a CUDA graph of it may be tried.
        unusable: Type of device to why it cannot run there although its modules are installed.
    """

    name: str
    prepare: Callable[..., Step]
    needs: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")
    ours: bool = False
    compiles: bool = False
    assigns_only: bool = False
    stores_pairs: bool = False
    precision: str = "highest"
    backend: str = ""
    captures: bool = True
    unusable: Callable[[str], str | None] | None = None

    def missing(self, device: str) -> str | None:
        """Why it cannot run here, or None."""
        if self.ours:
            return availability()[self.backend or self.name]
        reasons = [reason for module in self.needs if (reason := why_not_importable(module))]
        if self.compiles and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
            reasons.append("no C++ compiler was found")
        if not reasons and self.unusable and (reason := self.unusable(device)):
            reasons.append(reason)
        return "; ".join(reasons) or None


@dataclass(frozen=True)
class Planned:
    """A step whose library says beforehand how many bytes it takes beyond its inputs."""

    step: Step
    peak_bytes: int

    def __call__(self) -> Any:
        """Run it."""
        return self.step()


@functools.cache
def why_not_importable(module: str) -> str | None:
    """None if a module can be imported, else the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # others' deprecations are not ours to mend
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:  # a package that breaks on this Python or torch is no peer either
        return f"{module} cannot be imported: {type(error).__name__}: {error}"
    return None


def why_not_keops(device: str) -> str | None:
    """KeOps is installed, but without CUDA's compiler or headers it has only the CPU."""
    if device != "cuda":
        return None
    from pykeops import config

    return None if config.gpu_available else "KeOps finds no CUDA here"


def our_peers(call: Callable[..., tuple[Tensor, Tensor | None]], leaves: int = 2) -> list[Peer]:
    """A peer for each implementation of this package, and for those that may use tf32 another.

    Args:
        call: (backend, inputs...) to loss and assignment.
        leaves: How many inputs, the first ones, have gradients.
    """

    def prepare(name: str) -> Callable[..., Step]:
        return with_gradients(functools.partial(call, name), leaves)

    devices = ("cpu", "cuda", "mps")
    peers = []
    for name, backend in BACKENDS.items():
        peers.append(Peer(name, prepare(name), devices=backend.devices or devices, ours=True))
        if name in TF32:
            peers.append(replace(at_high(peers[-1]), backend=name))
    return peers


def at_high(peer: Peer) -> Peer:
    """The same peer where float32 products may be taken from tf32, which only GPUs have."""
    return replace(peer, name=f"{peer.name}-high", devices=("cuda",), precision="high")


def with_gradients(
    function: Callable[..., tuple[Tensor, Tensor | None]], leaves: int = 2
) -> Callable[..., Step]:
    """The step of a differentiable function: its loss, and the gradients in its first inputs.

    Args:
        function: Inputs to loss and assignment, or None for the latter.
        leaves: How many inputs have gradients.
    """

    def prepare(*inputs: Tensor) -> Step:
        first = [value.detach().requires_grad_() for value in inputs[:leaves]]
        rest = inputs[leaves:]

        def step() -> Any:
            loss, assignment = function(*first, *rest)
            return loss.detach(), *torch.autograd.grad(loss, first), assignment

        return step

    return prepare


def compiled(function: Callable[..., Any], leaves: int = 2) -> Callable[..., Step]:
    """The same under torch.compile, for one shape at a time, where its code is fastest."""

    def prepare(*inputs: Tensor) -> Step:
        torch._dynamo.reset()
        return with_gradients(torch.compile(function, dynamic=False), leaves)(*inputs)

    return prepare
