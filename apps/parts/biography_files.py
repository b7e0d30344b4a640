"""The biographies that a page can show: those of the runs that the explorer was started with, and those that ship.

They are read anew while they grow. Small ones come with Shardscope, so that there is something to look at before
anything was trained here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from apps.parts.checkpoints import FAILURES, below, real
from apps.parts.heads import Head
from shardscope.resources import resource
from shardscope.train.biography import KIND, Biography, biography_of
from shardscope.train.changes import Change, find_changes, least_change
from shardscope.train.metrics import BIOGRAPHY, read_metrics

FEWEST = 2  # probes of a biography that is worth a curve


@dataclass(frozen=True)
class BiographyFile:
    """A biography: the run it is of, and where it lies; `shipped` if it came with Shardscope."""

    name: str
    folder: Path
    shipped: bool = False

    def read(self) -> Biography | None:
        """As it is now; None where there is nothing to read."""
        return _read(os.fsencode(self.folder), written_at(self.folder))


def biographies_of(runs: Iterable[tuple[str, Path]]) -> list[BiographyFile]:
    """Those of the runs, by name and folder; then those that ship; last those of runs with too few probes to draw."""
    own = [BiographyFile(name, folder) for name, folder in runs if os.path.lexists(folder / BIOGRAPHY)]
    folders = below(real(resource("apps") / "biographies"), (BIOGRAPHY,))
    folders.sort(key=lambda path: "anneal" in path.name)  # as they follow each other
    shipped = [BiographyFile(f"{path.name} (shipped)", path, shipped=True) for path in folders]
    probes = {file: 0 if (found := file.read()) is None else len(found.steps) for file in own}
    enough = [file for file in own if probes[file] >= FEWEST]
    return [*enough, *shipped, *(file for file in own if 0 < probes[file] < FEWEST)]


@st.cache_resource(max_entries=16, show_spinner=False)
def _read(folder: bytes, changed: int) -> Biography | None:
    try:
        lines = read_metrics(Path(os.fsdecode(folder)), KIND, BIOGRAPHY)
    except FAILURES:  # a pipe or a folder in its place
        return None
    return biography_of(lines)


def written_at(folder: Path) -> int:
    try:
        return (folder / BIOGRAPHY).stat().st_mtime_ns
    except OSError:
        return 0


@st.cache_data(max_entries=256, show_spinner=False)
def _changes(folder: bytes, changed: int, score: str, head: Head) -> list[Change]:
    biography = _read(folder, changed)
    assert biography is not None
    return find_changes(biography.steps, biography.heads[score][:, *head], least_change(score))


def changes_of(file: BiographyFile, score: str, head: Head) -> list[Change]:
    return _changes(os.fsencode(file.folder), written_at(file.folder), score, head)
