"""A command that ends in time, whatever it does, and whose output is kept as it comes.

Only the standard library: this runs before anything is installed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

GRACE = 8.0
"""Seconds that a command has to write what it knows, from the first signal to the last."""
MOST_BYTES = 1_500_000
"""Of a command's output that the log keeps: its beginning."""
TAIL_LINES = 60


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit status (negative: the signal), seconds, its last lines."""

    status: int
    seconds: float
    late: bool
    """Whether it was stopped for its time."""
    tail: tuple[str, ...]

    def __str__(self) -> str:
        """Such as "exit 1 in 3 s"."""
        how = "stopped, out of time," if self.late else f"exit {self.status}"
        return f"{how} in {self.seconds:.0f} s"


def run(
    command: Sequence[str],
    seconds: float,
    log: Path,
    env: dict[str, str] | None = None,
    grace: float = GRACE,
) -> Outcome:
    """Run a command for at most `seconds` and a grace; append its output to `log` meanwhile.

    It has a process group of its own. When its time is over the group is interrupted, as by
    Ctrl-C, and `grace` seconds later killed; what it left running is killed in any case. A command
    that does not exist ends with status 127, as in a shell.
    """
    start = time.monotonic()
    with log.open("ab", buffering=0) as file:
        try:
            process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            file.write(f"{error}\n".encode())
            return Outcome(127, time.monotonic() - start, False, (str(error),))
        tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        reader = threading.Thread(target=copy, args=(process, file, tail), daemon=True)
        reader.start()
        late = False
        try:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                late = True
                kill(process.pid, signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(grace)
        finally:  # also where this process itself is told to end
            kill(process.pid, signal.SIGKILL)
            process.wait()
            reader.join(2.0)  # a process that left the group may hold the pipe open
    lines = tuple(line.decode(errors="replace").rstrip() for line in list(tail))
    return Outcome(process.returncode, time.monotonic() - start, late, lines)


def copy(process: subprocess.Popen[bytes], file: BinaryIO, tail: deque[bytes]) -> None:
    """The command's output into the file, up to a size, and its last lines into the tail."""
    assert process.stdout is not None
    written = 0
    with suppress(ValueError), process.stdout as lines:  # the file is closed before the pipe is
        for line in lines:
            tail.append(line)
            if written <= MOST_BYTES:
                written += len(line)
                file.write(line if written <= MOST_BYTES else b"[the rest is left out]\n")


def kill(group: int, number: signal.Signals) -> None:
    """Signal a process group that may have gone."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
