"""`cgm-fast doctor`: versions, devices, and which implementations run here or why not."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from cgm_fast.ops.backends import AUTO, BACKENDS, availability, choose

_EXTRAS = {
    "train": ("matplotlib", "rich", "safetensors", "scikit-learn", "tensorboard", "torchvision",
              "tyro"),
    "bench": ("matplotlib", "pytest", "pytest-benchmark"),
}  # fmt: skip


_ISA, _ISAS = "CGM_FAST_ISA", ("baseline", "avx2", "avx512")


class EnvironmentVariableError(ValueError):
    """An environment variable that means nothing; the message names it and what it takes."""


def check_environment() -> None:
    """Raise EnvironmentVariableError if one of this package's variables would be ignored."""
    if (value := os.environ.get(_ISA)) and value not in _ISAS:
        raise EnvironmentVariableError(f"{_ISA} must be one of {', '.join(_ISAS)}, got {value!r}")


def report() -> str:
    """What a bug report should hold, as text."""
    lines = [
        f"cgm-fast      {_installed_version('cgm-fast')}",
        f"python        {platform.python_version()} on {platform.platform()}",
        f"torch         {torch.__version__}",
        f"triton        {_installed_version('triton')}",
        f"numpy         {_installed_version('numpy')}",
    ]
    for extra, packages in _EXTRAS.items():
        found = ", ".join(f"{package} {_installed_version(package)}" for package in packages)
        lines.append(f"extra {extra:<7} {found}")
    lines += ["", "devices"]
    lines.append(f"  cpu         {torch.get_num_threads()} threads")
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            lines.append(f"  cuda:{i}      {p.name}, compute capability {p.major}.{p.minor}")
    else:
        built = torch.version.cuda
        reason = "no usable device or driver" if built else "this torch is built without CUDA"
        lines.append(f"  cuda        none: {reason}")
    if torch.backends.mps.is_available():
        devices.append("mps")
        lines.append("  mps         available")
    lines += ["", "implementations"]
    for name, why_not in availability().items():
        served = ", ".join(BACKENDS[name].devices or ("any device",))
        lines.append(f"  {name:<11} {why_not or 'usable'} ({served})")
    chosen = ", ".join(f"{device}: {_chosen(device)}" for device in devices)
    lines.append(f"  automatic   {chosen}")
    lines += ["", "compiled module", *_build_lines()]
    try:
        check_environment()
    except EnvironmentVariableError as error:
        lines.append(f"  {error}")
    return "\n".join(lines)


def _installed_version(package: str) -> str:
    """The version of a distribution, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _chosen(device: str) -> str:
    try:
        return choose(AUTO, torch.device(device))
    except (ValueError, RuntimeError) as error:  # CGM_FAST_BACKEND asks for what cannot be had
        return f"none ({error})"


def _build_lines() -> list[str]:
    try:
        from cgm_fast import _native
    except ImportError:
        return [f"  none: {availability()['native']}"]
    return [f"  {key:<18} {value}" for key, value in _native.build_info().items()]
