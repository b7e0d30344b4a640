"""The biographies of runs on a page: heads, matrices, loss by position and samples over the steps of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from time import time

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st

from apps.parts import address, exports
from apps.parts.biography_files import FEWEST, BiographyFile, biographies_of, changes_of, written_at
from apps.parts.biography_tables import (
    changing_most,
    describe,
    head_name,
    head_names,
    heads_cell,
    heads_table,
    labels_table,
    loss_cell,
    loss_table,
    matrices_cell,
    matrix_table,
    samples_cell,
    samples_table,
    score_names,
    thinned,
)
from apps.parts.heads import Head
from shardscope.colors import MARK, OKABE_ITO
from shardscope.train.biography import MATRIX_NUMBERS, Biography
from shardscope.train.changes import find_changes

LOOK_EVERY = 2.0  # seconds
LIVE = 1800.0  # seconds after its last probe in which a biography is looked at again
MOST_COLUMNS = 40  # probes of a heat map
MOST_PROFILES = 5  # probes whose loss by position is drawn
FOLLOWED = 3  # heads, until some are chosen
LEAST_LOOPING = 0.2  # of the samples
WHOLE_STEPS = alt.Axis(tickMinStep=1, format="d")


def draw_biographies(runs: Iterable[tuple[str, Path]]) -> None:
    """Pick a biography and what of it is shown, and draw it."""
    files = {one.name: one for one in biographies_of(runs)}
    st.subheader("Biography", anchor=False)
    if not files:
        st.caption("No run here has one yet; `probe.every` in its recipe says how often it is written.")
        return
    address.one_of("biography", list(files))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        one = files[st.selectbox("Of", list(files), key="biography", width=340)]
        biography = one.read()
        if biography is None:
            st.caption("It cannot be read any more.")
            return
        scores = score_names(biography)
        address.one_of("score", scores)
        score = str(st.selectbox("Score of the heads", scores, key="score", width=240))
    if one.shipped:
        st.caption(_provenance(one))
    elif len(biography.steps) < FEWEST:
        st.caption(
            "This run was probed once so far. Probes take at most `probe.budget` of its time, and the one at its end "
            "only if there is room for it; a short run wants a larger budget."
        )
    heads = head_names(biography)
    st.session_state.followed = [name for name in st.session_state.followed if name in heads]
    chosen = st.multiselect("Heads to follow (without any: the three that change most)", list(heads), key="followed")
    _drawn_live(_draw_heads, one, score, tuple(chosen))
    exports.buttons(
        "biography of heads",
        f"shardscope-biography-{score.replace(' ', '-')}",
        lambda: heads_cell(one, score),
        lambda: heads_table(one.read() or biography, score),
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
        lambda: matrix_table(one.read() or biography, matrix, number),
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
        lambda: loss_table(one.read() or biography, source),
        picture=False,
    )
    _draw_samples(one, biography)


def _provenance(file: BiographyFile) -> str:
    note = file.folder / "README.md"
    words = note.read_text(encoding="utf-8").partition("\n\n")[2] if note.is_file() else ""
    return " ".join(words.split())


def _drawn_live(draw: Callable[..., None], file: BiographyFile, *what: object) -> None:
    """`draw(file, …)`, and again every two seconds while the biography grows or did a while ago."""
    grows = not file.shipped and time() - written_at(file.folder) / 1e9 < LIVE
    st.fragment(draw, run_every=LOOK_EVERY if grows else None)(file, *what)


def _draw_heads(file: BiographyFile, score: str, chosen: tuple[str, ...]) -> None:
    if (biography := file.read()) is None:
        return
    st.altair_chart(heat_map(biography, score), width="stretch")
    names = head_names(biography)
    followed = [names[name] for name in chosen if name in names] or changing_most(biography, score, FOLLOWED)
    draw_curves(file, biography, score, followed)


def _draw_matrices(file: BiographyFile, matrix: str, number: str) -> None:
    if (biography := file.read()) is None:
        return
    table = matrix_table(biography, matrix, number)
    chart = alt.Chart(table).mark_line(point=len(biography.steps) < 60)
    st.altair_chart(
        chart.encode(
            x=alt.X("step:Q", axis=WHOLE_STEPS),
            y=alt.Y("value:Q", title=number, scale=alt.Scale(zero=False)),
            color=alt.Color("layer:O", scale=alt.Scale(scheme="viridis"), title="layer"),
            tooltip=["matrix", "step", alt.Tooltip("value:Q", format=".5g")],
        ).properties(height=240),
        width="stretch",
    )


def _draw_loss(file: BiographyFile, source: str) -> None:
    if (biography := file.read()) is None or source not in biography.loss:
        return
    left, right = st.columns(2, gap="medium")
    left.altair_chart(_loss_over_steps(biography, source), width="stretch")
    right.altair_chart(_loss_profiles(biography, source), width="stretch")


# ------------------------------------------------------------------------------------------------ heads


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
            x=alt.X("step:Q", title="step", axis=WHOLE_STEPS, scale=alt.Scale(nice=False)),
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


def draw_curves(file: BiographyFile, biography: Biography, score: str, followed: Sequence[Head]) -> None:
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
        for change in changes_of(file, score, head):
            marks.append({"step": change.first, "from": change.last, "head": name, "change": str(change)})
            words.append(f"{name} {change}")
    if not rows:
        st.caption("Nothing of this kind has been probed yet.")
        return
    st.altair_chart(_curves(pd.DataFrame(rows), score, pd.DataFrame(marks)), width="stretch")
    found = "; ".join(words) if words else "no curve goes from one level to another"
    st.caption(f"{describe(biography, score)} Changes (orange): {found}.")


def _curves(table: pd.DataFrame, title: str, marks: pd.DataFrame) -> alt.LayerChart:
    lines = (
        alt.Chart(table)
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q", axis=WHOLE_STEPS, scale=alt.Scale(nice=False)),
            y=alt.Y("value:Q", title=title),
            color=alt.Color(f"{table.columns[0]}:N", title=None, scale=alt.Scale(range=list(OKABE_ITO))),
            tooltip=[table.columns[0], "step", alt.Tooltip("value:Q", format=".4f")],
        )
    )
    if marks.empty:
        return alt.LayerChart(layer=[lines], height=260)
    spans = (
        alt.Chart(marks)
        .mark_rect(opacity=0.25, color=MARK)
        .encode(x=alt.X("from:Q", title="step"), x2="step:Q", tooltip="change:N")
    )
    rules = alt.Chart(marks).mark_rule(color=MARK, strokeWidth=2).encode(x="step:Q", tooltip="change:N")
    return alt.LayerChart(layer=[spans, lines, rules], height=260)


# --------------------------------------------------------------------------------------- matrices and loss


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
            x=alt.X("step:Q", axis=WHOLE_STEPS),
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


def _draw_samples(file: BiographyFile, biography: Biography) -> None:
    st.markdown("**Samples by step**")
    there = [int(step) for step, samples in zip(biography.steps, biography.samples, strict=True) if samples]
    if not there:
        st.caption("Its probes hold no samples; `probe.samples` in its recipe makes them do so.")
        return
    table = labels_table(biography)
    changes = find_changes(biography.steps, biography.share_of("loop"), LEAST_LOOPING)
    marks = [{"step": change.first, "from": change.last, "change": str(change)} for change in changes]
    st.altair_chart(_curves(table, "share of samples", pd.DataFrame(marks)), width="stretch")
    st.caption(f"Looping {'; '.join(map(str, changes))} (orange)." if changes else "Looping neither rises nor falls.")
    if st.session_state.probe not in there:
        st.session_state.probe = there[-1]
    step = int(st.select_slider("Step", there, key="probe")) if len(there) > 1 else there[0]
    st.dataframe(samples_table(biography, step), hide_index=True, height="content")
    exports.buttons(
        "samples of a step",
        f"shardscope-samples-{step}",
        lambda: samples_cell(file, step),
        lambda: samples_table(biography, step),
        picture=False,
    )
