"""The biography of a run: what every head and matrix was at each probe step, in biography.jsonl beside metrics.jsonl.

A line is one JSON object of `kind` "probe":

    step, time, seconds    when, and what the probe took; `sample_seconds` of it for samples
    window, kinds          positions that a sliding layer sees, and the kind of each layer
    heads                  score: [layer][head]; see TEXT_SCORES, and `induction N` at a lag of N tokens
    matrices               name: [smallest and largest singular value, stable rank, size of the last update]
    positions              edges of the stretches of queries that the losses are of; the window's edge is one of them
    loss                   source: {"mean": …, "by_position": [one a stretch]}, in nats a token, of held-out text
    samples                [{prompt, output, failure}], labelled; absent where the budget has no room for them

The size of an update is the Frobenius norm of what the step changed; null where a run was started again at that step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from shardscope.config import LayerKind
from shardscope.train.metrics import BIOGRAPHY, read_metrics

KIND = "probe"
MATRIX_NUMBERS = ("smallest singular value", "largest singular value", "stable rank", "size of the last update")


@dataclass(frozen=True, eq=False)
class Biography:
    """What was written of a run, as arrays over its probes; NaN where a line does not say."""

    steps: Int[np.ndarray, "probe"]
    window: int
    kinds: tuple[LayerKind, ...]
    heads: dict[str, Float[np.ndarray, "probe layer head"]]
    matrices: dict[str, Float[np.ndarray, "probe four"]]  # MATRIX_NUMBERS
    edges: Int[np.ndarray, "edge"]
    mean_loss: dict[str, Float[np.ndarray, "probe"]]
    loss: dict[str, Float[np.ndarray, "probe bin"]]
    samples: list[list[dict[str, str]]]

    @property
    def n_heads(self) -> int:
        return next(iter(self.heads.values())).shape[2]

    def past_and_within(self, source: str) -> tuple[Float[np.ndarray, "probe"], Float[np.ndarray, "probe"]]:
        """The loss of queries that have left the window behind them, and of those that have not; means over stretches.

        Every position counts the same, so the long stretches weigh most.
        """
        sizes, past = np.diff(self.edges), self.edges[:-1] >= self.window
        losses = self.loss[source]
        within = (losses[:, ~past] * sizes[~past]).sum(axis=1) / sizes[~past].sum()
        beyond = (losses[:, past] * sizes[past]).sum(axis=1) / max(sizes[past].sum(), 1)
        return (beyond if past.any() else np.full(len(losses), np.nan)), within

    def share_of(self, failure: str) -> Float[np.ndarray, "probe"]:
        """The share of each probe's samples with this label; NaN where a probe has none."""
        labels = [[sample["failure"] for sample in samples] for samples in self.samples]
        return np.array([found.count(failure) / len(found) if found else np.nan for found in labels])


def read_biography(run: Path) -> Biography | None:
    """The biography in a run's folder; None where there is none yet.

    Lines that are no probe, or of another model than the last line, are left out. Raises ReadError for a file that is
    none.
    """
    return biography_of(read_metrics(run, KIND, BIOGRAPHY))


def biography_of(lines: Sequence[Mapping[str, Any]]) -> Biography | None:
    """From lines of biography.jsonl; see `read_biography`."""
    probes = [probe for line in lines if (probe := _probe(line)) is not None]
    probes = [probe for probe in probes if probe.layout == probes[-1].layout]
    if not probes:
        return None
    last, every = probes[-1], {probe.step: probe for probe in probes}  # of two lines of a step the later
    probes = [every[step] for step in sorted(every)]
    return Biography(
        steps=np.array([probe.step for probe in probes]),
        window=last.window,
        kinds=last.kinds,
        heads=_stacked([probe.heads for probe in probes]),
        matrices=_stacked([probe.matrices for probe in probes]),
        edges=last.edges,
        mean_loss={name: rows[:, 0] for name, rows in _stacked([probe.mean_loss for probe in probes]).items()},
        loss=_stacked([probe.loss for probe in probes]),
        samples=[probe.samples for probe in probes],
    )


@dataclass(frozen=True, eq=False)
class _Probe:
    """A line, checked."""

    step: int
    window: int
    kinds: tuple[LayerKind, ...]
    heads: dict[str, np.ndarray]
    matrices: dict[str, np.ndarray]
    edges: np.ndarray
    mean_loss: dict[str, np.ndarray]
    loss: dict[str, np.ndarray]
    samples: list[dict[str, str]]

    @property
    def layout(self) -> tuple[Any, ...]:
        heads = next(iter(self.heads.values())).shape
        return self.window, self.kinds, heads, tuple(self.edges)


def _probe(line: Mapping[str, Any]) -> _Probe | None:
    """What a line says; None where it is none of ours."""
    try:
        kinds, window, edges = line["kinds"], line["window"], _numbers(line["positions"], 1)
        heads = {str(name): _numbers(scores, 2) for name, scores in line["heads"].items()}
        matrices = {str(name): _numbers(numbers, 1) for name, numbers in line["matrices"].items()}
        loss = {str(name): _numbers(found["by_position"], 1) for name, found in line["loss"].items()}
        means = {str(name): _numbers([found["mean"]], 1) for name, found in line["loss"].items()}
        samples = [
            {key: str(sample[key]) for key in ("prompt", "output", "failure")} for sample in line.get("samples") or []
        ]
        shapes = {scores.shape for scores in heads.values()}
        whole = (
            isinstance(window, int)
            and window >= 1
            and len(shapes) == 1
            and next(iter(shapes))[0] == len(kinds) > 0
            and next(iter(shapes))[1] > 0
            and all(kind in ("sliding", "global") for kind in kinds)
            and len(edges) >= 2
            and len(matrices) > 0
            and len(loss) > 0
            and bool((np.diff(edges) > 0).all())
            and all(len(numbers) == len(MATRIX_NUMBERS) for numbers in matrices.values())
            and all(len(losses) == len(edges) - 1 for losses in loss.values())
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError):
        return None
    if not whole or abs(edges).max() > 2**40:
        return None
    return _Probe(line["step"], window, tuple(kinds), heads, matrices, edges.astype(int), means, loss, samples)


def _numbers(value: Any, ndim: int) -> np.ndarray:
    """As floats, null being NaN. Raises ValueError for anything else than `ndim`-fold lists of numbers."""
    found = np.array(value, dtype=float)
    if not isinstance(value, list) or found.ndim != ndim or isinstance(np.array(value).flat[0], str):
        raise ValueError("no list of numbers")
    return found


def _stacked(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """For each name that any row has, all rows; NaN where a row does not have it."""
    like = {name: values for row in rows for name, values in row.items()}
    return {
        name: np.stack([row.get(name, np.full_like(values, np.nan)) for row in rows]) for name, values in like.items()
    }


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
