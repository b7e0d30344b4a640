"""Attention: what every head does with a prompt, one head as a map, and any rectangle of it token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pandas as pd
import streamlit as st

from apps.parts import address, exports
from apps.parts.caching import MAP_CELLS, cached_layer, cached_map, cached_scores, cached_small_maps
from apps.parts.heads import Cell, head_grid
from apps.parts.heatmap import Side, heatmap
from apps.parts.prompt import Asked, ask
from apps.parts.text import in_a_sentence
from apps.parts.tokens import drawn_part, token_strip
from shardscope.colors import viridis
from shardscope.config import LayerKind
from shardscope.microscope import SCORES, HeadScores, LayerReading, PooledBand, find_heads

TILE_CELLS = 192  # of a rectangle up close: up to here every square is one weight
QUICK = 1024  # tokens of a prompt whose heads are all scored before the first is shown
MOST_FAR = 5  # tokens outside the strip that are named
KIND_COLOR: dict[LayerKind, str] = dict(zip(get_args(LayerKind), ("blue", "orange"), strict=True))
MAPS = {"mean": "mean weight", "max": "largest weight", "band": "by distance"}
UNBOUNDED = ("entropy", "distance")  # the other scores are shares between 0 and 1


def page() -> None:
    asked = ask()
    if asked is not None:
        look_inside(asked)


@st.fragment
@in_a_sentence
def look_inside(asked: Asked) -> None:
    """Everything about attention; choosing a head redraws this part alone."""
    config, n_tokens = asked.opened.model.config, len(asked.ids)
    if st.session_state.layer == st.session_state.head == address.STRONGEST:
        open_on_induction(asked)
    layer = int(address.clamp("layer", 0, config.n_layers - 1))
    head = int(address.clamp("head", 0, config.n_heads - 1))
    if not 0 <= st.session_state.query < n_tokens:
        st.session_state.query = asked.prompt_tokens - 1
    query = int(st.session_state.query)
    reading = cached_layer(asked.opened, asked.ids, layer)
    texts = asked.texts
    explain_first_view(layer, head)
    left, right = st.columns([5, 9], gap="medium")
    with right:
        draw_head(asked, reading, head, query, texts)
    with left:
        scores = draw_overview(asked, layer, head)
    with right:
        st.markdown(" · ".join(numbers(scores[layer * config.n_heads + head])))
    draw_strip(asked, reading, head, query, texts)
    draw_tile(asked, reading, head, texts)
    address.publish()


def open_on_induction(asked: Asked) -> None:
    """Choose the strongest induction head; of a long prompt the very first head, without scoring all of them first."""
    if len(asked.ids) > QUICK:
        choose_head((0, 0))
        return
    (best,) = find_heads(cached_scores(asked.opened, asked.ids), by="induction", top=1)
    choose_head((best.layer, best.head))
    st.session_state.opened_on = (best.layer, best.head)


def explain_first_view(layer: int, head: int) -> None:
    """What the page opened on and what to click, until another head is chosen."""
    if st.session_state.get("opened_on") == (layer, head):
        st.info(
            f"This is head {head} of layer {layer}, the strongest induction head on this prompt: each token looks back "
            "at what followed its earlier occurrence, so a repeated passage is a diagonal. Click a small map for "
            "another head, a square or a word for another token, or write a prompt of your own.",
            icon=":material/visibility:",
        )


def draw_strip(asked: Asked, reading: LayerReading, head: int, query: int, texts: Sequence[str]) -> None:
    """The tokens, lit by what one of them reads and by what reads it."""
    st.subheader(f"What token {query} reads", anchor=False)
    # What reads the token is only asked of the tokens that the strip shows: a whole column costs a pass over all rows.
    n_tokens, reads = len(texts), reading.row(head, query)
    readers = range(query, drawn_part(query, n_tokens).stop)
    read_by = np.zeros(n_tokens, dtype=np.float32)
    read_by[readers.start : readers.stop] = reading.tile(head, readers, range(query, query + 1))[:, 0]
    says = ("is read with", "reads it with")
    token_strip(texts, asked.prompt_tokens, query, reads, read_by, says, MOST_FAR)
    st.caption(
        f"{asked.prompt_tokens} prompt tokens, then {n_tokens - asked.prompt_tokens} new ones, underlined. The framed "
        f"token, number {query}, reads the tinted ones and is read by those with an orange foot. Click another, or use "
        "the arrow keys and Enter."
    )
    exports.buttons(
        "reads",
        exports.file_name(asked, f"layer{reading.layer}", f"head{head}", f"token{query}"),
        lambda: exports.strip_cell(asked, reading.layer, head, query),
        lambda: pd.DataFrame(
            {"token": range(n_tokens), "text": texts, "reads": reads, "read_by": reading.column(head, query)}
        ),
    )


def draw_overview(asked: Asked, layer: int, head: int) -> list[HeadScores]:
    """All heads: the sliding layers in one band, the global layers in another."""
    measures = {"pattern": "each head's map, in small", **SCORES}
    address.one_of("measure", list(measures))
    measure = str(
        st.selectbox(
            "All heads",
            list(measures),
            key="measure",
            format_func=lambda name: f"All heads · {name}: {measures[name]}",
            label_visibility="collapsed",
        )
    )
    scores = cached_scores(asked.opened, asked.ids)
    head_grid(
        "overview grid",
        asked.opened.model.config,
        {(score.layer, score.head): cell_of(score, measure, scores) for score in scores},
        [(layer, head)],
        choose_head,
        name=f"{measure} of {len(scores)} heads",
        file=exports.file_name(asked, "heads", f"{measure}.svg"),
        small_maps=cached_small_maps(asked.opened, asked.ids) if measure == "pattern" else "",
    )
    exports.buttons(
        "heads",
        exports.file_name(asked, "heads"),
        lambda: exports.scores_cell(asked, "[(score.layer, score.head, score.induction) for score in scores]\n"),
        lambda: score_table(scores),
        picture=False,
    )
    return scores


def cell_of(score: HeadScores, measure: str, scores: Sequence[HeadScores]) -> Cell:
    """A head's button: coloured by a score, or bare under its small map."""
    title = f"layer {score.layer} {score.kind}, head {score.head}"
    if measure == "pattern":
        return Cell(title)
    value = float(getattr(score, measure))
    top = max(float(getattr(other, measure)) for other in scores)
    text = f"{value:.1f}" if measure in UNBOUNDED else f"{value:.2f}"
    return Cell(f"{title}, {measure} {value:.4f}", text, viridis(value / max(top, 1e-9)))


def choose_head(chosen: tuple[int, int]) -> None:
    st.session_state.layer, st.session_state.head = chosen


def draw_head(asked: Asked, reading: LayerReading, head: int, query: int, texts: Sequence[str]) -> None:
    """One head in full: its map, and the keyboard's way to another one."""
    config = asked.opened.model.config
    kind = "global" if reading.window is None else f"sliding, window {reading.window}"
    st.markdown(f"#### Layer {reading.layer} · :{KIND_COLOR[reading.kind]}[{kind}] · head {head}")
    maps = [name for name in MAPS if name != "band" or reading.window is not None]
    address.one_of("map", maps)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.selectbox(
            "Layer",
            range(config.n_layers),
            key="layer",
            format_func=lambda layer: f"layer {layer}, {config.layer_kinds[layer]}",
            label_visibility="collapsed",
            width=190,
        )
        st.selectbox(
            "Head",
            range(config.n_heads),
            key="head",
            format_func=lambda head: f"head {head}",
            label_visibility="collapsed",
            width=120,
        )
        shown = str(
            st.segmented_control(
                "Map",
                maps,
                key="map",
                required=True,
                format_func=MAPS.__getitem__,
                label_visibility="collapsed",
            )
        )
    by_distance = shown == "band"
    name = exports.file_name(asked, f"layer{reading.layer}", f"head{head}", shown)
    pooled = cached_map(asked.opened, asked.ids, reading, head, by_distance)
    n_tokens, labels = reading.n_tokens, texts[:: pooled.cell]
    rows = Side("query: the token that reads", 0, n_tokens, pooled.cell, labels)
    columns = Side("key: the token that is read", 0, n_tokens, pooled.cell, labels)
    if isinstance(pooled, PooledBand):
        columns = Side("distance back from the query", 0, min(pooled.window, n_tokens), pooled.distance_cell)
    heatmap(
        "head map",
        pooled.max if shown == "max" else pooled.mean,
        rows,
        columns,
        label=f"Attention of layer {reading.layer}, {kind}, head {head}: {n_tokens} queries, {MAPS[shown]}.",
        name=name,
        what=what_of(rows, columns, shown),
        window=reading.window,
        distance=by_distance,
        rectangle=None if by_distance else inside(st.session_state.rectangle, n_tokens),
        query=query,
        height=560,
        on_rectangle=lambda found: choose_rectangle(found, n_tokens, by_distance),
        on_pick=choose_token,
    )
    st.caption(explain(reading, pooled.cell, shown))
    call = f"pooled_band({head}, {MAP_CELLS})" if by_distance else f"pooled({head}, {MAP_CELLS})"
    exports.buttons(
        "map",
        name,
        lambda: exports.map_cell(asked, reading.layer, head, call),
        lambda: exports.map_table(pooled),
        picture=False,
    )


def what_of(rows: Side, columns: Side, shown: str) -> str:
    """What a square's number is."""
    return "Weight" if rows.cell == columns.cell == 1 else "Largest weight" if shown == "max" else "Mean weight"


def explain(reading: LayerReading, cell: int, shown: str) -> str:
    """What the picture is made of, in a sentence or two."""
    what = "Every square is one weight" if cell == 1 else f"Every square pools {cell} × {cell} tokens"
    if shown == "band":
        return "Every row is a query and every column a distance back: no square lies outside the window."
    if reading.window is None:
        return f"{what}. A global layer sees everything before the query."
    if reading.n_tokens <= reading.window:
        return (
            f"{what}. The text is shorter than the window of {reading.window}: nothing is hidden from this layer yet."
        )
    return f"{what}. The orange line is the window's edge: left of it, in grey, is what this layer cannot see."


def choose_token(picked: Sequence[int]) -> None:
    st.session_state.query = picked[0]


def choose_rectangle(found: Sequence[int], n_tokens: int, by_distance: bool) -> None:
    q0, q1, k0, k1 = found
    if by_distance:
        k0, k1 = max(0, q0 - k1 + 1), max(1, q1 - k0)
    st.session_state.rectangle = (q0, q1, k0, min(k1, n_tokens))


def inside(rectangle: Sequence[int], n_tokens: int) -> exports.Rectangle | None:
    """The rectangle, if this text has all of it."""
    if len(rectangle) != 4:
        return None
    q0, q1, k0, k1 = rectangle
    return (q0, q1, k0, k1) if 0 <= q0 < q1 <= n_tokens and 0 <= k0 < k1 <= n_tokens else None


def draw_tile(asked: Asked, reading: LayerReading, head: int, texts: Sequence[str]) -> None:
    """The rectangle that was dragged, all of it: token by token where it fits, else in squares to drag in again."""
    st.subheader("Up close", anchor=False)
    rectangle = inside(st.session_state.rectangle, reading.n_tokens)
    if rectangle is None:
        if st.session_state.rectangle:
            st.warning(
                f"This text has {reading.n_tokens} tokens and does not reach as far as the rectangle; drag another."
            )
        st.caption("Drag a rectangle on the map, or frame one with Shift and the arrow keys, then Enter.")
        return
    q0, q1, k0, k1 = rectangle
    shown = "max" if st.session_state.map == "max" else "mean"
    pooled = reading.pooled(head, TILE_CELLS, range(q0, q1), range(k0, k1))
    exact = pooled.cell == 1
    rows = Side("query", q0, q1, pooled.cell, texts[q0 : q1 : pooled.cell])
    columns = Side("key", k0, k1, pooled.cell, texts[k0 : k1 : pooled.cell])
    name = exports.file_name(asked, f"layer{reading.layer}", f"head{head}", f"q{q0}-{q1}-k{k0}-{k1}")
    what = (
        "Exact weights"
        if exact
        else f"{what_of(rows, columns, shown)}s, {pooled.cell} × {pooled.cell} tokens a square,"
    )
    st.caption(
        f"{what} of layer {reading.layer}, head {head}: queries {q0} to {q1 - 1}, keys {k0} to {k1 - 1}. "
        + ("" if exact else f"Up to {TILE_CELLS} tokens a side are drawn one by one. ")
        + "Drag again to look closer."
    )
    heatmap(
        "tile map",
        pooled.max if shown == "max" else pooled.mean,
        rows,
        columns,
        label=f"{what} of layer {reading.layer}, head {head}, {q1 - q0} queries by {k1 - k0} keys.",
        name=name,
        what=what_of(rows, columns, shown),
        window=reading.window,
        on_rectangle=lambda found: choose_rectangle(found, reading.n_tokens, by_distance=False),
        on_pick=choose_token,
    )
    call = f"pooled({head}, {TILE_CELLS}, range({q0}, {q1}), range({k0}, {k1}))"
    exports.buttons(
        "tile",
        name,
        lambda: (
            exports.tile_cell(asked, reading.layer, head, rectangle)
            if exact
            else exports.map_cell(asked, reading.layer, head, call)
        ),
        lambda: tile_table(pooled.mean, rectangle, texts) if exact else exports.map_table(pooled),
        picture=False,
    )
    st.button("Close", on_click=lambda: st.session_state.update(rectangle=()))


def tile_table(tile: np.ndarray, rectangle: exports.Rectangle, texts: Sequence[str]) -> pd.DataFrame:
    """A line for each pair of query and key."""
    q0, q1, k0, k1 = rectangle
    query, key = (side.ravel() for side in np.mgrid[q0:q1, k0:k1])
    return pd.DataFrame(
        {
            "query": query,
            "key": key,
            "distance": query - key,
            "weight": tile.ravel(),
            "query_token": [texts[pos] for pos in query],
            "key_token": [texts[pos] for pos in key],
        }
    )


def score_table(scores: Sequence[HeadScores]) -> pd.DataFrame:
    """A line for each head."""
    names = ["layer", "head", "kind", *SCORES]
    return pd.DataFrame([{name: getattr(score, name) for name in names} for score in scores])


def numbers(score: HeadScores) -> list[str]:
    """One head in numbers, as Markdown."""
    units = {"entropy": "bits", "distance": "tokens"}
    return [f"{name} **{getattr(score, name):.4f}** {units.get(name, '')}".rstrip() for name in SCORES]
