"""What a run has logged, read so that a file that is no log is a line on the page and not the end of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import streamlit as st

from apps.parts.checkpoints import FAILURES
from shardscope.files import regular_file
from shardscope.train.metrics import FILE, read_metrics
from shardscope.visible import visible


def read_log(run: Path) -> tuple[list[dict[str, Any]], str]:
    """The lines of a run's metrics.jsonl as they are now, and why there are none when the file cannot be read."""
    return _lines(os.fsencode(run), logged_at(run))


def logged_at(run: Path) -> float:
    """When the run last logged, in seconds since the epoch; 0 for one that never did."""
    try:
        return (run / FILE).stat().st_mtime
    except OSError:
        return 0.0


@st.cache_resource(max_entries=32, show_spinner=False)
def _lines(run: bytes, changed: float) -> tuple[list[dict[str, Any]], str]:
    folder = Path(os.fsdecode(run))  # in bytes, because a name that is not UTF-8 is no key for a cache
    if not os.path.lexists(folder / FILE):
        return [], ""
    try:
        regular_file(folder / FILE)
        return read_metrics(folder), ""
    except FAILURES as error:
        return [], visible(str(error))
