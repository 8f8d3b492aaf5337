"""Which implementations exist, which can run here, and which one a call gets.

An explicit request never falls back: it runs or raises. The automatic choice takes the first
implementation, in the order of `BACKENDS`, that is built, runs on the tensors' device and has the
op; where crossovers.py knows better for a problem's size, in that order. Kernels for GPUs have to
pass a check first (verification.py). `CGM_FAST_BACKEND` in the environment replaces "auto".
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cgm_fast.ops import crossovers, verification
from cgm_fast.ops.cuda import launch as cuda_launch
from cgm_fast.ops.gpu import tf32_allowed
from cgm_fast.ops.records import tensor_fields
from cgm_fast.ops.regimes import kind

AUTO = "auto"
ENVIRONMENT = "CGM_FAST_BACKEND"
OPS = ("mmd", "prototype_margin", "cgm_loss", "kernel_product")


class BackendWarning(UserWarning):
    """An implementation would have been the automatic choice, and was not taken."""


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
    """Device types of `devices` on which it runs only if asked for: interpreted, or emulated."""
    checked: bool = False
    """Whether it is chosen only where it has passed a check on the device."""
    trusted: tuple[str, ...] = ()
    """Device types on which it is nevertheless chosen without one."""
    capability: tuple[int, int] = (0, 0)
    """The least compute capability of a CUDA GPU that it runs on."""

    def serves(self, device_type: str) -> bool:
        """Whether tensors on this type of device can be given to it; None in `devices` is any."""
        return self.devices is None or device_type in self.devices

    def checked_on(self, device_type: str) -> bool:
        """Whether it has to pass a check before it is chosen there."""
        return self.checked and device_type not in self.trusted

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
        Backend(
            "cuda",
            ("cuda", "cpu") if _EMULATED else ("cuda",),
            cuda_launch.why_unavailable,
            on_request=("cpu",),
            checked=True,
            capability=(8, 0),
        ),
        Backend(
            "triton",
            ("cuda", "cpu") if _INTERPRETED else ("cuda",),
            _why_no_triton,
            on_request=("cpu",),
            checked=True,
            capability=(8, 0),
        ),
        Backend("matmul", None, lambda: None, checked=True, trusted=("cpu",)),
        Backend("reference", None, lambda: None),
    )
}

_availability: dict[str, str | None] = {}
# What a call gets: name and module, the availability that the choice rests on, and from how many
# features on it rests on the problem besides (`_picked`), if it does.
_Found = tuple[str, ModuleType, dict[str, str | None], int | None]
_found: dict[tuple[str, str, torch.device], _Found] = {}
_picked: dict[tuple[Any, ...], _Found] = {}
_MOST_PICKED = 4096
_warned: set[tuple[str, str, torch.device]] = set()
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
    """Name of the implementation for tensors on `device`; of "auto", the one tried first.

    Raises:
        ValueError: unknown name, or an implementation that does not serve this device.
        RuntimeError: the implementation asked for cannot run here; the message says why.
    """
    source = "backend"
    if backend == AUTO:
        source = ENVIRONMENT
        backend = _automatic()
    if backend == AUTO:
        return next(usable(device))
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


def usable(device: torch.device, first: tuple[str, ...] = ()) -> Iterator[str]:
    """Names of what "auto" may take on a device, those of `first` before the others."""
    for name in dict.fromkeys((*first, *BACKENDS)):
        candidate = BACKENDS[name]
        if (
            candidate.serves(device.type)
            and device.type not in candidate.on_request
            and _why_unavailable(name) is None
            and candidate.why_not_on(device) is None
        ):
            yield name


def has_module(op: str, name: str) -> bool:
    """Whether an op has this implementation."""
    return find_spec(f"cgm_fast.ops.{op}.{name}") is not None


# What `os.environ.get` looks into; to ask it for a name that is not there costs a caught KeyError,
# a twentieth of a small call.
_VARIABLES: Any = getattr(os.environ, "_data", {ENVIRONMENT: None})
_VARIABLE: Any = getattr(os.environ, "encodekey", str)(ENVIRONMENT)


def _automatic() -> str:
    """What "auto" means."""
    if _VARIABLE not in _VARIABLES:
        return AUTO
    return os.environ.get(ENVIRONMENT) or AUTO


def implementation(op: str, step: str, args: tuple[Any, ...]) -> ModuleType:
    """The module `cgm_fast.ops.<op>.<implementation>` for this call; imported at first use.

    Args:
        op: Its name.
        step: The module's function that is to be called, "fwd" or "hvp".
        args: What it will be called with, and then the name of an implementation, or "auto".
    """
    first, wanted = args[0][0], args[-1]
    device = first.device
    if _VARIABLE in _VARIABLES and wanted == AUTO:
        wanted = _automatic()
    found = _found.get((op, wanted, device))
    if found is None or found[2] is not _availability:
        found = _found[op, wanted, device] = _find(op, wanted, args[-1], device)
    name, module, _, depends = found
    if depends is not None and first.size(-1) >= depends:
        name, module = _pick(op, step, device, args[:-1])[:2]
    _last[op] = name
    return module


def _find(op: str, wanted: str, backend: str, device: torch.device) -> _Found:
    """By the device alone; `backend` is what the call said, `wanted` what it means."""
    if wanted == AUTO:
        names = [name for name in usable(device) if has_module(op, name)]
        name, depends = names[0], crossovers.least_features(device.type, op)
        if BACKENDS[name].checked_on(device.type):
            depends = 0
        return name, _module(op, name), _availability, depends
    name = choose(backend, device)
    if not has_module(op, name):
        raise RuntimeError(f"backend={name!r} cannot run here: it has no {op}")
    return name, _module(op, name), _availability, None


def _module(op: str, name: str) -> ModuleType:
    return import_module(f"cgm_fast.ops.{op}.{name}")


def _pick(op: str, step: str, device: torch.device, records: tuple[Any, ...]) -> _Found:
    """By the problem; looked up where one like it has been met."""
    problem, x = records[0], records[0][0]
    of: Any = type(problem)
    count = tensor_fields(of)
    of_tensors = [None if v is None else v.shape for v in problem[:count]]
    others: Any = records[1:]
    if step != "fwd":  # a tangent is of tensors too
        others = [v.shape if isinstance(v, Tensor) else v for record in others for v in record]
    key = op, step, device, x.dtype, tf32_allowed(), *of_tensors, problem[count:], *others
    found = _picked.get(key)
    if found is not None and found[2] is _availability:
        return found
    first = crossovers.first(device.type, op, kind(x.dtype), *x.shape[:-3:-1])
    found, reasons, final = None, {}, True
    for name in usable(device, first):
        if not has_module(op, name) or not hasattr(module := _module(op, name), step):
            continue
        if BACKENDS[name].checked_on(device.type):
            try:
                checked = verification.outcome(op, step, name, device, records)
            except verification.NotNowError:
                final = False
                reasons[name] = (
                    "it has not been checked here, and in the capture of a CUDA graph it cannot "
                    "be: make such a call before the capture"
                )
                continue
            if checked.reason is not None:
                if not checked.declined:
                    reasons[name] = checked.reason
                continue
        found = name, module, _availability, None
        break
    assert found is not None  # the reference serves every device
    for name, reason in reasons.items():
        _warn(op, name, device, reason, found[0])
    if final:
        if len(_picked) >= _MOST_PICKED:
            _picked.clear()
        _picked[key] = found
    return found


def _warn(op: str, name: str, device: torch.device, reason: str, instead: str) -> None:
    if (op, name, device) in _warned:
        return
    _warned.add((op, name, device))
    warnings.warn(
        f"{op}: backend {name!r} is not used on {device}: {reason}. {instead!r} runs instead; "
        "`cgm-fast doctor --verify` checks everything",
        BackendWarning,
        stacklevel=2,
    )
