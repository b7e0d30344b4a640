"""All heads at a glance, as buttons: the sliding layers in one band, the global layers in another."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from apps.parts.downloads import DOWNLOADS_JS, sent_once
from apps.parts.heatmap import Side, visible_squares
from shardscope.colors import GLOBAL, SLIDING, viridis
from shardscope.config import ShardConfig
from shardscope.microscope import THUMBNAIL_CELLS, HeadScores
from shardscope.microscope.picture import png

_CSS = (
    f"section.sliding {{ --band: {SLIDING}; }} section.global {{ --band: {GLOBAL}; }}"
    + """
.heads { font-family: var(--st-font); color: var(--st-text-color); display: flex; flex-direction: column; gap: 12px; }
section { border: 1px solid var(--st-border-color, gray); border-left: 6px solid var(--band);
          background: color-mix(in srgb, var(--band) 7%, transparent); border-radius: 8px; padding: 8px 10px;
          container-type: inline-size; }
.band { margin: 0 0 6px; font-size: 0.82rem; max-width: 30em; }
.grid { display: grid; gap: 4px; align-items: center; font-size: 0.72rem; }
.name { text-align: center; opacity: 0.75; }
.head { aspect-ratio: 1; min-width: 26px; width: 100%; border: 1px solid color-mix(in srgb, gray 60%, transparent);
        border-radius: 4px; padding: 0; cursor: pointer; font: inherit; image-rendering: pixelated; color: inherit;
        background-color: color-mix(in srgb, gray 12%, transparent); overflow: hidden; }
.head:hover { border-color: var(--st-text-color); }
.head:focus-visible { outline: 3px solid var(--st-primary-color); outline-offset: 1px; }
.head[aria-pressed="true"] { outline: 3px solid #ff4fa3; outline-offset: 0; }
.save { display: block; margin: 6px 0 0 auto; font: inherit; font-size: 0.8rem; color: inherit; background: none;
        border-radius: 6px; padding: 2px 8px; border: 1px solid var(--st-border-color, gray); cursor: pointer; }
"""
)
_heads = st.components.v2.component(
    "heads",
    html='<div class="heads"></div><button type="button" class="save">Save as SVG</button>',
    css=_CSS,
    js=DOWNLOADS_JS + Path(__file__).with_suffix(".js").read_text(encoding="utf-8"),
)

Head = tuple[int, int]


@dataclass(frozen=True)
class Cell:
    """What a head's button says, its colour (None: no fill), and its full sentence."""

    title: str
    text: str = ""
    rgb: tuple[int, int, int] | None = None


def head_grid(
    key: str,
    config: ShardConfig,
    cells: Mapping[Head, Cell],
    pressed: Sequence[Head],
    on_head: Callable[[Head], None],
    *,
    name: str,
    file: str,
    small_maps: str = "",
) -> None:
    """Draw every (layer, head); `on_head` is called with the one that is clicked.

    `name` says what is shown, `file` names the saved picture. With `small_maps` (a `sprite`) every button is one.
    """
    notes = {
        "sliding": f"see the last {config.window} tokens, their own included",
        "global": "see every token before",
    }
    bands = []
    for kind in dict.fromkeys(config.layer_kinds):
        layers = [layer for layer, other in enumerate(config.layer_kinds) if other == kind]
        rows = [
            {
                "layer": layer,
                "cells": [_cell(head, cells[layer, head], (layer, head) in pressed) for head in range(config.n_heads)],
            }
            for layer in layers
        ]
        bands.append({"kind": kind, "note": notes[kind], "rows": rows})
    data: dict[str, Any] = {
        "bands": bands,
        "name": name,
        "file": file,
        "sprite": None,
        "sprite_heads": [config.n_heads, config.n_layers],
    }

    def chosen() -> None:
        if (value := getattr(st.session_state[key], "head", None)) is not None:
            on_head((int(value[0]), int(value[1])))

    with st.container(gap=None):
        if small_maps:
            data["sprite"] = sent_once(key, small_maps)
        _heads(key=key, data=data, on_head_change=chosen)


def _cell(head: int, cell: Cell, pressed: bool) -> dict[str, object]:
    if cell.rgb is None:
        return {"head": head, "text": cell.text, "title": cell.title, "pressed": pressed, "color": None}
    red, green, blue = cell.rgb
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
    color = f"rgb({red}, {green}, {blue})"
    return {"head": head, "text": cell.text, "title": cell.title, "pressed": pressed, "color": color, "ink": ink}


def sprite(scores: Sequence[HeadScores], config: ShardConfig) -> str:
    """All small maps in one picture of few colours, layers down and heads across, as a data address.

    What a head cannot see is left out: the future, and what lies outside its window.
    """
    maps = [score.map.coarser(THUMBNAIL_CELLS) for score in scores]
    size = len(maps[0].mean)
    side = Side("", 0, len(maps[0].queries), maps[0].cell)
    seen = {window: visible_squares(side, side, window, distance=False) for window in set(config.windows)}
    shades = np.zeros((config.n_layers * size, config.n_heads * size), dtype=np.uint8)
    for score, small in zip(scores, maps, strict=True):
        shade = 1 + np.rint(np.sqrt(np.clip(small.mass, 0, 1)) * 254)
        part = shades[score.layer * size :, score.head * size :][:size, :size]
        part[:] = np.where(seen[score.window], shade, 0)
    colors = np.array([viridis((shade - 1) / 254) for shade in range(256)], dtype=np.uint8)
    return "data:image/png;base64," + base64.b64encode(png(shades, colors, transparent=0)).decode()
