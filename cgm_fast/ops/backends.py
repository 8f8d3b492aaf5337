"""Which implementations exist, which can run here, and which one a call gets.

An explicit request never falls back: it runs or raises. The automatic choice takes the first
implementation, in the order of `BACKENDS`, that is built and runs on the tensors' device.
`CGM_FAST_BACKEND` in the environment replaces "auto".
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from cgm_fast.ops.cuda import launch as cuda_launch

AUTO = "auto"
ENVIRONMENT = "CGM_FAST_BACKEND"


def _why_no_native() -> str | None:
    try:
        from cgm_fast import _native  # noqa: F401
    except ImportError as error:
        return cuda_launch.why_no_module(error)
    return None


# Triton's interpreter, for tests and debuggers, runs kernels on the CPU.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# So do CUDA kernels that tests have compiled for it.
_EMULATED = cuda_launch.EMULATION in os.environ


def _why_no_triton() -> str | None:
    try:
        import triton
    except ImportError as error:
        return f"triton cannot be imported ({error}); pip install triton"
    if _INTERPRETED:
        return _why_not_interpreted(triton.__version__)
    if not torch.cuda.is_available():
        return "torch finds no GPU; TRITON_INTERPRET=1 interprets the kernels on the CPU"
    return None


def _why_not_interpreted(triton: str) -> str | None:
    import numpy

    def number(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split(".")[:2])

    # triton-lang/triton 9171: it made integers of arrays of one number, which numpy now refuses.
    if number(triton) < (3, 7) and number(numpy.__version__) >= (2, 4):
        return (
            f"the interpreter of Triton {triton} cannot run with numpy {numpy.__version__}; "
            "pip install 'numpy<2.4', or a newer Triton"
        )
    return None


@dataclass(frozen=True)
class Backend:
    """An implementation: its name, the device types it serves, and why it cannot run, if so."""

    name: str
    devices: tuple[str, ...] | None
    why_unavailable: Callable[[], str | None]
    on_request: tuple[str, ...] = ()
    """Device types of `devices` on which it runs only if asked for."""
    capability: tuple[int, int] = (0, 0)
    """The least compute capability of a CUDA GPU that it runs on."""

    def serves(self, device_type: str) -> bool:
        """Whether tensors on this type of device can be given to it; None in `devices` is any."""
        return self.devices is None or device_type in self.devices

    def why_not_on(self, device: torch.device) -> str | None:
        """Why this one of several GPUs is beyond it, or None."""
        if device.type != "cuda" or torch.version.hip or self.capability == (0, 0):
            return None
        found = torch.cuda.get_device_capability(device)
        if found >= self.capability:
            return None
        least, this = (".".join(map(str, version)) for version in (self.capability, found))
        return f"{device} has compute capability {this}, and {least} is needed"


# Fastest first.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("native", ("cpu",), _why_no_native),
        # On a GPU not the automatic choice before one has run the tests.
        Backend(
            "cuda",
            ("cuda", "cpu") if _EMULATED else ("cuda",),
            cuda_launch.why_unavailable,
            on_request=("cuda", "cpu"),
            capability=(8, 0),
        ),
        Backend(
            "triton",
            ("cuda", "cpu") if _INTERPRETED else ("cuda",),
            _why_no_triton,
            on_request=("cuda", "cpu"),
            capability=(8, 0),
        ),
        Backend("reference", None, lambda: None),
    )
}

_availability: dict[str, str | None] = {}
# What a call gets: name and module, and the availability that the choice rests on.
_found: dict[tuple[str, str, torch.device], tuple[str, ModuleType, dict[str, str | None]]] = {}
_last: dict[str, str] = {}


def availability() -> dict[str, str | None]:
    """Every implementation's name, with None if it can run here or the reason why not."""
    return {name: _why_unavailable(name) for name in BACKENDS}


def _why_unavailable(name: str) -> str | None:
    """Asked once, and only where it matters: to ask may import Triton, or start CUDA, after which
    this process cannot fork."""
    if name not in _availability:
        _availability[name] = BACKENDS[name].why_unavailable()
    return _availability[name]


def last_backend(op: str = "mmd") -> str | None:
    """Name of the implementation that last ran `op` in this process; None if none has.

    Args:
        op: "mmd", "prototype_margin", "cgm_loss" or "kernel_product".
    """
    return _last.get(op)


def check_name(backend: str, source: str = "backend") -> str:
    """Return `backend` if it is "auto" or an implementation's name; raise ValueError otherwise."""
    if not isinstance(backend, str) or (backend != AUTO and backend not in BACKENDS):
        names = ", ".join(repr(name) for name in (AUTO, *BACKENDS))
        raise ValueError(f"{source} must be one of {names}, got {backend!r}")
    return backend


def choose(backend: str, device: torch.device) -> str:
    """Name of the implementation for tensors on `device`.

    Raises:
        ValueError: unknown name, or an implementation that does not serve this device.
        RuntimeError: the implementation asked for cannot run here; the message says why.
    """
    source = "backend"
    if backend == AUTO:
        source = ENVIRONMENT
        backend = _automatic()
    if backend == AUTO:
        return next(
            name
            for name, candidate in BACKENDS.items()
            if candidate.serves(device.type)
            and device.type not in candidate.on_request
            and _why_unavailable(name) is None
            and candidate.why_not_on(device) is None
        )
    check_name(backend, source)
    chosen = BACKENDS[backend]
    reason = _why_unavailable(backend)
    if reason is None and chosen.serves(device.type):
        reason = chosen.why_not_on(device)
    if reason is not None:
        raise RuntimeError(f"{source}={backend!r} cannot run here: {reason}")
    if not chosen.serves(device.type):
        devices = ", ".join(chosen.devices or ())
        raise ValueError(f"{source}={backend!r} runs on {devices} tensors, got {device.type}")
    return backend


# What `os.environ.get` looks into; to ask it for a name that is not there costs a caught KeyError,
# a twentieth of a small call.
_VARIABLES: Any = getattr(os.environ, "_data", {ENVIRONMENT: None})
_VARIABLE: Any = getattr(os.environ, "encodekey", str)(ENVIRONMENT)


def _automatic() -> str:
    """What "auto" means."""
    if _VARIABLE not in _VARIABLES:
        return AUTO
    return os.environ.get(ENVIRONMENT) or AUTO


def implementation(op: str, backend: str, device: torch.device) -> ModuleType:
    """The module `cgm_fast.ops.<op>.<implementation>` for this call; imported at first use."""
    wanted = _automatic() if backend == AUTO else backend
    found = _found.get((op, wanted, device))
    if found is None or found[2] is not _availability:
        from importlib import import_module

        name = choose(backend, device)
        found = name, import_module(f"cgm_fast.ops.{op}.{name}"), _availability
        _found[op, wanted, device] = found
    _last[op] = found[0]
    return found[1]
