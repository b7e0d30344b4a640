"""What a biography holds, as tables with a line for each number, and as notebook cells that give the same numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd

from apps.parts import exports
from apps.parts.biography_files import BiographyFile
from apps.parts.heads import Head
from shardscope.microscope import SCORES
from shardscope.train.biography import MATRIX_NUMBERS, Biography
from shardscope.visible import visible


def score_names(biography: Biography) -> list[str]:
    """Induction at its lags first, the near ones first; then what held-out text shows."""
    lags = sorted((name for name in biography.heads if _lag(name)), key=_lag)
    return [*lags, *(name for name in biography.heads if not _lag(name))]


def _lag(score: str) -> int:
    first, _, last = score.partition(" ")
    return int(last) if first == "induction" and last.isdecimal() and len(last) < 8 else 0


def describe(biography: Biography, score: str) -> str:
    """What a score is measured on, in a sentence."""
    if lag := _lag(score):
        seen = "within" if lag <= biography.window else "past"
        return (
            f"Mass on the token after an earlier occurrence {lag} tokens back, {seen} the window of {biography.window}."
        )
    return f"On held-out text: {SCORES[score]}." if score in SCORES else ""


def head_name(biography: Biography, head: Head) -> str:
    return f"L{head[0]}H{head[1]} {biography.kinds[head[0]]}"


def head_names(biography: Biography) -> dict[str, Head]:
    heads = [(layer, head) for layer in range(len(biography.kinds)) for head in range(biography.n_heads)]
    return {head_name(biography, head): head for head in heads}


def changing_most(biography: Biography, score: str, most: int) -> list[Head]:
    """The heads whose score covers the widest range over the probes."""
    values = np.nan_to_num(biography.heads[score])
    ranges = np.ptp(values, axis=0)
    order = np.argsort(-ranges, axis=None, kind="stable")[:most]
    return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, ranges.shape), strict=True)]


def heads_table(biography: Biography, score: str) -> pd.DataFrame:
    """step, layer, head, kind, value: every head at every probe."""
    values = biography.heads[score]
    place, layer, head = (index.ravel() for index in np.indices(values.shape))
    kinds = np.array(biography.kinds)[layer]
    columns = {"step": biography.steps[place], "layer": layer, "head": head, "kind": kinds, score: values.ravel()}
    return pd.DataFrame(columns)


def thinned(n: int, most: int) -> list[int]:
    """At most `most` of n places, evenly spread, the last among them."""
    return sorted({round(place) for place in np.linspace(0, n - 1, min(n, most))})


def matrix_table(biography: Biography, matrix: str, number: str) -> pd.DataFrame:
    """matrix, layer, step, value: one number of every matrix of this kind."""
    place = MATRIX_NUMBERS.index(number)
    rows = [
        {"matrix": visible(name), "layer": _layer(name), "step": int(step), "value": float(value)}
        for name, numbers in biography.matrices.items()
        if name.rpartition(".")[2] == matrix
        for step, value in zip(biography.steps, numbers[:, place], strict=True)
        if np.isfinite(value)
    ]
    return pd.DataFrame(rows, columns=["matrix", "layer", "step", "value"])


def _layer(name: str) -> int:
    """The layer in `blocks.3.attn.W_Q`."""
    word = [*name.split("."), ""][1]
    return int(word) if word.isdecimal() and len(word) < 6 else 0


def loss_table(biography: Biography, source: str) -> pd.DataFrame:
    """step, from, to, loss: the loss of the queries from … to of every probe."""
    rows = [
        {"step": int(step), "from": int(start), "to": int(stop) - 1, "loss": float(loss)}
        for step, losses in zip(biography.steps, biography.loss[source], strict=True)
        for (start, stop), loss in zip(pairwise(biography.edges), losses, strict=True)
    ]
    return pd.DataFrame(rows)


def samples_table(biography: Biography, step: int) -> pd.DataFrame:
    """label, prompt, continuation of one probe."""
    place = int(np.flatnonzero(biography.steps == step)[0])
    rows = [
        {"label": visible(s["failure"]), "prompt": visible(s["prompt"]), "continuation": visible(s["output"])}
        for s in biography.samples[place]
    ]
    return pd.DataFrame(rows, columns=["label", "prompt", "continuation"])


def labels_table(biography: Biography) -> pd.DataFrame:
    """label, step, value: the share of each label among the samples of each probe."""
    labels = dict.fromkeys(sample["failure"] for samples in biography.samples for sample in samples)
    rows = [
        {"label": visible(label), "step": int(step), "value": float(share)}
        for label in sorted({*labels, "loop"})
        for step, share in zip(biography.steps, biography.share_of(label), strict=True)
        if np.isfinite(share)
    ]
    return pd.DataFrame(rows)


# --------------------------------------------------------------------------------------------------- cells


def opening(file: BiographyFile) -> str:
    folder = str(exports.relative(file.folder))
    return (
        "from pathlib import Path\n\nfrom shardscope.train.biography import read_biography\n\n"
        f"biography = read_biography(Path({folder!r}))\n"
    )


def heads_cell(file: BiographyFile, score: str) -> str:
    """A cell that leaves the scores [probe, layer, head] in `scores` and the changes of each head in `changes`."""
    return opening(file) + (
        f"scores = biography.heads[{score!r}]  # [probe, layer, head], at biography.steps\n\n"
        "from shardscope.train.changes import find_changes, least_change\n\n"
        "changes = {\n"
        '    f"L{layer}H{head}": find_changes(biography.steps, scores[:, layer, head], '
        f"least_change({score!r}))\n"
        "    for layer in range(scores.shape[1]) for head in range(scores.shape[2])\n"
        "}\n"
        "{head: [str(change) for change in found] for head, found in changes.items() if found}\n"
    )


def matrices_cell(file: BiographyFile, matrix: str, number: str) -> str:
    return opening(file) + (
        f"number = {MATRIX_NUMBERS.index(number)}  # {number}\n"
        "numbers = {\n"
        "    name: values[:, number] for name, values in biography.matrices.items()\n"
        f"    if name.rpartition('.')[2] == {matrix!r}\n"
        "}\n"
        "biography.steps, numbers\n"
    )


def loss_cell(file: BiographyFile, source: str) -> str:
    return opening(file) + (
        f"losses = biography.loss[{source!r}]  # [probe, stretch]: queries edges[i] … edges[i + 1] - 1\n"
        f"past, within = biography.past_and_within({source!r})\n"
        "biography.steps, biography.edges, losses\n"
    )


def samples_cell(file: BiographyFile, step: int) -> str:
    return opening(file) + f"samples = dict(zip(biography.steps.tolist(), biography.samples))[{step}]\nsamples\n"
