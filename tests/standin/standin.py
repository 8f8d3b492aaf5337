"""A second device for tests on a machine without a GPU: memory of the host, errors of a GPU.

`CGM_FAST_TEST_DEVICE=standin pytest tests/ops` runs there what runs on "cuda" where there is a GPU:
the backends "cuda" (emulated) and "triton" (interpreted) then serve this device and no other.
"""

import ctypes
import dataclasses
import hashlib
import os
import shutil
import subprocess
import types
from pathlib import Path

import torch

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "build" / "standin"
NAME = "standin"
COMPILER = os.environ.get("CXX", "g++")


class Missing(Exception):
    """What compiling would need is not there."""


def build() -> Path:
    """The library, compiled if its source or torch changed since; about half a minute.

    Raises:
        Missing: there is no compiler, or torch came without its headers.
        RuntimeError: the source does not compile.
    """
    if shutil.which(COMPILER) is None:
        raise Missing(f"no {COMPILER}")
    torch_folder = Path(torch.__file__).parent
    include = torch_folder / "include"
    if not include.is_dir():
        raise Missing(f"no {include}")
    source = HERE / "device.cpp"
    content = source.read_bytes() + torch.__version__.encode() + str(torch_folder).encode()
    library = FOLDER / f"{hashlib.sha256(content).hexdigest()[:16]}.so"
    if library.exists():
        return library
    FOLDER.mkdir(parents=True, exist_ok=True)
    part = library.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        [COMPILER, "-std=c++20", "-O1", "-fPIC", "-shared", "-w",
         f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
         "-isystem", include, "-isystem", include / "torch/csrc/api/include",
         source, "-L", torch_folder / "lib", "-lc10", "-ltorch_cpu", "-o", part],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{COMPILER} {source}\n{done.stderr}")
    part.rename(library)
    return library


def register() -> str:
    """Make torch know the device, and two implementations serve it; returns its name."""
    ctypes.CDLL(str(build()), mode=ctypes.RTLD_GLOBAL).register_standin()
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.manual_seed_all = lambda seed: None
    module.get_rng_state = lambda device=None: torch.get_rng_state()
    module.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    torch._register_device_module(NAME, module)

    from cgm_fast.ops import backends

    for name in ("cuda", "triton"):
        backend = backends.BACKENDS[name]
        backends.BACKENDS[name] = dataclasses.replace(backend, devices=(NAME,))
    return NAME
