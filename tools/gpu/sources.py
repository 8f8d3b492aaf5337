"""What a kit is packed from: the package's sources as one number."""

from __future__ import annotations

import hashlib
from pathlib import Path

SUFFIXES = (".py", ".pyi", ".csv", ".cpp", ".h", ".cu", ".cuh", ".txt", ".toml", ".cmake")


def fingerprint(root: Path) -> str:
    """SHA-256 of what the wheel is built from: the same sources, the same number, anywhere."""
    content = hashlib.sha256()
    paths = [root / "pyproject.toml", root / "CMakeLists.txt"]
    for folder in ("cgm_fast", "cmake", "csrc"):
        paths += [p for p in (root / folder).rglob("*") if p.suffix in SUFFIXES]
    for path in sorted(path for path in paths if path.is_file()):
        content.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return content.hexdigest()
