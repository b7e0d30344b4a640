"""Where a checkpoint comes from: the runs before it, and the weights, data and code that made it."""

from __future__ import annotations

import hashlib
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
from shardscope.checkpoint import STATE, CheckpointError, list_checkpoints, read_facts, read_notes
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


def family_tree(run: Path) -> str:
    """The runs that a run descends from, and all that were forked from one of them, as indented text.

    Empty where it has no relatives. Forks are looked for beside the run and beside each of its ancestors.
    """
    run = run.resolve()
    chain = _chain(run)
    nearby = {folder for member in chain if member.folder.parent.is_dir() for folder in member.folder.parent.iterdir()}
    chains = [chain] + [_chain(folder) for folder in sorted(nearby) if folder != run and list_checkpoints(folder)]
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


def _chain(run: Path) -> list[_Member]:
    """A run's ancestors, the oldest first, and the run itself."""
    newest = (list_checkpoints(run) or [run])[-1]
    found: list[_Member] = []
    forked_at = None
    for ancestor in recorded_ancestors(newest):
        place = Path(ancestor["checkpoint"])
        found.append(_Member(place.parents[1] if place.parent.name == "checkpoints" else place, forked_at))
        forked_at = ancestor["step"] if isinstance(ancestor.get("step"), int) else None
    return [*found, _Member(run, forked_at)]


def recorded_ancestors(checkpoint: Path) -> list[dict[str, Any]]:
    """What `ancestors_of` recorded; nothing where the state cannot be read, which is for those to say who need it."""
    with suppress(CheckpointError):
        recorded = read_facts(checkpoint).get("ancestors")
        if isinstance(recorded, list) and all(
            isinstance(a, dict) and isinstance(a.get("checkpoint"), str) for a in recorded
        ):
            return recorded
    return []


def _state_of(run: Path) -> str:
    if not list_checkpoints(run):
        return "no longer here"
    try:
        status = run_status(run)
        return f"step {status['step']:,} of {status['steps']:,}, {status['status']}"
    except (CheckpointError, KeyError, ValueError, TypeError):
        return "its state cannot be read"
