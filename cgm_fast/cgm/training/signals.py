"""Signals that ask a run to end: it finishes the step, saves and exits."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# What asks a process to end: Ctrl-C, a scheduler or `kill`, a connection that drops, and the notice
# that batch systems send before they take a machine away. Not every system has all of them.
NUMBERS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)
BROKEN_PIPE = int(getattr(signal, "SIGPIPE", 13))


class StopSignals:
    """While active, the signals that ask to end are noted instead of obeyed; a second is obeyed.

    Those that are ignored stay ignored, as `nohup` has it for SIGHUP; SIGINT, which shells ignore
    for jobs in the background, does not: who sends it on purpose wants an end.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._note)
        return self

    def note(self, number: int) -> None:
        """Ask to end as if this signal had come."""
        self.received = number

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.note(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # of C, which Python cannot put back
                signal.signal(number, handler)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
