"""Turns SIGTERM, SIGHUP and Ctrl-C into a flag that is checked after each step."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

# The end asked for, by Ctrl-C, by a terminal that hangs up (Windows has no such signal).
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)


class StopSignals:
    """Remembers SIGTERM, SIGHUP or Ctrl-C instead of ending the program; a second Ctrl-C ends it.

    As a context manager; on leaving, the handlers are those from before.

    Attributes:
        received: number of the first signal, 0 while there was none.

    >>> with StopSignals() as signals:
    ...     signal.raise_signal(signal.SIGTERM)
    >>> signals.received == signal.SIGTERM
    True
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
        # Not print: the signal may have come in the middle of one. The terminal may be gone.
        with contextlib.suppress(OSError):
            os.write(2, b"\nfinishing the step, then saving; Ctrl-C stops at once\n")
