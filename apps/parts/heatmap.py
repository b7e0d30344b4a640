"""A map of weights to hover over and to cut rectangles from, drawn in the browser by heatmap.js.

Weights are sent as the square root in 16 bits, which is off by less than 2e-5, and drawn in viridis on that same scale:
colour-blind people can read it, and attention is heavy-tailed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from apps.parts.downloads import DOWNLOADS_JS, sent_once
from shardscope.colors import MARK, VIRIDIS
from shardscope.visible import on_one_line

CODES = 65535  # of weight 1
_HTML = """<div class="heatmap"><div class="frame"><canvas tabindex="0" role="application"></canvas>
<div class="tip" role="status" hidden></div></div>
<div class="below"><span class="what"></span><span class="bar"></span><span class="top"></span>
<button type="button" class="save">Save as PNG</button></div></div>"""
_CSS = """
.heatmap { font-family: var(--st-font); color: var(--st-text-color); font-size: 0.8rem; }
.frame { position: relative; }
canvas { display: block; cursor: crosshair; touch-action: pan-y; border-radius: 4px; }
canvas:focus-visible { outline: 2px solid var(--st-primary-color); }
.tip { position: absolute; pointer-events: none; white-space: pre; z-index: 2; padding: 5px 8px; border-radius: 6px;
       background: var(--st-background-color); border: 1px solid var(--st-border-color, gray);
       font-family: var(--st-code-font); font-size: 0.78rem; unicode-bidi: plaintext; }
.below { display: flex; flex-wrap: wrap; align-items: center; gap: 8px; padding: 4px 0 0 52px; }
.bar { width: 120px; height: 10px; border-radius: 2px; }
.save { margin-left: auto; font: inherit; color: inherit; background: none; border-radius: 6px; padding: 2px 8px;
        border: 1px solid var(--st-border-color, gray); cursor: pointer; }
"""
_COLORS = f'const VIRIDIS = {json.dumps([list(bytes.fromhex(color)) for color in VIRIDIS])};\nconst EDGE = "{MARK}";\n'
_JS = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
_heatmap = st.components.v2.component("heatmap", html=_HTML, css=_CSS, js=DOWNLOADS_JS + _COLORS + _JS)


@dataclass(frozen=True)
class Side:
    """One side of a map: tokens (or distances) first … end - 1, `cell` to a square, and each square's first text."""

    title: str
    first: int
    end: int
    cell: int = 1
    texts: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        count = -(-(self.end - self.first) // self.cell)
        texts = [f"“{on_one_line(text)}”" for text in self.texts]
        return {
            "title": self.title,
            "first": self.first,
            "end": self.end,
            "cell": self.cell,
            "count": count,
            "texts": texts,
        }


def heatmap(
    key: str,
    weights: np.ndarray,
    rows: Side,
    columns: Side,
    *,
    label: str,
    name: str,
    what: str = "Weight",
    window: int | None = None,
    distance: bool = False,
    rectangle: tuple[int, int, int, int] | None = None,
    query: int | None = None,
    height: int = 620,
    on_rectangle: Callable[[list[int]], None] | None = None,
    on_pick: Callable[[list[int]], None] | None = None,
) -> None:
    """Draw weights[row, column]; what a query cannot see is left blank.

    `distance`: the columns are distances and not keys. `rectangle` is (query, query end, key, key end); `on_rectangle`
    is called with a new one, `on_pick` with the [query, key] that was clicked. `name` names the saved picture.
    """
    seen = visible_squares(rows, columns, window, distance)
    shown = weights[seen]
    with st.container(gap=None):
        data = {
            "label": label,
            "name": name,
            "what": what,
            "weights": sent_once(key, pack(weights, seen)),
            "seen": spans(seen),
            "top": max(float(shown.max()), 1e-6) if shown.size else 1.0,
            "rows": rows.to_json(),
            "columns": columns.to_json(),
            "window": window,
            "distance": distance,
            "rectangle": rectangle,
            "query": query,
            "height": height,
            "selectable": on_rectangle is not None,
        }
        _heatmap(
            key=key,
            data=data,
            on_rectangle_change=_told(key, "rectangle", on_rectangle),
            on_pick_change=_told(key, "pick", on_pick),
        )


def pack(weights: np.ndarray, seen: np.ndarray) -> str:
    """The weights of the squares that are seen, row by row, as base64-coded little-endian numbers of 16 bits.

    Not compressed: a browser only inflates in the background, behind all that a rerun asks of it.
    """
    coded = np.rint(np.sqrt(np.clip(weights[seen], 0, 1)) * CODES).astype("<u2")
    return base64.b64encode(coded.tobytes()).decode()


def spans(seen: np.ndarray) -> list[list[int]]:
    """The first column of each row that is seen, and the one after the last."""
    first = seen.argmax(axis=1)
    return np.stack([first, first + seen.sum(axis=1)], axis=1).tolist()


def visible_squares(rows: Side, columns: Side, window: int | None, distance: bool) -> np.ndarray:
    """Which squares hold at least one pair of query and key that the head can see."""
    last_query = np.minimum(np.arange(rows.first, rows.end, rows.cell) + rows.cell, rows.end)[:, None] - 1
    column = np.arange(columns.first, columns.end, columns.cell)[None, :]
    if distance:
        return column <= last_query
    seen = column <= last_query
    if window is not None:
        first_query = np.arange(rows.first, rows.end, rows.cell)[:, None]
        seen &= np.minimum(column + columns.cell, columns.end) - 1 > first_query - window
    return seen


def _told(key: str, event: str, call: Callable[[list[int]], None] | None) -> Callable[[], None]:
    def tell() -> None:
        value = getattr(st.session_state[key], event, None)
        if call is not None and value is not None:
            call([int(number) for number in value])

    return tell
