"""Heads: find heads by what they do, compare all of them, and follow them through the training of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import altair as alt
import pandas as pd
import streamlit as st

from apps.page_attention import UNBOUNDED, cell_of, score_table
from apps.parts import address, share
from apps.parts.checkpoints import run_of
from apps.parts.heads import OKABE_ITO, Head, head_grid
from apps.parts.kept import kept_scores, kept_scores_of
from apps.parts.prompt import Asked, ask
from apps.parts.text import plain, sentence
from shardscope.checkpoint import list_checkpoints
from shardscope.config import ConfigError, LayerKind
from shardscope.lens.microscope import SCORES, HeadScores, find_heads

KINDS = ("both", *get_args(LayerKind))
FOUND = 10
FOLLOWED = 3  # heads, until some are chosen
MOST_STEPS = 24  # checkpoints of a run that are read; of more, evenly chosen ones


def page() -> None:
    asked = ask()
    if asked is not None:
        search(asked)


@st.fragment
def search(asked: Asked) -> None:
    st.subheader("Search", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        address.one_of("by", list(SCORES))
        by = st.selectbox("By", list(SCORES), key="by", format_func=lambda name: f"{name}: {SCORES[name]}", width=460)
        address.one_of("kind", KINDS)
        chosen_kind = st.segmented_control("Layers", KINDS, key="kind", required=True)
        kind = next((kind for kind in get_args(LayerKind) if kind == chosen_kind), None)
    scores = kept_scores(asked.opened, asked.ids)
    found = find_heads(scores, by=by, top=FOUND, kind=kind)
    there = {(score.layer, score.head) for score in scores}
    chosen = [head for head in st.session_state.heads if head in there]
    followed = chosen or [(score.layer, score.head) for score in found[:FOLLOWED]]
    left, right = st.columns(2, gap="medium")
    with left:
        cells = {(score.layer, score.head): cell_of(score, by, scores) for score in scores}
        head_grid("heads grid", asked.opened.model.config, cells, followed, follow, name=by)
        st.caption("Framed heads are drawn below: the three best of the search, until you click heads to choose.")
    with right:
        st.dataframe(score_table(found), hide_index=True, column_config=_columns(by))
        with st.container(horizontal=True):
            share.csv_button("All heads", lambda: score_table(scores), share.file_name(asked, "heads.csv"), "heads")
            share.notebook_cell(scores_cell(asked, by), "heads")
            if found and st.button("Look at the best one", icon=":material/grid_on:"):
                st.session_state.layer, st.session_state.head = found[0].layer, found[0].head
                st.switch_page(st.session_state["attention_page"])
    draw_distances([score for score in scores if (score.layer, score.head) in followed], asked)
    draw_training(asked, followed, by)
    address.publish()


def _columns(by: str) -> dict[str, Any]:
    """Four digits for every score, and the one that was searched by marked."""
    return {
        name: st.column_config.NumberColumn(f"{name} ▼" if name == by else name, format="%.4f", help=SCORES[name])
        for name in SCORES
    }


def follow(chosen: Head) -> None:
    heads = st.session_state.heads
    st.session_state.heads = tuple(h for h in heads if h != chosen) if chosen in heads else (*heads, chosen)


def draw_distances(scores: Sequence[HeadScores], asked: Asked) -> None:
    """How far back each followed head reads, in doubling steps, with the window's edge marked."""
    st.subheader("How far back they read", anchor=False)
    rows = [
        {
            "head": _name(score.layer, score.head),
            "kind": score.kind,
            "from": int(start),
            "to": int(end) - 1,
            "mass": float(mass),
        }
        for score in scores
        for start, end, mass in zip(
            score.distance_edges[:-1], score.distance_edges[1:], score.mass_by_distance, strict=True
        )
    ]
    table = pd.DataFrame(rows)
    table["distance"] = [_span(start, end) for start, end in zip(table["from"], table["to"], strict=True)]
    window = asked.opened.model.config.window
    past = sorted({start for start in table["from"] if start >= window})
    order = list(dict.fromkeys(table["distance"]))
    bars = (
        alt.Chart(table)
        .mark_bar()
        .encode(
            x=alt.X("distance:N", sort=order, title="distance back, in tokens", axis=alt.Axis(labelAngle=-45)),
            xOffset="head:N",
            y=alt.Y("mass:Q", title="share of the attention", scale=alt.Scale(domain=[0, 1])),
            color=_head_color(),
            tooltip=["head", "kind", "distance", alt.Tooltip("mass:Q", format=".4f")],
        )
    )
    layers: list[alt.Chart] = [bars]
    if past:
        edge = pd.DataFrame({"distance": [_span(*_bin(table, past[0]))], "says": [f"past the window of {window} →"]})
        at = alt.Chart(edge).encode(x=alt.X("distance:N", sort=order, bandPosition=0))
        layers += [
            at.mark_rule(color="#ff7f0e", strokeWidth=2),
            at.mark_text(align="left", dx=5, y=8, color="#ff7f0e").encode(text="says:N"),
        ]
    st.altair_chart(alt.layer(*layers).properties(height=260), width="stretch")


def _bin(table: pd.DataFrame, start: int) -> tuple[int, int]:
    row = table[table["from"] == start].iloc[0]
    return int(row["from"]), int(row["to"])


def _span(start: int, end: int) -> str:
    return str(start) if start == end else f"{start}–{end}"


def draw_training(asked: Asked, followed: Sequence[Head], by: str) -> None:
    """The followed heads in every checkpoint of the run that the open one belongs to."""
    st.subheader("Through the training", anchor=False)
    run = run_of(asked.opened)
    checkpoints = list_checkpoints(run) if run else []
    if run is None or len(checkpoints) < 2:
        st.caption("This checkpoint is the only one of its run; a run that keeps more (`train.keep`) is followed here.")
        return
    if not st.toggle(f"Read all {len(checkpoints)} checkpoints of {plain(run.name)}", key="follow"):
        return
    try:
        table = training_table(asked, thinned(checkpoints, MOST_STEPS), followed, by)
    except ConfigError as error:
        st.error(sentence(error))
        return
    chart = (
        alt.Chart(table)
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q"),
            y=alt.Y("score:Q", title=by, scale=alt.Scale(zero=by not in UNBOUNDED)),
            color=_head_color(),
            tooltip=["head", "step", alt.Tooltip("score:Q", format=".4f")],
        )
        .properties(height=280)
    )
    st.altair_chart(chart, width="stretch")
    share.csv_button("Through the training", lambda: table, share.file_name(asked, f"training-{by}.csv"), "training")


def training_table(asked: Asked, checkpoints: Sequence[Path], followed: Sequence[Head], by: str) -> pd.DataFrame:
    """A line for each followed head and checkpoint: its score on the prompt that is shown."""
    rows = []
    place = st.empty()
    for done, path in enumerate(checkpoints):
        place.progress(done / len(checkpoints), f"Reading {plain(path.name)} …")
        for score in kept_scores_of(path, asked.ids):
            if (score.layer, score.head) in followed:
                step, value = int(path.name.removeprefix("step-")), float(getattr(score, by))
                rows.append({"step": step, "head": _name(score.layer, score.head), "score": value})
    place.empty()
    return pd.DataFrame(rows)


def thinned(checkpoints: Sequence[Path], most: int) -> list[Path]:
    """At most `most` of them, evenly spread, the first and the last among them."""
    if len(checkpoints) <= most:
        return list(checkpoints)
    return [checkpoints[round(index * (len(checkpoints) - 1) / (most - 1))] for index in range(most)]


def scores_cell(asked: Asked, by: str) -> str:
    """A cell that finds the same heads and checks the best one's previous-token mass against the hooked pattern."""
    return share.opening(asked) + (
        "\nfrom shardscope.lens.microscope import find_heads, head_scores, read\n\n"
        f'found = find_heads(head_scores(read(model, ids)), by="{by}", top={FOUND})\n'
        "best = found[0]\n"
        '_, cache = model.run_with_cache(ids[None], names_filter=f"blocks.{best.layer}.attn.hook_pattern")\n'
        'pattern = cache["pattern", best.layer][0, best.head]\n'
        "previous = pattern.diagonal(-1).mean().item()  # equals best.previous\n"
        f"[(score.layer, score.head, score.{by}) for score in found]\n"
    )


def _name(layer: int, head: int) -> str:
    return f"L{layer}H{head}"


def _head_color() -> alt.Color:
    return alt.Color("head:N", title="head", scale=alt.Scale(range=OKABE_ITO))
