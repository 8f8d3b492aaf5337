"""How much memory is left, so that what does not fit is refused before it is asked for."""

from __future__ import annotations

import os
from pathlib import Path

from cgm_fast.cgm.data.dataset import DataError

_CGROUP = Path("/sys/fs/cgroup")


def available() -> int | None:
    """Bytes that this process can still take without swapping; None where that is unknown."""
    known = [found for found in (_of_machine(), _of_container()) if found is not None]
    return min(known, default=None)


def require_memory(what: str, size: int, hint: str = "") -> None:
    """Raise DataError if `size` bytes are more than is available.

    Args:
        what: What needs them, the beginning of the message.
        size: Bytes.
        hint: What to do, the end of the message.
    """
    left = available()
    if left is not None and size > left:
        raise DataError(
            f"{what} would take {gigabytes(size)} of memory, of which {gigabytes(left)} are left"
            + (f": {hint}" if hint else "")
        )


def gigabytes(size: int) -> str:
    """Bytes for a message."""
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"


def _of_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _of_container() -> int | None:
    """What a control group's limit leaves; caches that the system can drop count as free."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        rows = (line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        cached = sum(int(size) for name, size in rows if name == "inactive_file")
        return None if limit == "max" else int(limit) - used + cached
    except (OSError, ValueError):
        return None
