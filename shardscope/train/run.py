"""The folder of a run: its recipe, its checkpoints, and the rules of starting again and forking.

A run is `unfinished`, `paused early` (a signal or its time budget ended it) or `finished`; its newest checkpoint says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shardscope.checkpoint import (
    STATE,
    CheckpointError,
    list_checkpoints,
    resolve_checkpoint,
)
from shardscope.config import ConfigError, Recipe
from shardscope.files import is_partial, locked, read_json, remove_folder, remove_partial, write_json

RECIPE = "recipe.json"
LOCK = ".lock"
# Fields that may differ when a run is started again: where and how it computes, not what.
FREE = ("name", "run_dir", "start_from", "data.cache_dir", "train.")
# …except the batch, which decides the losses.
BOUND = ("train.batch_size",)


@contextmanager
def claimed_folder(recipe: Recipe) -> Iterator[Path]:
    """The run's folder, made or found, with its recipe in it, and nobody else's within this context.

    Raises ConfigError when it belongs to a run with another recipe, when another process is training in it, and when it
    cannot be written.
    """
    folder = recipe.folder
    stored = folder / RECIPE
    # Written as JSON and read back, so that tuples and lists compare as equal.
    now = json.loads(json.dumps(recipe.to_dict()))
    if stored.exists():
        for key, before, after in _differences(read_json(stored, CheckpointError), now):
            if key in BOUND or not key.startswith(FREE):
                raise ConfigError(
                    f"{folder} holds a run with {key}={before!r}, this recipe says {after!r}; "
                    f"give --run_dir another folder, or delete {folder}"
                )
    elif folder.is_dir() and any(item.name != LOCK and not is_partial(item.name) for item in folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and not a run ({RECIPE} is missing); give --run_dir another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror}); give --run_dir another folder") from None
    with lock:
        if not locked(lock.fileno()):
            raise ConfigError(f"{folder}: another process is training there; wait for it, or give --run_dir another")
        for place in (folder, folder / "checkpoints"):
            remove_partial(place)  # what a killed process was writing
        write_json(stored, now)
        yield folder


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint that a run is resumed from; None if it has none yet."""
    resumable = _with_state(run)
    return resumable[-1] if resumable else None


def _with_state(run: Path) -> list[Path]:
    return [checkpoint for checkpoint in list_checkpoints(run) if (checkpoint / STATE).exists()]


def find_stable(start_from: str) -> Path:
    """The checkpoint an anneal forks from: the one named, or a run's newest of the stable phase."""
    path = Path(start_from)
    checkpoints = _with_state(path)
    if not checkpoints:
        return resolve_checkpoint(path)
    stable = [c for c in checkpoints if read_json(c / STATE, CheckpointError).get("phase") == "stable"]
    if not stable:
        raise CheckpointError(
            f"{path} has no checkpoint of the stable phase, its newest is at step "
            f"{int(checkpoints[-1].name[5:])} in {read_json(checkpoints[-1] / STATE, CheckpointError).get('phase')}; "
            "name a checkpoint folder itself to start from it all the same"
        )
    return stable[-1]


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints; the newest of the stable phase stays, anneals fork from it."""
    if keep == 0:
        return
    checkpoints = list_checkpoints(run)
    stable = [c for c in _with_state(run) if read_json(c / STATE, CheckpointError).get("phase") == "stable"]
    kept = {*checkpoints[-keep:], *stable[-1:]}
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            remove_folder(checkpoint)


def run_status(run: Path) -> dict[str, Any]:
    """What the newest checkpoint says of the run: step, steps, phase, status, and why it ended, if it did."""
    newest = newest_checkpoint(run)
    if newest is None:
        return {"status": "no checkpoint yet"}
    facts = read_json(newest / STATE, CheckpointError)
    return {key: facts.get(key) for key in ("step", "steps", "phase", "status", "reason")}


def _differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    found = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append((prefix + key, old, new))
    return found
