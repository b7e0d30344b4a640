"""One way to show how far long work has come: a bar on a terminal, plain lines at intervals in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_LOOKS = 0.5


class _Lines(tqdm):
    """tqdm for a file: whole lines, the first after ten seconds and at most one every ten; no carriage returns."""

    def __init__(self, **settings: Any) -> None:
        self._line_at = time.monotonic()
        super().__init__(**settings, leave=False, ascii=True)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        # tqdm erases a bar by displaying an empty one; what a log holds stays there.
        if msg == "" or time.monotonic() - self._line_at < SECONDS_BETWEEN_LINES:
            return False
        self._line_at = time.monotonic()
        return bool(super().display(msg, 0))

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        def write_line(text: str) -> None:
            file.write(text.strip() + "\n")
            file.flush()

        return write_line


def progress_bar(
    *, desc: str, total: float | None = None, initial: int = 0, unit: str = "it", unit_scale: bool = False,
    disable: bool = False,
) -> tqdm:  # fmt: skip
    """A tqdm bar on stderr. The environment's TQDM_DISABLE silences every bar; `disable` this one."""
    disable = disable or os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")
    settings: dict[str, Any] = {
        "desc": desc, "total": total, "initial": initial, "unit": unit, "unit_scale": unit_scale, "disable": disable,
        "file": sys.stderr, "mininterval": SECONDS_BETWEEN_LOOKS,
    }  # fmt: skip
    return tqdm(**settings, dynamic_ncols=True) if sys.stderr.isatty() else _Lines(**settings)


@contextmanager
def progress_of_shares(desc: str, disable: bool = False) -> Iterator[Callable[[float, str], None]]:
    """A bar for work that reports the share that is done, between 0 and 1, and a few words about what it is doing."""
    with progress_bar(desc=desc, total=100, unit="%", disable=disable) as bar:

        def report(done: float, words: str) -> None:
            bar.set_postfix_str(words, refresh=False)
            bar.update(int(100 * done) - bar.n)

        yield report
