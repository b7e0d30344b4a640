"""What `shardscope info` says of the run that a checkpoint belongs to: where it stands, its trouble, its relatives."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from shardscope.checkpoint import STATE, CheckpointError, list_checkpoints, read_newest, resolve_checkpoint
from shardscope.data import Overlap
from shardscope.files import read_json
from shardscope.train.health import troubles_of
from shardscope.train.lineage import family_tree
from shardscope.train.metrics import read_metrics
from shardscope.train.run import times_back
from shardscope.visible import on_one_line, visible


def describe_run(path: Path) -> str:
    """About a run, or the run that a checkpoint lies in, as text; empty for a checkpoint that no run made."""
    path = path.resolve()
    run = path.parents[1] if path.parent.name == "checkpoints" else path
    if not list_checkpoints(run):
        return ""
    facts = read_newest(lambda: resolve_checkpoint(path), _recorded)
    facts += [("overlap", text) for text in _overlaps(read_metrics(run, "event"))]
    facts += [
        ("trouble", f"{trouble}{'' if over is None else f'; over at step {over:,}'}")
        for trouble, over in troubles_of(read_metrics(run, "event"))
    ]
    facts += [
        ("went back", f"{back['trouble']}; the rate is times {back['rate_scale']:g} since") for back in times_back(run)
    ]
    text = "\n".join(f"{name:14} {on_one_line(str(value))}" for name, value in facts)
    family = visible(family_tree(run))
    return "\n".join(part for part in (text, family and f"family\n{_indented(family)}") if part)


def _recorded(checkpoint: Path) -> list[tuple[str, Any]]:
    """What the checkpoint says of how it came about; older ones say less."""
    state = read_json(checkpoint / STATE, CheckpointError) if (checkpoint / STATE).exists() else {}
    found: list[tuple[str, Any]] = []
    if isinstance(rate := state.get("learning_rate"), float):
        found.append(("learning rate", f"{rate:.3g}"))
    if isinstance(position := state.get("data_position"), dict):
        found.append(("data position", ", ".join(f"{n:,} of {name}" for name, n in position.items()) + " (sequences)"))
    if isinstance(parent := state.get("parent"), dict):
        found.append(("parent", f"{parent.get('checkpoint')}, weights {str(parent.get('weights'))[:12]}"))
    for key in ("weights", "tokenizer"):
        if isinstance(digest := state.get(key), str):
            found.append((key, f"sha256 {digest[:12]}"))
    if isinstance(code := state.get("code"), str):
        found.append(("code", code))
    return found


def _overlaps(events: list[dict[str, Any]]) -> list[str]:
    """What of the training text repeats held-out or scored text, by source, as the run's last start found it."""
    starts = [
        line["overlap"] for line in events if line.get("event") == "start" and isinstance(line.get("overlap"), dict)
    ]
    found = []
    for name, values in starts[-1].items() if starts else ():
        with suppress(TypeError, ValueError, AttributeError):  # a log that says something else
            if (overlap := Overlap(**values)).documents:
                found.append(f"{name}: {overlap}; {'left out' if overlap.dropped else 'trained on'}")
    return found


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
