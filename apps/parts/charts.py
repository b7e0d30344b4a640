"""The pictures: one head's attention as a map, and all heads of one kind as a band.

Weights are drawn in viridis, which colour-blind people can read, on the square root of the weight: attention is
heavy-tailed, and most of what is worth seeing lies under a tenth.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd
from PIL import Image

from apps.parts.text import visible
from shardscope.config import LayerKind
from shardscope.lens.views import AttentionView, HeadSummary

KIND_COLOR: dict[LayerKind, str] = {"sliding": "blue", "global": "orange"}
EDGE_COLOR = "#ff7f0e"
CHOSEN_COLOR = "#ff4fa3"
LABELLED_TOKENS = 40
_WEIGHT_SCALE = alt.Scale(scheme="viridis", type="sqrt", domain=[0, 1])
# Nothing is ever drawn above the diagonal.
_WEIGHT_LEGEND = alt.Legend(title="weight", orient="top-right", gradientLength=150, values=[0, 0.1, 0.5, 1])
_VIRIDIS = "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725"
_VIRIDIS_RGB = np.array([[int(color[i : i + 2], 16) for i in (0, 2, 4)] for color in _VIRIDIS.split()])

MEASURES: dict[str, tuple[str, str]] = {
    "Pattern": ("", "each head's map, in small"),
    "First token": ("first_token", "weight on the first token, the usual attention sink"),
    "Previous": ("previous_token", "weight on the token just before"),
    "Entropy": ("entropy", "bits; 0 is all weight on one token"),
    "Distance": ("distance", "mean distance to what is read, in tokens"),
    "Past window": ("past_window", "weight further back than any sliding layer can see"),
}


def attention_chart(view: AttentionView, texts: Sequence[str], query: int, height: int) -> alt.LayerChart:
    """One head's map, query downwards, key to the right; a sliding layer's window edge is drawn as a line."""
    n, cell = view.n_tokens, view.cell
    tokens = pd.DataFrame({"pos": np.arange(n, dtype=np.uint16), "text": [_quoted(text) for text in texts]})
    across = {"title": "key: the token that is read", "scale": _positions(n), "axis": _axis(texts, angle=-90)}
    down = {"title": "query: the token that reads", "scale": _positions(n, down=True), "axis": _axis(texts)}
    cells = (
        alt.Chart(visible_cells(view))
        .transform_calculate(
            weight="datum.w / 65535",
            query=f"datum.q * {cell}",
            query_end=f"min((datum.q + 1) * {cell}, {n})",
            key=f"datum.k * {cell}",
            key_end=f"min((datum.k + 1) * {cell}, {n})",
        )
        .transform_lookup("query", alt.LookupData(tokens, "pos", ["text"]), as_=["query_text"])
        .transform_lookup("key", alt.LookupData(tokens, "pos", ["text"]), as_=["key_text"])
        .transform_calculate(
            Query=_place("query", cell),
            Key=_place("key", cell),
            Distance="datum.query - datum.key" if cell == 1 else f"'about ' + {cell} * (datum.q - datum.k)",
            Weight="format(datum.weight, '.4f')",
        )
        # The squares are pixels of the picture below; these only answer the pointer.
        .mark_rect(fill="transparent")
        .encode(
            x=alt.X("key:Q", **across),
            x2="key_end:Q",
            y=alt.Y("query:Q", **down),
            y2="query_end:Q",
            color=alt.Color("weight:Q", scale=_WEIGHT_SCALE, legend=_WEIGHT_LEGEND),
            tooltip=["Query:N", "Key:N", "Distance:N", "Weight:N"],
        )
    )
    end = len(view.weights) * cell
    whole = pd.DataFrame({"left": [0], "right": [end], "top": [0], "bottom": [end], "picture": [pattern_url(view)]})
    picture = (
        alt.Chart(whole)
        .mark_image(aspect=False, smooth=False, clip=True, tooltip=None)
        .encode(
            x=alt.X("left:Q", **across),
            x2="right:Q",
            y=alt.Y("top:Q", **down),
            y2="bottom:Q",
            url="picture:N",
        )
    )
    row = alt.Chart(pd.DataFrame({"top": [query], "bottom": [query + 1], "left": [0], "right": [query + 1]}))
    chosen = row.mark_rect(filled=False, stroke=CHOSEN_COLOR, strokeWidth=1.5, tooltip=None).encode(
        x="left:Q", x2="right:Q", y="top:Q", y2="bottom:Q"
    )
    kind = "global" if view.window is None else f"sliding, window {view.window}"
    return (
        alt.layer(picture, cells, *_window_edge(view), chosen)
        .properties(
            height=height,
            description=f"Attention of layer {view.layer}, {kind}, head {view.head}: {n} queries by {n} keys.",
            usermeta={"embedOptions": {"renderer": "canvas"}},
        )
        .configure_view(stroke=None)
    )


def visible_cells(view: AttentionView) -> pd.DataFrame:
    """The squares that this head can see, in four bytes each: query cell, key cell, weight out of 65535."""
    q, k = np.nonzero(_seen(view))
    weight = np.rint(np.clip(view.weights[q, k], 0, 1) * 65535)
    return pd.DataFrame({"q": q.astype(np.uint8), "k": k.astype(np.uint8), "w": weight.astype(np.uint16)})


def _seen(view: AttentionView) -> np.ndarray:
    """Which squares hold at least one pair of query and key that this head can see."""
    cells = np.arange(len(view.weights))
    seen = cells[:, None] >= cells[None, :]
    edge = view.edge()
    if edge is not None:
        seen &= cells[None, :] >= (edge[:: view.cell] // view.cell)[:, None]
    return seen


def _window_edge(view: AttentionView) -> list[alt.Chart]:
    """The first key that each query sees, as a line, and what lies behind it, shaded."""
    if view.window is None or view.n_tokens <= view.window:
        return []
    edge = view.edge()
    assert edge is not None
    steps = np.arange(0, view.n_tokens, view.cell)
    ends = np.minimum(steps + view.cell, view.n_tokens)
    rows = pd.DataFrame({"top": steps, "bottom": ends, "first": edge[steps], "zero": 0})
    line = pd.DataFrame({"first": np.repeat(edge[steps], 2), "at": np.stack([steps, ends], axis=1).ravel()})
    line["order"] = np.arange(len(line))
    hidden = (
        alt.Chart(rows[rows["first"] > 0])
        .mark_rect(color="gray", opacity=0.16, tooltip="outside the window: this layer cannot see it")
        .encode(x="zero:Q", x2="first:Q", y="top:Q", y2="bottom:Q")
    )
    border = (
        alt.Chart(line[line["at"] >= view.window])
        .mark_line(color=EDGE_COLOR, strokeWidth=2, tooltip=None)
        .encode(x="first:Q", y="at:Q", order="order:Q")
    )
    return [hidden, border]


def band_chart(heads: Sequence[HeadSummary], measure: str, layer: int, head: int) -> alt.LayerChart:
    """All heads of the layers of one kind; a click selects one (the selection is named `head`)."""
    kind, n_heads = heads[0].kind, 1 + max(summary.head for summary in heads)
    field = MEASURES[measure][0]
    size = min(64, 256 // n_heads)  # on a phone, too
    frame = pd.DataFrame(
        {
            "layer": [summary.layer for summary in heads],
            "head": [summary.head for summary in heads],
            "picture": [thumbnail_url(summary.thumbnail) if not field else "" for summary in heads],
            "value": [getattr(summary, field) if field else 0.0 for summary in heads],
            "chosen": [(summary.layer, summary.head) == (layer, head) for summary in heads],
            **{label: [getattr(summary, name) for summary in heads] for label, (name, _) in MEASURES.items() if name},
        }
    )
    across = alt.X("head:O", title="head", axis=alt.Axis(orient="top", labelAngle=0, ticks=False, domain=False))
    down = alt.Y("layer:O", title="layer", axis=alt.Axis(ticks=False, domain=False))
    base = alt.Chart(frame).encode(x=across, y=down)
    tooltip = [
        "layer:O",
        "head:O",
        *(alt.Tooltip(label, format=".3f") for label, (name, _) in MEASURES.items() if name),
    ]
    frames = base.mark_rect(cornerRadius=3).encode(
        color=_fill(field, frame["value"]),
        stroke=alt.condition("datum.chosen", alt.value(CHOSEN_COLOR), alt.value(_outline(kind))),
        strokeWidth=alt.condition("datum.chosen", alt.value(3), alt.value(1)),
        tooltip=tooltip,
    )
    inside = (
        base.mark_text(fontSize=min(12, size // 3)).encode(
            text=alt.Text("value:Q", format=".1f" if field == "distance" else ".2f"),
            color=alt.condition(
                f"datum.value > {0.6 * _top(field, frame['value'])}", alt.value("black"), alt.value("white")
            ),
        )
        if field
        else base.mark_image(width=size - 8, height=size - 8, smooth=False).encode(url="picture:N", tooltip=tooltip)
    )
    click = alt.selection_point(name="head", fields=["layer", "head"], on="click", clear=False)
    return (
        alt.layer(frames.add_params(click), inside)
        .properties(
            width=alt.Step(size),
            height=alt.Step(size),
            description=f"{kind} layers by head: {MEASURES[measure][1]}.",
            autosize=alt.AutoSizeParams(type="pad"),
        )
        .configure_view(stroke=None)
    )


def pattern_url(view: AttentionView) -> str:
    """A head's map as a picture, see-through where it cannot look."""
    return _png_url(view.weights, _seen(view))


def thumbnail_url(weights: np.ndarray) -> str:
    """A pooled pattern as a picture; what lies after the query is see-through."""
    return _png_url(weights, np.tri(len(weights), dtype=bool))


def _png_url(weights: np.ndarray, seen: np.ndarray) -> str:
    """A PNG in a data address, one pixel for each weight, in the colours of the legend."""
    shade = np.sqrt(np.clip(weights, 0, 1)) * (len(_VIRIDIS_RGB) - 1)
    low = np.floor(shade).astype(int).clip(0, len(_VIRIDIS_RGB) - 2)
    part = (shade - low)[..., None]
    pixels = np.zeros((*weights.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.rint(_VIRIDIS_RGB[low] * (1 - part) + _VIRIDIS_RGB[low + 1] * part)
    pixels[..., 3] = np.where(seen, 255, 0)
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _outline(kind: LayerKind) -> str:
    return "#3b82f6" if kind == "sliding" else "#f28e2b"


def _fill(field: str, values: pd.Series) -> alt.Color | alt.ColorValue:
    if not field:
        return alt.value("rgba(128, 128, 128, 0.10)")
    scale = alt.Scale(scheme="viridis", domain=[0, _top(field, values)], clamp=True)
    return alt.Color("value:Q", scale=scale, legend=None)


def _top(field: str, values: pd.Series) -> float:
    """Where the colour scale ends: 1 for weights, the largest value for bits and tokens."""
    return 1.0 if field not in ("entropy", "distance") else max(float(values.max()), 1e-9)


def _positions(n: int, down: bool = False) -> alt.Scale:
    return alt.Scale(domain=[n, 0] if down else [0, n], nice=False, zero=False)


def _axis(texts: Sequence[str], angle: int = 0) -> alt.Axis:
    """Positions along a long prompt, the tokens themselves along a short one."""
    if len(texts) > LABELLED_TOKENS:
        return alt.Axis(grid=False, tickMinStep=1, format="d")
    # JSON with ASCII escapes is also a string literal of Vega's expressions.
    labels = json.dumps([_short(text) for text in texts])
    return alt.Axis(
        grid=False,
        ticks=False,
        domain=False,
        values=[pos + 0.5 for pos in range(len(texts))],
        labelExpr=f"{labels}[floor(datum.value)]",
        labelAngle=angle,
        tickCount=len(texts),
        labelOverlap="greedy",
        labelSeparation=-3,
        labelFlush=False,
        labelFontSize=10,
    )


def _place(axis: str, cell: int) -> str:
    """A Vega expression naming a cell's token, or its tokens when it is pooled."""
    if cell == 1:
        return f"datum.{axis} + '  ' + datum.{axis}_text"
    return f"'tokens ' + datum.{axis} + ' to ' + (datum.{axis}_end - 1) + ', from ' + datum.{axis}_text"


def _quoted(text: str) -> str:
    return "“" + visible(text).replace("\n", "↵").replace("\t", "⇥") + "”"


def _short(text: str) -> str:
    shown = visible(text).strip(" ").replace("\n", "↵").replace("\t", "⇥") or "␣"
    return shown if len(shown) <= 12 else shown[:11] + "…"
