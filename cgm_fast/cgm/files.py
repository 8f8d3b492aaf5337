"""Files that are there whole or not at all, and folders that one process writes to at a time."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".lock"


class RunError(RuntimeError):
    """A run folder or a file that cannot be used or written; the message says why."""


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, either the old or the new one is there, complete.

    Raises:
        RunError: the disk is full or refuses; the old file is untouched.
    """
    temporary: Path | None = None
    try:
        # A name of its own: processes on other machines may have the same number as this one.
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(_mode(path))
        temporary.replace(path)
    except OSError as error:
        stands = "the old one stands" if path.is_file() else "nothing was left"
        raise RunError(f"{path} could not be written: {reason(error)}; {stands}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)  # not there after the renaming


def _mode(path: Path) -> int:
    """The old file's permissions, or those of any new file; mkstemp's are the owner's alone."""
    try:
        return path.stat().st_mode & 0o777
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def reason(error: OSError) -> str:
    """Why the system refused, in a few words."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG):
        return "no space left"
    return error.strerror or type(error).__name__


def leftovers(path: Path, names: tuple[str, ...]) -> list[Path]:
    """The temporary files of processes that were killed while they wrote such files there."""
    return [file for name in names for file in path.glob(f".{name}.*.tmp")]


_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
"""How a network's file system says that it has none."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a folder, made if need be, against other processes that write to it.

    The system ends a lock with its process, however that ends.

    Raises:
        RunError: another process holds it, or it cannot be made or written to.
    """
    from filelock import FileLock, Timeout  # torch has it

    made, lock = not path.exists(), None
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(path / LOCK), timeout=0)
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"{path} is in use by another process: wait for it, or pass --out for another folder"
        ) from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise RunError(f"{path} could not be made or written to: {reason(error)}") from error
        lock = None  # a file system without locks
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
        with suppress(OSError):
            if made and set(path.iterdir()) <= {path / LOCK}:  # nothing came of it
                (path / LOCK).unlink(missing_ok=True)
                path.rmdir()
