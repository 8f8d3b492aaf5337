"""What the numbers were measured on: devices, versions, and the processor's own limits."""

from __future__ import annotations

import functools
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu
from cgm_fast.ops.backends import availability

DEVICES = ("cpu", *(["cuda"] if torch.cuda.is_available() else []))
"""Types of device that are measured."""

PACKAGES = (
    "cgm-fast", "torch", "numpy", "triton", "faiss-cpu", "flash-kmeans", "flash-sinkhorn",
    "geomloss", "jax", "pykeops", "pythae", "scikit-learn",
)  # fmt: skip


def cpu_name() -> str:
    """The processor's name; with family and model where the name alone does not tell."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    name = fields.get("model name") or platform.processor() or platform.machine()
    if not re.search(r"\d", name) and "model" in fields:  # a virtual machine that hides it
        name += f" (family {fields.get('cpu family')}, model {fields['model']})"
    return re.sub(r"\s+", " ", name)


def device_name(device: str) -> str:
    """The name of the device of this type that tensors go to."""
    return torch.cuda.get_device_name() if device == "cuda" else cpu_name()


@functools.cache
def cpu_limits() -> dict[str, float] | None:
    """Multiply-adds and exp2 per second in float32, on as many threads as torch uses.

    None where the compiled module, or its probe, is not there.
    """
    if availability().get("native") is not None:
        return None
    from cgm_fast import _native

    probe = getattr(_native, "probe_float32", None)
    if probe is None:
        return None
    multiply_adds, exponentials = probe(torch.get_num_threads())
    return {"multiply_adds_per_second": multiply_adds, "exponentials_per_second": exponentials}


def info() -> dict[str, Any]:
    """All of it, for the JSON."""
    found = {"cpu": cpu_name()}
    if torch.cuda.is_available():
        found["cuda"] = device_name("cuda")
    versions = {"python": platform.python_version(), **installed()}
    if "cuda" in found and torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return {
        "devices": found,
        "threads": torch.get_num_threads(),
        "versions": versions,
        "compiled_module": compiled_module(),
        "limits": cpu_limits(),
        "gpu": gpu.properties() if "cuda" in found else None,
    }


def installed() -> dict[str, str]:
    """Versions of the packages measured here, of those that are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def compiled_module() -> dict[str, Any] | None:
    """What `cgm-fast doctor` says of the compiled module: compiler, flags, instruction set."""
    if availability().get("native") is not None:
        return None
    from cgm_fast import _native

    return dict(_native.build_info())
