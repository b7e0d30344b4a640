"""The folder of a run: its recipe, its checkpoints, and the rules of starting again and forking.

A run is `unfinished`, `paused early` (a signal or its time budget ended it) or `finished`; its newest checkpoint says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shardscope.checkpoint import (
    CONFIG,
    OPTIMIZER,
    STATE,
    TOKENIZER,
    WEIGHTS,
    CheckpointError,
    list_checkpoints,
    read_facts,
    read_newest,
    read_notes,
    resolve_checkpoint,
)
from shardscope.config import ConfigError, Recipe, user_path
from shardscope.files import is_partial, locked, read_json, remove_folder, remove_partial, write_json
from shardscope.train.health import Trouble
from shardscope.train.schedule import phase_of

RECIPE, REWINDS = "recipe.json", "rewinds.json"
LOCK = ".lock"
# Fields that may differ when a run is started again: where and how it computes, not what.
FREE = ("name", "run_dir", "start_from", "data.cache_dir", "train.", "probe.")
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
    try:
        names = {item.name for item in folder.iterdir() if not is_partial(item.name)} if folder.is_dir() else set()
        if names - {LOCK} and RECIPE not in names:
            raise ConfigError(
                f"{folder} is not empty and not a run ({RECIPE} is missing); give --run_dir another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{folder}: cannot be written ({reason}); give --run_dir another folder") from None
    with lock:
        if not locked(lock.fileno()):
            raise ConfigError(f"{folder}: another process is training there; wait for it, or give --run_dir another")
        for place in (folder, folder / "checkpoints"):
            remove_partial(place)  # what a killed process was writing
        # Written as JSON and read back, so that tuples and lists compare as equal.
        now = json.loads(json.dumps(recipe.to_dict()))
        if stored.exists():
            _require_same_run(recipe, _differences(read_json(stored, CheckpointError), now))
        write_json(stored, now)
        yield folder


def _require_same_run(recipe: Recipe, differences: list[tuple[str, Any, Any]]) -> None:
    """A run goes on with the recipe that it began with, but for FREE fields, and steps added to its stable phase."""
    folder = recipe.folder
    bound = [d for d in differences if d[0] in BOUND or not d[0].startswith(FREE)]
    if not bound:
        return
    if not _numbered(folder):  # nothing was saved: it begins with this recipe, and with a tokenizer for it
        (folder / TOKENIZER).unlink(missing_ok=True)
        return
    key, before, after = bound[0]
    if key == "schedule.steps" and len(bound) == 1:
        if (where := _not_at_its_peak(recipe)) is None:
            return
        raise ConfigError(
            f"{folder} holds a run of schedule.steps={before}, this recipe says {after}; steps can be added while the "
            f"rate is at its peak, and {where}; give --run_dir another folder, or anneal from an earlier checkpoint"
        )
    raise ConfigError(
        f"{folder} holds a run with {key}={before!r}, this recipe says {after!r}; "
        f"give --run_dir another folder, or delete {folder}"
    )


def _not_at_its_peak(recipe: Recipe) -> str | None:
    """Why the steps done are not those of a run with this recipe's number of steps; None if they are."""
    newest = newest_checkpoint(recipe.folder)
    assert newest is not None, "asked of runs with a checkpoint"
    step, phase = step_of(newest), phase_at(newest)
    if phase != "stable":
        return f"step {step} is in its {phase}"
    if step > recipe.schedule.steps:
        return f"it is at step {step} already"
    if step < recipe.schedule.steps and phase_of(step, recipe.schedule) != "stable":
        return f"with these steps, step {step} is in the {phase_of(step, recipe.schedule)}"
    return None


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint that a run is resumed from; None if it has none yet.

    Raises CheckpointError where there are checkpoints but training can go on from none of them: a run never begins anew
    over what it holds.
    """
    resumable = [c for c in list_checkpoints(run) if (c / STATE).exists() and (c / OPTIMIZER).exists()]
    if not resumable and (numbered := _numbered(run)):
        lacking = [name for name in (WEIGHTS, CONFIG, OPTIMIZER, STATE) if not (numbered[-1] / name).exists()]
        raise CheckpointError(
            f"{numbered[-1]}: training cannot go on from it, {' and '.join(lacking)} is missing; put it back, or give "
            "--run_dir another folder to start over"
        )
    return resumable[-1] if resumable else None


def find_stable(start_from: str) -> Path:
    """The checkpoint an anneal forks from: the one named, a run's newest of the stable phase, or RUN@STEP."""
    path, step = _run_and_step(start_from)
    phases = _phases(path)
    if not phases:
        return resolve_checkpoint(path)
    stable = {step_of(c): c for c, phase in phases.items() if phase == "stable"}
    offered = f"; its stable phase has {', '.join(f'{path}@{kept}' for kept in stable)}" if stable else ""
    if step is not None and step not in stable:
        there = {step_of(c): phase for c, phase in phases.items()}
        found = f"is in its {there[step]}" if step in there else "is not there"
        raise CheckpointError(f"start_from={start_from!r}: the checkpoint of step {step} {found}{offered}")
    if not stable:
        newest, phase = list(phases.items())[-1]
        raise CheckpointError(
            f"{path} has no checkpoint of the stable phase, its newest is at step {step_of(newest)} in {phase}; "
            "name a checkpoint folder itself to start from it all the same"
        )
    return stable[max(stable) if step is None else step]


def may_yet_come(start_from: str) -> bool:
    """Whether a checkpoint that `find_stable` does not find may be saved later, by a run that has not come to it."""
    path, step = _run_and_step(start_from)
    phases = _phases(path)
    if not phases:
        return not path.exists() or (path / RECIPE).exists()
    newest, phase = list(phases.items())[-1]
    return phase == "warmup" or (phase == "stable" and step is not None and step > step_of(newest))


def _phases(run: Path) -> dict[Path, str | None]:
    """A run's checkpoints with a training state, oldest first, and the phase of each.

    Looked for again where the run, which may be training, has deleted one of them meanwhile.
    """
    while True:
        phases = {checkpoint: phase_at(checkpoint) for checkpoint in _with_state(run)}
        if all(checkpoint.exists() for checkpoint in phases):
            return phases


def _run_and_step(start_from: str) -> tuple[Path, int | None]:
    """RUN@STEP taken apart, unless a folder has that very name."""
    path = user_path(start_from, "start_from")
    run, at, step = start_from.rpartition("@")
    if path.exists() or not at:
        return path, None
    if not re.fullmatch(r"\d[\d_,]*", step):
        raise CheckpointError(f"start_from={start_from!r}: {step!r} is not a step; write RUN@STEP, as in {run}@1000")
    return user_path(run, "start_from"), int(re.sub("[_,]", "", step))


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints; the newest of the stable phase stays, anneals fork from it."""
    if keep == 0:
        return
    checkpoints = list_checkpoints(run)
    stable = [c for c in checkpoints if phase_at(c) == "stable"]
    kept = {*checkpoints[-keep:], *stable[-1:]}
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            remove_folder(checkpoint)


# A run that is in trouble again after so many lower rates needs a person.
MOST_TIMES_BACK = 3


def go_back(recipe: Recipe, trouble: Trouble) -> bool:
    """Let the run go on from its last checkpoint before a trouble began, at half the rate; False if it cannot.

    A run that has not learned since its first step goes back to its beginning; no other run gives up all it has.
    """
    if why_not_back(recipe, trouble):
        return False
    run, done = recipe.folder, times_back(recipe.folder)
    # Deleted first: a kill in between leaves a run that finds the same trouble again.
    for checkpoint in reversed(list_checkpoints(run)):
        if step_of(checkpoint) >= trouble.step:
            remove_folder(checkpoint)
    write_json(run / REWINDS, {"rewinds": [*done, {"trouble": str(trouble), "rate_scale": 0.5 ** (len(done) + 1)}]})
    return True


def why_not_back(recipe: Recipe, trouble: Trouble) -> str:
    """Why `go_back` cannot let the run go on from before a trouble; empty if it can."""
    if len(times_back(recipe.folder)) == MOST_TIMES_BACK:
        return f"it went back {MOST_TIMES_BACK} times already"
    if any(step_of(checkpoint) < trouble.step for checkpoint in list_checkpoints(recipe.folder)):
        return ""
    if trouble.kind != "plateau":
        return "no checkpoint is from before that"
    if recipe.phase == "anneal":
        try:
            find_stable(recipe.start_from)
        except ConfigError as error:
            return f"it would have to begin again, and cannot: {error}"
    return ""


def times_back(run: Path) -> list[dict[str, Any]]:
    """What `go_back` did so far: for each time the trouble, and what the rate is multiplied by since."""
    return list(read_json(run / REWINDS, CheckpointError)["rewinds"]) if (run / REWINDS).exists() else []


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def phase_at(checkpoint: Path) -> str | None:
    """The phase that a checkpoint ended in; None where it does not say, as when only its weights were kept."""
    for read in (lambda: read_facts(checkpoint), lambda: read_notes(checkpoint)):
        with suppress(CheckpointError):
            return str(read()["phase"]) if "phase" in read() else None
    return None


def _numbered(run: Path) -> list[Path]:
    """Everything that is called a checkpoint of a run, whole or not, oldest first."""
    return sorted((p for p in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", p.name)), key=step_of)


def run_status(run: Path) -> dict[str, Any]:
    """What the newest checkpoint says of the run: step, steps, phase, status, and why it ended, if it did."""
    if not _with_state(run):
        return {"status": "no checkpoint yet"}
    facts = read_newest(lambda: (_with_state(run) or [resolve_checkpoint(run)])[-1], read_facts)
    return {key: facts.get(key) for key in ("step", "steps", "phase", "status", "reason")}


def _with_state(run: Path) -> list[Path]:
    """The checkpoints of a run that hold a training state, oldest first; looked for again where one is deleted."""
    while True:
        checkpoints = list_checkpoints(run)
        found = [checkpoint for checkpoint in checkpoints if (checkpoint / STATE).exists()]
        if all(checkpoint.exists() for checkpoint in checkpoints):
            return found


def _differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    found = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append((prefix + key, old, new))
    return found
