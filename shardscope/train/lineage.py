"""Where a checkpoint comes from: the runs before it, and the weights, data and code that made it."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import shardscope
from shardscope.checkpoint import (
    MOST_STEPS,
    STATE,
    CheckpointError,
    list_checkpoints,
    read_facts,
    read_newest,
    read_notes,
    resolve_checkpoint,
)
from shardscope.train.run import run_status


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values: equal weights have equal digests, however they are stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def code_version() -> str:
    """The version of this package, and the commit of a checkout, '-dirty' if it holds changes."""
    package = Path(shardscope.__file__).parent
    version = f"shardscope {shardscope.__version__}, torch {torch.__version__}"
    if not (package.parent / ".git").exists():
        return version
    command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git here, or a checkout that is not ours
        return version
    return f"{version}, commit {found}"


def ancestors_of(start: Path | None, weights: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """What a run that forks from the checkpoint `start`, with these weights, records of the runs before it."""
    if start is None:
        return []
    notes = read_notes(start)
    facts = read_facts(start) if (start / STATE).exists() else {}
    this = {
        "run": str(notes.get("recipe") or start.name),
        "checkpoint": str(start.resolve()),
        "step": facts.get("step"),
        "weights": weights_digest(weights),
    }
    return [*recorded_ancestors(start), this]


@dataclass(frozen=True)
class Fork:
    """Where a run begins: at a step of another run. Step None: nothing says where the other stood."""

    run: Path
    step: int | None

    def __str__(self) -> str:
        return self.run.name if self.step is None else f"{self.run.name}@{self.step}"


def forks_before(run: Path, started_from: str = "") -> list[Fork]:
    """The forks that lead to a run, the oldest first; none for a run that began with nothing.

    `started_from` is what the run's log says of its first start, for a run that has saved nothing yet.
    """
    recorded: list[dict[str, Any]] = []
    with suppress(CheckpointError):  # it has no checkpoint
        recorded = read_newest(lambda: resolve_checkpoint(run), recorded_ancestors)
    # What a log says may be no path at all.
    with suppress(CheckpointError, OSError, ValueError):
        if not recorded and started_from and _run_of(started_from).resolve() != run.resolve():
            named = re.fullmatch(r"step-(\d{1,16})", Path(started_from).name)
            place = {"checkpoint": started_from, "step": int(named[1]) if named else None}
            recorded = [*recorded_ancestors(Path(started_from)), place]
    return [Fork(_run_of(one["checkpoint"]), _step(one)) for one in recorded]


def family_tree(run: Path) -> str:
    """The runs that a run descends from, and all that were forked from one of them, as indented text.

    Empty where it has no relatives. Forks are looked for beside the run and beside each of its ancestors; an ancestor
    that is no longer where it was, beside the run too, under any name.
    """
    run = run.resolve()
    moved = _Moved()
    chain = _chain(run, moved)
    nearby = {folder for member in chain if member.folder.parent.is_dir() for folder in member.folder.parent.iterdir()}
    others = (folder.resolve() for folder in sorted(nearby) if list_checkpoints(folder))
    chains = [chain] + [_chain(folder, moved) for folder in others if folder != run]
    family = [other for other in chains if other[0].folder == chain[0].folder]
    if max(map(len, family)) == 1:
        return ""
    parents = {member.folder: before.folder for other in family for before, member in pairwise(other)}
    members = {member.folder: member for other in reversed(family) for member in other}

    def lines(folder: Path, depth: int) -> Iterator[str]:
        member = members[folder]
        fork = f", from step {member.forked_at:,}" if member.forked_at is not None else ""
        yield f"{'  ' * depth}{member.folder.name}{fork}: {_state_of(folder)}{'  <- this run' if folder == run else ''}"
        for child, parent in sorted(parents.items()):
            if parent == folder:
                yield from lines(child, depth + 1)

    return "\n".join(lines(chain[0].folder, 0))


@dataclass(frozen=True)
class _Member:
    """A run of a family, and the step of its parent that it was forked at."""

    folder: Path
    forked_at: int | None


def _chain(run: Path, moved: _Moved) -> list[_Member]:
    """A run's ancestors, the oldest first, and the run itself."""
    newest = (list_checkpoints(run) or [run])[-1]
    found: list[_Member] = []
    forked_at = None
    for ancestor in recorded_ancestors(newest):
        found.append(_Member(moved.place_of(ancestor, run), forked_at))
        forked_at = _step(ancestor)
    return [*found, _Member(run, forked_at)]


class _Moved:
    """Finds ancestors that were moved together with the runs that were forked from them, by their weights."""

    def __init__(self) -> None:
        self._by_weights: dict[Path, dict[str, Path]] = {}

    def place_of(self, ancestor: Mapping[str, Any], run: Path) -> Path:
        """Where the run of an ancestor lies; where it was if it is not beside `run` either."""
        folder = _run_of(ancestor["checkpoint"])
        if folder.exists():
            return folder
        there = self._beside(run.parent).get(str(ancestor.get("weights")))
        # Its checkpoint may have been deleted, as older ones are.
        namesake = run.parent / folder.name
        return there or (namesake if namesake != run and _is_called(namesake, ancestor.get("run")) else folder)

    def _beside(self, folder: Path) -> dict[str, Path]:
        """The runs in a folder by the digests of weights that they hold."""
        if folder not in self._by_weights:
            self._by_weights[folder] = {
                str(facts["weights"]): run
                for run in sorted(folder.iterdir())
                for checkpoint in list_checkpoints(run)
                if "weights" in (facts := _facts(checkpoint))
            }
        return self._by_weights[folder]


def _is_called(run: Path, name: object) -> bool:
    with suppress(CheckpointError):
        return any(read_notes(checkpoint).get("recipe") == name for checkpoint in list_checkpoints(run)[-1:])
    return False


def recorded_ancestors(checkpoint: Path) -> list[dict[str, Any]]:
    """What `ancestors_of` recorded; nothing where the state cannot be read, which is for those to say who need it."""
    recorded = _facts(checkpoint).get("ancestors")
    if isinstance(recorded, list) and all(
        isinstance(a, dict) and isinstance(a.get("checkpoint"), str) for a in recorded
    ):
        return recorded
    return []


def _facts(checkpoint: Path) -> dict[str, Any]:
    with suppress(CheckpointError):
        return read_facts(checkpoint)
    return {}


def _run_of(checkpoint: str) -> Path:
    """The run that a checkpoint lies in; the checkpoint itself where it is on its own."""
    place = Path(checkpoint)
    return place.parents[1] if place.parent.name == "checkpoints" else place


def _step(ancestor: Mapping[str, Any]) -> int | None:
    step = ancestor.get("step")
    return step if type(step) is int and 0 <= step < MOST_STEPS else None


def _state_of(run: Path) -> str:
    if not list_checkpoints(run):
        return "no longer here"
    try:
        status = run_status(run)
        return f"step {status['step']:,} of {status['steps']:,}, {status['status']}"
    except (CheckpointError, KeyError, ValueError, TypeError):
        return "its state cannot be read"
