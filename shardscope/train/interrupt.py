"""Ending a run in good order: SIGTERM and SIGINT, and a wall-clock budget.

The loop asks `stop.reason` between micro-batches. A step that was begun is abandoned, not finished: batches are a
pure function of the step, so nothing is lost and the weights are those of the last whole step.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any


class Stop:
    """Why the run should end now (None: it should not). A context manager that listens for signals while open.

    After the first signal the process has `grace_seconds` to save; then it is ended with exit status 1, the last
    whole checkpoint intact. A second signal ends it at once.
    """

    def __init__(self, max_minutes: float = 0.0, grace_seconds: float = 30.0) -> None:
        self.grace_seconds = grace_seconds
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else None
        self._budget = max_minutes
        self._signal: str | None = None
        self._previous: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    @property
    def reason(self) -> str | None:
        if self._signal:
            return self._signal
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return f"the budget of {self._budget:g} minutes is spent"
        return None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._listen)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._timer is not None:
            self._timer.cancel()

    def _listen(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        signal.signal(number, self._previous[number])
        self._timer = threading.Timer(self.grace_seconds, os._exit, args=(1,))
        self._timer.daemon = True
        self._timer.start()
