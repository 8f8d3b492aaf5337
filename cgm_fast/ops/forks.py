"""Whether this process is a forked one, in which torch's own threads are missing."""

from __future__ import annotations

import os

_here = os.getpid()
_NO_EXEC = 0x40  # PF_FORKNOEXEC, of Linux


def forked() -> bool:
    """Whether the process came of a fork, and has not called exec since.

    The threads of its parent's OpenMP run-time did not come along: an operation of torch on several
    threads may wait for them for ever. On Linux also where the fork was before this import.
    """
    if os.getpid() != _here:
        return True
    try:
        with open("/proc/self/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()  # from the third field on
        return bool(int(fields[6]) & _NO_EXEC)
    except (OSError, ValueError, IndexError):
        return False
