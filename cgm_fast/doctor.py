"""`cgm-fast doctor`: versions, devices, which implementations run here or why not, and whether what
they compute is right."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from typing import Any

import torch

from cgm_fast.ops.backends import AUTO, BACKENDS, OPS, availability, choose, has_module, usable
from cgm_fast.ops.regimes import kind
from cgm_fast.ops.verification import check, regimes

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
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            lines.append(f"  cuda:{i}      {p.name}, compute capability {p.major}.{p.minor}")
    else:
        built = torch.version.cuda
        reason = "no usable device or driver" if built else "this torch is built without CUDA"
        lines.append(f"  cuda        none: {reason}")
    if torch.backends.mps.is_available():
        lines.append("  mps         available")
    lines += ["", "implementations"]
    for name, why_not in availability().items():
        served = ", ".join(BACKENDS[name].devices or ("any device",))
        lines.append(f"  {name:<11} {why_not or 'usable'} ({served})")
    chosen = ", ".join(f"{device}: {_chosen(device)}" for device in _devices())
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


def _devices() -> list[torch.device]:
    """One of each that torch can use here."""
    found = [torch.device("cpu")]
    if torch.cuda.is_available():
        found += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found += [torch.device("xpu", i) for i in range(torch.xpu.device_count())]
    return found


def verify(show: Callable[[str], None] = print) -> bool:
    """Check every implementation, on every device it is usable on, in every regime of each op
    against float64 on the CPU, and show a table; True if all of them passed.

    Triton compiles what it has not compiled yet, which takes minutes. Where a tensor core's tf32 is
    allowed (`torch.set_float32_matmul_precision`) that is what is checked.
    """
    show(
        f"{'device':<8} {'implementation':<14} {'op':<16} {'step':<4} {'dtype':<9} regimes"
        f"  {'loss':>8} {'others':>8}  seconds"
    )
    bad: list[str] = []
    for device in _devices():
        for name in usable(device):
            for op in OPS:
                if has_module(op, name):
                    for line in _verified(op, name, device, bad):
                        show(line)
    for line in bad:
        show(line)
    show(f"{len(bad)} failed" if bad else "all passed")
    return not bad


def _verified(op: str, name: str, device: torch.device, bad: list[str]) -> Iterator[str]:
    """A line for each step and dtype."""

    def group(regime: Any) -> tuple[str, str]:
        return regime.step, kind(regime.dtype)

    for (step, dtype), members in groupby(sorted(regimes(op).every(), key=group), group):
        if dtype == "float64" and device.type == "mps":  # which has none
            continue
        start, count, declined = time.perf_counter(), 0, ""
        worst = {"loss": 0.0, "others": 0.0}
        failed = len(bad)
        for regime in members:
            outcome = check(op, step, name, device, regime)
            count += 1
            for result, error in outcome.errors.items():
                of = "loss" if result in ("loss", "terms") else "others"
                worst[of] = error if error != error else max(worst[of], error)
            if outcome.declined:
                declined = f"  not taken: {outcome.reason}"
            elif outcome.reason is not None:
                bad.append(f"FAILED {name} on {device}, {op}: {regime}: {outcome.reason}")
        seconds = time.perf_counter() - start
        of_loss = f"{worst['loss']:8.1e}" if "loss" in outcome.errors else f"{'-':>8}"
        verdict = f"  {len(bad) - failed} FAILED" if len(bad) > failed else declined
        yield (
            f"{device!s:<8} {name:<14} {op:<16} {step:<4} {dtype:<9} {count:7}"
            f"  {of_loss} {worst['others']:8.1e} {seconds:8.1f}{verdict}"
        )


def _chosen(device: torch.device) -> str:
    try:
        name = choose(AUTO, device)
        checked = BACKENDS[name].checked_on(device.type)
        return f"{name} (where it passes a check)" if checked else name
    except (ValueError, RuntimeError) as error:  # CGM_FAST_BACKEND asks for what cannot be had
        return f"none ({error})"


def _build_lines() -> list[str]:
    try:
        from cgm_fast import _native
    except ImportError:
        return [f"  none: {availability()['native']}"]
    return [f"  {key:<18} {value}" for key, value in _native.build_info().items()]
