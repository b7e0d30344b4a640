"""Runs side by side: what each was, how far it came, and its held-out bits per byte, from what its folder says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shardscope.checkpoint import CheckpointError, list_checkpoints, read_facts, read_newest, resolve_checkpoint
from shardscope.evals.report import scores_in
from shardscope.train.health import troubles_of
from shardscope.train.lineage import forks_before
from shardscope.train.metrics import read_metrics
from shardscope.visible import on_one_line


def side_by_side(runs: Sequence[str | Path]) -> str:
    """A table with a column for each run, as text. Raises CheckpointError for what is no run or was never evaluated."""
    names = [Path(run).resolve().name for run in runs]
    columns = [
        {"run": on_one_line(str(run) if names.count(name) > 1 else name), **_column(Path(run))}
        for run, name in zip(runs, names, strict=True)
    ]
    rows = list(dict.fromkeys(name for column in columns for name in column))
    table = [[name, *(column.get(name, "–") for column in columns)] for name in rows]
    widths = [max(len(row[place]) for row in table) for place in range(len(columns) + 1)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in table
    )


def _column(run: Path) -> dict[str, str]:
    evaluations = read_metrics(run, "eval")
    if not list_checkpoints(run):
        raise CheckpointError(f"{run}: not a run with a checkpoint; name folders like runs/shard-pico-anneal")
    if not evaluations:
        raise CheckpointError(f"{run}: its metrics.jsonl holds no evaluation; train at least train.eval_every steps")
    state = read_newest(lambda: resolve_checkpoint(run), read_facts)
    troubles = [f"{trouble.kind} at {trouble.step:,}" for trouble, _ in troubles_of(read_metrics(run, "event"))]
    scores = scores_in(evaluations[-1], run)
    column = {
        "step": f"{state['step']:,} of {state.get('steps', state['step']):,}",
        "state": str(state.get("status", "unknown")),
        "forked from": str(["–", *forks_before(run)][-1]),
        "tokens": f"{state['tokens']:,}" if "tokens" in state else "–",
        "seconds": f"{state['seconds']:,.0f}" if "seconds" in state else "–",
        "trouble": ", ".join(troubles) or "–",
        "evaluated at step": f"{evaluations[-1]['step']:,}",
        **{f"bits/byte, {name}": f"{found['bits_per_byte']:.4f}" for name, found in scores.items()},
    }
    return {on_one_line(name): on_one_line(cell) for name, cell in column.items()}
