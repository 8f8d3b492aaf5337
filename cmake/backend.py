"""The package's build backend: scikit-build-core, in a folder that the next build goes on with.

A second install after an edit compiles what the edit concerns. The folder is the source tree's
build/cmake-<hash of what was asked for>, so that no option of one build is remembered by another;
where the tree cannot be written it is a temporary one. `-C build-dir=PATH` chooses another.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from scikit_build_core import build as _skbuild
from scikit_build_core.build import (  # noqa: F401
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

_ROOT = Path(__file__).parents[1]
# What CMake reads at a build folder's first configuration, and then keeps.
_ENVIRONMENT = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CUDACXX", "CUDAFLAGS", "CUDAHOSTCXX",
                "CUDAARCHS", "CMAKE_ARGS", "CMAKE_GENERATOR", "CGM_FAST_CUDA")  # fmt: skip


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """As in PEP 517."""
    return _skbuild.build_wheel(wheel_directory, _in_folder(config_settings), metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """As in PEP 660."""
    return _skbuild.build_editable(wheel_directory, _in_folder(config_settings), metadata_directory)


def _in_folder(config_settings: dict[str, Any] | None) -> dict[str, Any]:
    settings = dict(config_settings or {})
    if {"build-dir", "skbuild.build-dir"} & settings.keys() or not os.access(_ROOT, os.W_OK):
        return settings
    asked = [settings, {name: os.environ.get(name) for name in _ENVIRONMENT}, sys.version]
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    settings["build-dir"] = str(_ROOT / "build" / f"cmake-{key}")
    return settings
