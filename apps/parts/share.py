"""Taking a view away: a notebook cell that computes the same numbers through the hooks, and tables as CSV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import streamlit as st

from apps.parts.checkpoints import Opened
from apps.parts.prompt import Asked

Rectangle = tuple[int, int, int, int]


def notebook_cell(code: str, key: str) -> None:
    """A button that shows the cell; the copy sign in its corner copies it."""
    with st.popover("Copy notebook cell", icon=":material/code:", key=f"cell {key}", width="content"):
        st.caption("The same numbers in Python: the sign in the corner copies the cell.")
        st.code(code, language="python")


def csv_button(label: str, table: Callable[[], pd.DataFrame], file_name: str, key: str) -> None:
    """A button that saves a table, which is made when it is pressed."""
    st.download_button(
        label,
        data=lambda: table().to_csv(index=False).encode(),
        file_name=file_name,
        mime="text/csv",
        icon=":material/download:",
        on_click="ignore",
        key=f"csv {key}",
    )


def file_name(asked: Asked, *parts: str) -> str:
    """A name that tells saved views apart: the checkpoint, then what is shown."""
    return "-".join(["shardscope", asked.opened.fingerprint, *parts])


def opening(asked: Asked) -> str:
    """The first lines of every cell: the model and the tokens."""
    return (
        "import torch\n"
        + loading(asked.opened)
        + (
            f"prompt = {asked.prompt!r}\n"
            f"new = {list(asked.new.ids)}  # the continuation\n"
            "ids = torch.tensor(model.tokenizer.encode(prompt, bos=True) + new)\n"
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
        f'\nnames = ["blocks.{layer}.attn.hook_rot_q", "blocks.{layer}.attn.hook_rot_k"]\n'
        f"_, cache = model.run_with_cache(ids[None], names_filter=names, stop_at_layer={layer + 1})\n"
        f'q, k = cache["rot_q", {layer}][0, :, {head}], cache["rot_k", {layer}][0, :, {head}]\n'
        f"distance = torch.arange({q0}, {q1})[:, None] - torch.arange(len(ids))\n"
        f"scores = q[{q0}:{q1}].float() @ k.float().T / q.shape[-1] ** 0.5\n"
        f"pattern = scores.masked_fill(~({seen}), -torch.inf).softmax(dim=-1)\n"
        f"tile = pattern[:, {k0}:{k1}]  # layer {layer}, head {head}: queries {q0} to {q1 - 1}, keys {k0} to {k1 - 1}\n"
        "tile\n"
    )


def relative(path: Path) -> Path:
    """The path from where the explorer runs, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
