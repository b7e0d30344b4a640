"""Heads: find heads by what they do, compare all of them, and follow them through the training of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import altair as alt
import pandas as pd
import streamlit as st

from apps.page_attention import UNBOUNDED, cell_of, score_table
from apps.parts import address, exports
from apps.parts.biography import draw_curves
from apps.parts.biography_files import biographies_of
from apps.parts.biography_tables import changing_most, head_names, heads_cell, heads_table
from apps.parts.caching import cached_scores, cached_scores_of
from apps.parts.checkpoints import run_of
from apps.parts.heads import Head, head_grid
from apps.parts.prompt import Asked, ask
from apps.parts.text import in_a_sentence, plain, sentence
from shardscope.checkpoint import list_checkpoints
from shardscope.colors import MARK, OKABE_ITO
from shardscope.config import ConfigError, LayerKind
from shardscope.microscope import SCORES, HeadScores, find_heads

KINDS = ("both", *get_args(LayerKind))
FOUND = 10
FOLLOWED = 3  # heads, until some are chosen
MOST_STEPS = 24  # checkpoints of a run that are read; of more, evenly chosen ones


def page() -> None:
    asked = ask()
    if asked is not None:
        search(asked)


@st.fragment
@in_a_sentence
def search(asked: Asked) -> None:
    st.subheader("Search", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        address.one_of("by", list(SCORES))
        by = st.selectbox("By", list(SCORES), key="by", format_func=lambda name: f"{name}: {SCORES[name]}", width=460)
        address.one_of("kind", KINDS)
        chosen_kind = st.segmented_control("Layers", KINDS, key="kind", required=True)
        kind = next((kind for kind in get_args(LayerKind) if kind == chosen_kind), None)
    scores = cached_scores(asked.opened, asked.ids)
    found = find_heads(scores, by=by, top=FOUND, kind=kind)
    there = {(score.layer, score.head) for score in scores}
    chosen = [head for head in st.session_state.heads if head in there]
    followed = chosen or [(score.layer, score.head) for score in found[:FOLLOWED]]
    left, right = st.columns([4, 7], gap="medium")
    with left:
        cells = {(score.layer, score.head): cell_of(score, by, scores) for score in scores}
        file = exports.file_name(asked, "heads", f"{by}.svg")
        head_grid("heads grid", asked.opened.model.config, cells, followed, follow, name=by, file=file)
        st.caption("Framed heads are drawn below: the three best of the search, until you click heads to choose.")
    with right:
        if found:
            st.dataframe(found_table(found), hide_index=True, height="content", column_config=_columns(by))
        else:
            st.info(f"This model has no {kind} layer.")
        exports.buttons(
            "heads",
            exports.file_name(asked, "heads", str(by)),
            lambda: exports.scores_cell(asked, search_lines(by, kind)),
            lambda: score_table(scores),
        )
        if found and st.button("Look at the best one", icon=":material/grid_on:"):
            st.session_state.layer, st.session_state.head = found[0].layer, found[0].head
            st.switch_page(st.session_state["attention_page"])
    if followed:
        draw_distances([score for score in scores if (score.layer, score.head) in followed], asked)
        draw_training(asked, followed, by)
    address.publish()


def found_table(found: Sequence[HeadScores]) -> pd.DataFrame:
    """A line for each head, narrow enough to be seen whole."""
    rows = [
        {"head": _name(score.layer, score.head), "kind": score.kind, **{name: getattr(score, name) for name in SCORES}}
        for score in found
    ]
    return pd.DataFrame(rows, columns=["head", "kind", *SCORES])


def _columns(by: str) -> dict[str, Any]:
    """Few digits for every score, and the one that was searched by marked."""
    return {
        "head": st.column_config.TextColumn(width=46),
        "kind": st.column_config.TextColumn(width=54),
        **{
            name: st.column_config.NumberColumn(
                f"▼ {name}" if name == by else name,
                format="%.1f" if name == "distance" else "%.3f",
                help=SCORES[name],
                width=76,
            )
            for name in SCORES
        },
    }


def search_lines(by: str, kind: LayerKind | None) -> str:
    return (
        f"found = find_heads(scores, by={by!r}, top={FOUND}, kind={kind!r})\n"
        f"[(score.layer, score.head, score.{by}) for score in found]\n"
    )


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
            at.mark_rule(color=MARK, strokeWidth=2),
            at.mark_text(align="left", dx=5, y=8, color=MARK).encode(text="says:N"),
        ]
    st.altair_chart(alt.layer(*layers).properties(height=260), width="stretch")
    names = [(score.layer, score.head) for score in scores]
    exports.buttons(
        "distances",
        exports.file_name(asked, "distances"),
        lambda: exports.scores_cell(asked, distance_lines(names)),
        lambda: table[["head", "kind", "from", "to", "mass"]],
    )


def distance_lines(heads: Sequence[Head]) -> str:
    return (
        f"masses = {{(s.layer, s.head): s.mass_by_distance for s in scores if (s.layer, s.head) in {list(heads)}}}\n"
        "scores[0].distance_edges, masses  # masses[head][i] lies at distances edges[i] … edges[i + 1] - 1\n"
    )


def _bin(table: pd.DataFrame, start: int) -> tuple[int, int]:
    row = table[table["from"] == start].iloc[0]
    return int(row["from"]), int(row["to"])


def _span(start: int, end: int) -> str:
    return str(start) if start == end else f"{start}–{end}"


def draw_training(asked: Asked, followed: Sequence[Head], by: str) -> None:
    """The followed heads through the run that the open checkpoint belongs to: as it was probed, and in checkpoints."""
    st.subheader("Through the training", anchor=False)
    run = run_of(asked.opened)
    draw_biography(run, followed, by)
    checkpoints = list_checkpoints(run) if run else []
    if run is None or len(checkpoints) < 2:
        st.caption("This checkpoint is the only one of its run; a run that keeps more (`train.keep`) is followed here.")
        return
    if not st.toggle(f"Read all {len(checkpoints)} checkpoints of {plain(run.name)}", key="follow"):
        return
    table = training_table(asked, thinned(checkpoints, MOST_STEPS), followed, by)
    if table.empty:
        return
    chart = (
        alt.Chart(table)
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y("score:Q", title=by, scale=alt.Scale(zero=by not in UNBOUNDED)),
            color=_head_color(),
            tooltip=["head", "step", alt.Tooltip("score:Q", format=".4f")],
        )
        .properties(height=280)
    )
    st.altair_chart(chart, width="stretch")
    exports.buttons(
        "training",
        exports.file_name(asked, "training", by),
        lambda: training_cell(asked, thinned(checkpoints, MOST_STEPS), followed, by),
        lambda: table,
    )


def draw_biography(run: Path | None, followed: Sequence[Head], by: str) -> None:
    """The score as the run's training probed it; where there is no such run, that of the one that came with it."""
    own = [] if run is None else [(run.name, run)]
    file = next(iter(biographies_of(own)), None)
    biography = None if file is None else file.read()
    if file is None or biography is None or by not in biography.heads:
        return
    if file.shipped:
        st.caption(
            "The training of this checkpoint was not probed here, or only once. As an example, the heads of "
            f"{plain(file.name)} that change most; the Runs page has all of it."
        )
        draw_curves(file, biography, by, changing_most(biography, by, FOLLOWED))
    else:
        there = set(head_names(biography).values())
        draw_curves(file, biography, by, [head for head in followed if head in there])
    exports.buttons(
        "biography of heads",
        f"shardscope-biography-{by}",
        lambda: heads_cell(file, by),
        lambda: heads_table(biography, by),
        picture=False,
    )


def training_table(asked: Asked, checkpoints: Sequence[Path], followed: Sequence[Head], by: str) -> pd.DataFrame:
    """A line for each followed head and checkpoint: its score on the prompt that is shown.

    A checkpoint that cannot be read is a line on the page, and missing here.
    """
    rows = []
    place = st.empty()
    for done, path in enumerate(checkpoints):
        place.progress(done / len(checkpoints), f"Reading {plain(path.name)} …")
        try:
            scores = cached_scores_of(path, asked.ids)
        except ConfigError as error:
            st.warning(sentence(error))
            continue
        for score in scores:
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


def training_cell(asked: Asked, checkpoints: Sequence[Path], followed: Sequence[Head], by: str) -> str:
    """A cell that leaves the followed heads' scores in `training`: step to {(layer, head): score}."""
    paths = ",\n    ".join(repr(str(exports.relative(path))) for path in checkpoints)
    return exports.opening(asked) + (
        "from shardscope.microscope import head_scores, read\n\n"
        f"paths = [\n    {paths},\n]\n"
        f"followed = {list(followed)}\n"
        "training = {}\n"
        "for path in paths:\n"
        "    scores = head_scores(read(load(path), ids))\n"
        f'    training[int(path.rpartition("-")[2])] = {{\n'
        f"        (s.layer, s.head): s.{by} for s in scores if (s.layer, s.head) in followed\n"
        "    }\n"
        "training\n"
    )


def _name(layer: int, head: int) -> str:
    return f"L{layer}H{head}"


def _head_color() -> alt.Color:
    return alt.Color("head:N", title="head", scale=alt.Scale(range=list(OKABE_ITO)))
