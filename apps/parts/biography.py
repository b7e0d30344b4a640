"""The biographies of runs on a page: heads, matrices, loss by position and samples over the steps of a training.

Those of the runs that the explorer was started with are read anew while they grow. Small ones come with Shardscope and
are offered too, so that there is something to look at before anything was trained here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import time

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st

from apps.parts import address, exports
from apps.parts.checkpoints import FAILURES, below, real
from apps.parts.heads import Head
from shardscope.checkpoint import MOST_STEPS
from shardscope.colors import MARK, OKABE_ITO
from shardscope.microscope import SCORES
from shardscope.resources import resource
from shardscope.train.biography import KIND, MATRIX_NUMBERS, Biography, biography_of
from shardscope.train.changes import Change, find_changes, least_change
from shardscope.train.metrics import BIOGRAPHY, read_metrics
from shardscope.visible import visible

LOOK_EVERY = 2.0  # seconds
LIVE = 1800.0  # seconds after its last probe in which a biography is looked at again
MOST_COLUMNS = 40  # probes of a heat map
MOST_PROFILES = 5  # probes whose loss by position is drawn
FOLLOWED = 3  # heads, until some are chosen
LEAST_LOOPING = 0.2  # of the samples


@dataclass(frozen=True)
class Told:
    """A biography: the run it is of, and where it lies; `ours` if it came with Shardscope."""

    name: str
    folder: Path
    ours: bool = False

    def read(self) -> Biography | None:
        """As it is now; None where there is nothing to read."""
        return _read(os.fsencode(self.folder), _written_at(self.folder))


def biographies_of(runs: Iterable[tuple[str, Path]]) -> list[Told]:
    """Those of the runs, by name and folder; then those that came with Shardscope."""
    own = [Told(name, folder) for name, folder in runs if os.path.lexists(folder / BIOGRAPHY)]
    shipped = below(real(resource("apps") / "biographies"), (BIOGRAPHY,))
    shipped.sort(key=lambda path: "anneal" in path.name)  # as they follow each other
    return [told for told in own if told.read()] + [Told(f"{path.name} (shipped)", path, True) for path in shipped]


@st.cache_resource(max_entries=16, show_spinner=False)
def _read(folder: bytes, changed: int) -> Biography | None:
    try:
        lines = read_metrics(Path(os.fsdecode(folder)), KIND, BIOGRAPHY)
    except FAILURES:  # a pipe or a folder in its place
        return None
    return biography_of([line for line in lines if 0 <= line["step"] < MOST_STEPS])


def _written_at(folder: Path) -> int:
    try:
        return (folder / BIOGRAPHY).stat().st_mtime_ns
    except OSError:
        return 0


# ------------------------------------------------------------------------------------------------ the section


def draw_biographies(runs: Iterable[tuple[str, Path]]) -> None:
    """Pick a biography and what of it is shown, and draw it."""
    told = {one.name: one for one in biographies_of(runs)}
    st.subheader("Biography", anchor=False)
    if not told:
        st.caption("No run here has one yet; `probe.every` in its recipe says how often it is written.")
        return
    address.one_of("biography", list(told))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        one = told[st.selectbox("Of", list(told), key="biography", width=340)]
        biography = one.read()
        if biography is None:
            st.caption("It cannot be read any more.")
            return
        scores = score_names(biography)
        address.one_of("score", scores)
        score = str(st.selectbox("Score of the heads", scores, key="score", width=240))
    if one.ours:
        st.caption(_provenance(one))
    heads = head_names(biography)
    st.session_state.followed = [name for name in st.session_state.followed if name in heads]
    chosen = st.multiselect("Heads to follow (without any: the three that change most)", list(heads), key="followed")
    _drawn_live(_draw_heads, one, score, tuple(chosen))
    exports.buttons(
        "biography of heads",
        f"shardscope-biography-{score.replace(' ', '-')}",
        lambda: heads_cell(one, score),
        lambda: heads_table(_now(one), score),
        picture=False,
    )
    st.markdown("**Matrices of Muon**")
    kinds = sorted({name.rpartition(".")[2] for name in biography.matrices})
    with st.container(horizontal=True, vertical_alignment="bottom"):
        address.one_of("matrix", kinds)
        matrix = str(st.selectbox("Matrix", kinds, key="matrix", width=160))
        address.one_of("number", list(MATRIX_NUMBERS))
        number = str(st.selectbox("Number", list(MATRIX_NUMBERS), key="number", width=280))
    _drawn_live(_draw_matrices, one, matrix, number)
    exports.buttons(
        "biography of matrices",
        f"shardscope-biography-{matrix}",
        lambda: matrices_cell(one, matrix, number),
        lambda: matrix_table(_now(one), matrix, number),
        picture=False,
    )
    st.markdown("**Loss by position**")
    sources = list(biography.loss)
    address.one_of("source", sources)
    source = str(st.selectbox("Held-out text of", sources, key="source", width=240))
    _drawn_live(_draw_loss, one, source)
    exports.buttons(
        "biography of the loss",
        "shardscope-biography-loss",
        lambda: loss_cell(one, source),
        lambda: loss_table(_now(one), source),
        picture=False,
    )
    _draw_samples(one, biography)


def _now(told: Told) -> Biography:
    found = told.read()
    if found is None:
        raise OSError(f"{told.folder}: the biography is gone")
    return found


def _provenance(told: Told) -> str:
    note = told.folder / "README.md"
    words = note.read_text(encoding="utf-8").partition("\n\n")[2] if note.is_file() else ""
    return " ".join(words.split())


def _drawn_live(draw: Callable[..., None], told: Told, *what: object) -> None:
    """`draw(told, …)`, and again every two seconds while the biography grows or did a while ago."""
    grows = not told.ours and time() - _written_at(told.folder) / 1e9 < LIVE
    st.fragment(draw, run_every=LOOK_EVERY if grows else None)(told, *what)


def _draw_heads(told: Told, score: str, chosen: tuple[str, ...]) -> None:
    if (biography := told.read()) is None:
        return
    st.altair_chart(heat_map(biography, score), width="stretch")
    names = head_names(biography)
    followed = [names[name] for name in chosen if name in names] or changing_most(biography, score, FOLLOWED)
    draw_curves(told, biography, score, followed)


def _draw_matrices(told: Told, matrix: str, number: str) -> None:
    if (biography := told.read()) is None:
        return
    table = matrix_table(biography, matrix, number)
    chart = alt.Chart(table).mark_line(point=len(biography.steps) < 60)
    st.altair_chart(
        chart.encode(
            x=alt.X("step:Q"),
            y=alt.Y("value:Q", title=number, scale=alt.Scale(zero=False)),
            color=alt.Color("layer:O", scale=alt.Scale(scheme="viridis"), title="layer"),
            tooltip=["matrix", "step", alt.Tooltip("value:Q", format=".5g")],
        ).properties(height=240),
        width="stretch",
    )


def _draw_loss(told: Told, source: str) -> None:
    if (biography := told.read()) is None or source not in biography.loss:
        return
    left, right = st.columns(2, gap="medium")
    left.altair_chart(_loss_over_steps(biography, source), width="stretch")
    right.altair_chart(_loss_profiles(biography, source), width="stretch")


# ------------------------------------------------------------------------------------------------ heads


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


def heat_map(biography: Biography, score: str) -> alt.Chart:
    """Head × step: a square reaches to the next probe that is drawn; at most MOST_COLUMNS of them."""
    every = thinned(len(biography.steps), MOST_COLUMNS)
    starts = biography.steps[every]
    width = int(np.diff(starts).max()) if len(starts) > 1 else 1
    ends = [*starts[1:], starts[-1] + width]
    rows = [
        {"head": name, "step": int(start), "until": int(end), "value": float(biography.heads[score][place, *head])}
        for place, start, end in zip(every, starts, ends, strict=True)
        for name, head in head_names(biography).items()
    ]
    # Whole numbers of 32 bits and values of 32: a page sends what is drawn anew every two seconds.
    table = pd.DataFrame(rows).astype({"step": "int32", "until": "int32", "value": "float32", "head": "category"})
    names = list(head_names(biography))
    domain = alt.Undefined if score == "entropy" else [0, max(0.2, float(np.nanmax(biography.heads[score], initial=0)))]
    return (
        alt.Chart(table)
        .mark_rect()
        .encode(
            x=alt.X("step:Q", title="step", scale=alt.Scale(nice=False)),
            x2="until:Q",
            y=alt.Y(
                "head:N",
                sort=names,
                title=None,
                axis=alt.Axis(labelLimit=110, labelOverlap=len(names) > 60, labelBound=False, labelFlush=False),
            ),
            color=alt.Color("value:Q", title=score, scale=alt.Scale(scheme="viridis", domain=domain)),
            tooltip=["head", "step", alt.Tooltip("value:Q", format=".4f")],
        )
        .properties(height=max(120, min(18 * len(names), 1200)))
    )


def thinned(n: int, most: int) -> list[int]:
    """At most `most` of n places, evenly spread, the last among them."""
    return sorted({round(place) for place in np.linspace(0, n - 1, min(n, most))})


@st.cache_data(max_entries=256, show_spinner=False)
def _changes(folder: bytes, changed: int, score: str, head: Head) -> list[Change]:
    biography = _read(folder, changed)
    assert biography is not None
    return find_changes(biography.steps, biography.heads[score][:, *head], least_change(score))


def changes_of(told: Told, score: str, head: Head) -> list[Change]:
    return _changes(os.fsencode(told.folder), _written_at(told.folder), score, head)


def draw_curves(told: Told, biography: Biography, score: str, followed: Sequence[Head]) -> None:
    """The score of some heads over the steps, with a mark and a line of words for every change."""
    rows, marks, words = [], [], []
    for head in followed:
        name = head_name(biography, head)
        values = biography.heads[score][:, *head]
        rows += [
            {"head": name, "step": int(step), "value": float(value)}
            for step, value in zip(biography.steps, values, strict=True)
            if np.isfinite(value)
        ]
        for change in changes_of(told, score, head):
            marks.append({"step": change.first, "from": change.last, "head": name, "change": str(change)})
            words.append(f"{name} {change}")
    if not rows:
        st.caption("Nothing of this kind has been probed yet.")
        return
    st.altair_chart(_curves(pd.DataFrame(rows), score, pd.DataFrame(marks)), width="stretch")
    found = "; ".join(words) if words else "no curve goes from one level to another"
    st.caption(f"{describe(biography, score)} Changes (orange): {found}.")


def _curves(table: pd.DataFrame, title: str, marks: pd.DataFrame, height: int = 260) -> alt.LayerChart:
    lines = (
        alt.Chart(table)
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q", scale=alt.Scale(nice=False)),
            y=alt.Y("value:Q", title=title),
            color=alt.Color(f"{table.columns[0]}:N", title=None, scale=alt.Scale(range=list(OKABE_ITO))),
            tooltip=[table.columns[0], "step", alt.Tooltip("value:Q", format=".4f")],
        )
    )
    if marks.empty:
        return alt.LayerChart(layer=[lines], height=height)
    spans = (
        alt.Chart(marks)
        .mark_rect(opacity=0.25, color=MARK)
        .encode(x=alt.X("from:Q", title="step"), x2="step:Q", tooltip="change:N")
    )
    rules = alt.Chart(marks).mark_rule(color=MARK, strokeWidth=2).encode(x="step:Q", tooltip="change:N")
    return alt.LayerChart(layer=[spans, lines, rules], height=height)


# --------------------------------------------------------------------------------------- matrices and loss


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


def _loss_over_steps(biography: Biography, source: str) -> alt.Chart:
    past, within = biography.past_and_within(source)
    rows = [
        {"positions": words, "step": int(step), "value": float(value)}
        for words, values in (("within the window", within), ("past the window", past))
        for step, value in zip(biography.steps, values, strict=True)
        if np.isfinite(value)
    ]
    table = pd.DataFrame(rows, columns=["positions", "step", "value"])
    return (
        alt.Chart(table)
        .mark_line(point=len(biography.steps) < 60)
        .encode(
            x="step:Q",
            y=alt.Y("value:Q", title="nats a token", scale=alt.Scale(zero=False)),
            color=alt.Color(
                "positions:N", title=None, scale=alt.Scale(range=list(OKABE_ITO)), legend=alt.Legend(orient="bottom")
            ),
            tooltip=["positions", "step", alt.Tooltip("value:Q", format=".3f")],
        )
        .properties(height=260)
    )


def _loss_profiles(biography: Biography, source: str) -> alt.Chart:
    shown = set(biography.steps[thinned(len(biography.steps), MOST_PROFILES)])
    table = loss_table(biography, source)
    table = table[table["step"].isin(shown)].dropna()
    table["position"] = [_span(start, end) for start, end in zip(table["from"], table["to"], strict=True)]
    order = list(dict.fromkeys(table["position"]))
    return (
        alt.Chart(table)
        .mark_line(point=True)
        .encode(
            x=alt.X("position:N", sort=order, title=f"position (the window is {biography.window})"),
            y=alt.Y("loss:Q", title="nats a token", scale=alt.Scale(zero=False)),
            color=alt.Color(
                "step:O", scale=alt.Scale(scheme="viridis"), title="step", legend=alt.Legend(orient="bottom")
            ),
            tooltip=["step", "position", alt.Tooltip("loss:Q", format=".3f")],
        )
        .properties(height=260)
    )


def _span(start: int, end: int) -> str:
    return str(start) if start == end else f"{start}–{end}"


# ------------------------------------------------------------------------------------------------ samples


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


def _draw_samples(told: Told, biography: Biography) -> None:
    st.markdown("**Samples by step**")
    there = [int(step) for step, samples in zip(biography.steps, biography.samples, strict=True) if samples]
    if not there:
        st.caption("Its probes hold no samples; `probe.samples` in its recipe makes them do so.")
        return
    table = labels_table(biography)
    changes = find_changes(biography.steps, biography.share_of("loop"), LEAST_LOOPING)
    marks = [{"step": change.first, "from": change.last, "change": str(change)} for change in changes]
    st.altair_chart(_curves(table, "share of samples", pd.DataFrame(marks), height=200), width="stretch")
    st.caption(f"Looping {'; '.join(map(str, changes))} (orange)." if changes else "Looping neither rises nor falls.")
    if st.session_state.probe not in there:
        st.session_state.probe = there[-1]
    step = int(st.select_slider("Step", there, key="probe")) if len(there) > 1 else there[0]
    st.dataframe(samples_table(biography, step), hide_index=True, height="content")
    exports.buttons(
        "samples of a step",
        f"shardscope-samples-{step}",
        lambda: samples_cell(told, step),
        lambda: samples_table(biography, step),
        picture=False,
    )


# --------------------------------------------------------------------------------------------------- cells


def opening(told: Told) -> str:
    folder = str(exports.relative(told.folder))
    return (
        "from pathlib import Path\n\nfrom shardscope.train.biography import read_biography\n\n"
        f"biography = read_biography(Path({folder!r}))\n"
    )


def heads_cell(told: Told, score: str) -> str:
    """A cell that leaves the scores [probe, layer, head] in `scores` and the changes of each head in `changes`."""
    return opening(told) + (
        f"scores = biography.heads[{score!r}]  # [probe, layer, head], at biography.steps\n\n"
        "from shardscope.train.changes import find_changes, least_change\n\n"
        "changes = {\n"
        '    f"L{layer}H{head}": find_changes(biography.steps, scores[:, layer, head], '
        f"least_change({score!r}))\n"
        "    for layer in range(scores.shape[1]) for head in range(scores.shape[2])\n"
        "}\n"
        "{head: [str(change) for change in found] for head, found in changes.items() if found}\n"
    )


def matrices_cell(told: Told, matrix: str, number: str) -> str:
    return opening(told) + (
        f"number = {MATRIX_NUMBERS.index(number)}  # {number}\n"
        "numbers = {\n"
        "    name: values[:, number] for name, values in biography.matrices.items()\n"
        f'    if name.endswith(".{matrix}")\n'
        "}\n"
        "biography.steps, numbers\n"
    )


def loss_cell(told: Told, source: str) -> str:
    return opening(told) + (
        f"losses = biography.loss[{source!r}]  # [probe, stretch]: queries edges[i] … edges[i + 1] - 1\n"
        f"past, within = biography.past_and_within({source!r})\n"
        "biography.steps, biography.edges, losses\n"
    )


def samples_cell(told: Told, step: int) -> str:
    return opening(told) + f"samples = dict(zip(biography.steps.tolist(), biography.samples))[{step}]\nsamples\n"
