"""Ending a run in good order: SIGTERM and SIGINT, and a wall-clock budget.

The loop asks `stop.reason` between micro-batches. A step that was begun is abandoned, not finished: batches are a
pure function of the step, so nothing is lost and the weights are those of the last whole step. While a run is being set
up there is nothing to save, and a signal ends it on the spot.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal that came while there was nothing to save."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stop:
    """Why the run should end now (None: it should not). A context manager that listens for signals while open.

    Inside `saving()` a signal is a reason to stop: the process has `grace_seconds` to save, then it is ended with exit
    status 1, the last whole checkpoint intact. Outside, a signal raises Interrupted. A second signal of either kind
    does what it would have done without us: it ends the process at once.
    """

    def __init__(self, max_minutes: float = 0.0, grace_seconds: float = 30.0) -> None:
        self.grace_seconds = grace_seconds
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else None
        self._budget = max_minutes
        self._signal: str | None = None
        self._saving = False
        self._previous: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    @property
    def reason(self) -> str | None:
        if self._signal:
            return self._signal
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return f"the budget of {self._budget:g} minutes is spent"
        return None

    @contextmanager
    def saving(self) -> Iterator[None]:
        """For as long as the run can save what it has."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._listen)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()
        if self._timer is not None:
            self._timer.cancel()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _listen(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        if not self._saving:
            raise Interrupted(number)
        self._signal = signal.Signals(number).name
        self._timer = threading.Timer(self.grace_seconds, self._leave)
        self._timer.daemon = True
        self._timer.start()

    def _leave(self) -> None:
        text = (
            f"error: saving took longer than train.grace_seconds={self.grace_seconds:g}; the last checkpoint is whole\n"
        )
        # Not through sys.stderr, whose lock another thread may hold.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
        os._exit(1)
