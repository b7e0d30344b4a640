"""Taking a view away: a notebook cell that computes the same numbers, and its table as CSV and as a picture.

A cell is only written out, and a file only made, when somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from apps.parts.checkpoints import Opened
from apps.parts.prompt import Asked
from shardscope.microscope import PooledBand, PooledMap
from shardscope.visible import on_one_line

Rectangle = tuple[int, int, int, int]
MOST_ROWS = 200  # of a table that is drawn


def buttons(
    name: str,
    file: str,
    cell: Callable[[], str],
    table: Callable[[], pd.DataFrame],
    picture: bool = True,
    png: Callable[[], bytes] | None = None,
) -> None:
    """A button that opens a view's notebook cell, and its table to be saved as CSV and, with `picture`, as SVG.

    A view that is a picture has a button of its own to save that, or has it drawn by `png`. Files are named `file` with
    the ending.
    """
    label = "Copy notebook cell, save CSV" + " or SVG" * picture + " or PNG" * (png is not None)
    popover = st.popover(label, icon=":material/code:", type="tertiary", key=f"take {name}", on_change="rerun")
    if not popover.open:
        return
    rows = table()
    with popover:
        with st.container(horizontal=True):
            _save(f"{name}.csv", f"{file}.csv", "text/csv", rows.to_csv(index=False).encode())
            if picture:
                _save(f"{name}.svg", f"{file}.svg", "image/svg+xml", table_svg(rows).encode())
            if png is not None:
                _save(f"{name}.png", f"{file}.png", "image/png", png())
        st.caption("The same numbers in Python: the sign in the corner copies the cell.")
        st.code(cell(), language="python", height=200)


def _save(label: str, file: str, mime: str, data: bytes) -> None:
    st.download_button(
        label,
        data=data,
        file_name=file,
        mime=mime,
        icon=":material/download:",
        on_click="ignore",
        key=f"save {label}",
    )


def table_svg(table: pd.DataFrame) -> str:
    """A table as a picture: its first MOST_ROWS rows in a font of even width."""
    body = [[_shown(value) for value in row] for row in table.head(MOST_ROWS).itertuples(index=False)]
    if (more := len(table) - len(body)) > 0:
        body.append([f"… and {more:,} more rows", *[""] * (table.shape[1] - 1)])
    rows = [[str(name) for name in table.columns], *body]
    widths = [max(len(row[column]) for row in rows[: MOST_ROWS + 1]) + 2 for column in range(table.shape[1])]
    starts = [10 + round(7.9 * sum(widths[:column])) for column in range(len(widths))]
    texts = [
        f'<text x="{x}" y="{22 + 19 * line}" font-weight="{400 if line else 700}">{escape(text)}</text>'
        for line, row in enumerate(rows)
        for x, text in zip(starts, row, strict=True)
    ]
    size = f'width="{20 + round(7.9 * sum(widths))}" height="{19 * len(rows) + 16}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="monospace" font-size="13" xml:space="preserve">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(texts)}</svg>'
    )


def _shown(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else on_one_line(str(value))


def file_name(asked: Asked, *parts: str) -> str:
    """A name that tells saved views apart: the checkpoint, then what is shown."""
    return "-".join(["shardscope", asked.opened.fingerprint, *parts])


def map_table(pooled: PooledMap | PooledBand) -> pd.DataFrame:
    """A line for each square of a map: the queries and keys (or distances) from … to that it pools."""
    if isinstance(pooled, PooledBand):
        name, queries, others = "distance", range(pooled.n_tokens), range(min(pooled.window, pooled.n_tokens))
        cells = (pooled.cell, pooled.distance_cell)
    else:
        name, queries, others, cells = "key", pooled.queries, pooled.keys, (pooled.cell, pooled.cell)
    query, other = (grid.ravel() for grid in np.meshgrid(queries[:: cells[0]], others[:: cells[1]], indexing="ij"))
    return pd.DataFrame(
        {
            "query": query,
            "query_end": np.minimum(query + cells[0], queries.stop),
            name: other,
            f"{name}_end": np.minimum(other + cells[1], others.stop),
            "mean": pooled.mean.ravel(),
            "max": pooled.max.ravel(),
        }
    )


# ------------------------------------------------------------------------------------------------- cells


def opening(asked: Asked) -> str:
    """The first lines of every cell: the model and the tokens."""
    return (
        "import torch\n"
        + loading(asked.opened)
        + (
            f"prompt = {asked.prompt!r}\n"
            f"new = {list(asked.new.ids)}  # the continuation\n"
            "ids = torch.tensor(model.tokenizer.encode(prompt, bos=True) + new)\n\n"
        )
    )


def loading(opened: Opened) -> str:
    """The lines that load the model."""
    step = "" if opened.step is None else f", step {opened.step}"
    path = str(relative(opened.path))
    return f"from shardscope import load\n\nmodel = load({path!r})  # fingerprint {opened.fingerprint}{step}\n"


def tile_cell(asked: Asked, layer: int, head: int, rectangle: Rectangle) -> str:
    """A cell that leaves the exact weights of a rectangle in `tile`, from the hooked queries and keys."""
    q0, q1, k0, k1 = rectangle
    window = asked.opened.model.config.windows[layer]
    seen = "(distance >= 0)" if window is None else f"(distance >= 0) & (distance < {window})"
    return opening(asked) + (
        f'names = ["blocks.{layer}.attn.hook_rot_q", "blocks.{layer}.attn.hook_rot_k"]\n'
        f"_, cache = model.run_with_cache(ids[None], names_filter=names, stop_at_layer={layer + 1})\n"
        f'q, k = cache["rot_q", {layer}][0, :, {head}], cache["rot_k", {layer}][0, :, {head}]\n'
        f"distance = torch.arange({q0}, {q1})[:, None] - torch.arange(len(ids))\n"
        f"scores = q[{q0}:{q1}].float() @ k.float().T / q.shape[-1] ** 0.5\n"
        f"pattern = scores.masked_fill(~({seen}), -torch.inf).softmax(dim=-1)\n"
        f"tile = pattern[:, {k0}:{k1}]  # layer {layer}, head {head}: queries {q0} to {q1 - 1}, keys {k0} to {k1 - 1}\n"
        "tile\n"
    )


def map_cell(asked: Asked, layer: int, head: int, call: str) -> str:
    """A cell that leaves a pooled map in `pooled`, without ever holding a dense pattern; `call` is the view."""
    return opening(asked) + (
        "from shardscope.microscope import read\n\n"
        f"layer = read(model, ids).layer({layer})  # from blocks.{layer}.attn.hook_rot_q and hook_rot_k\n"
        f"pooled = layer.{call}\n"
        "pooled.mean, pooled.max\n"
    )


def strip_cell(asked: Asked, layer: int, head: int, query: int) -> str:
    """A cell that leaves what a token reads in `reads` and what reads it in `read_by`."""
    return opening(asked) + (
        "from shardscope.microscope import read\n\n"
        f"layer = read(model, ids).layer({layer})  # from blocks.{layer}.attn.hook_rot_q and hook_rot_k\n"
        f"reads = layer.row({head}, {query})  # the weight of token {query} on every token\n"
        f"read_by = layer.column({head}, {query})  # the weight of every token on it\n"
        "reads, read_by\n"
    )


def scores_cell(asked: Asked, then: str) -> str:
    """A cell that scores every head, from the hooked queries and keys, and goes on with `then`."""
    return opening(asked) + (
        "from shardscope.microscope import find_heads, head_scores, read\n\n"
        "scores = head_scores(read(model, ids))\n" + then
    )


def relative(path: Path) -> Path:
    """The path from where the explorer runs, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
