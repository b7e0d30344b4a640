"""The checkpoints that this explorer may open, and the one that is open."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import streamlit as st

from apps.parts.text import plain
from shardscope import Shard, load
from shardscope.checkpoint import BUILT_IN, CONFIG, RUNS, STATE, WEIGHTS, read_json

DEPTH = 4
MAKE_ONE = "train one in a few minutes with `make demo`, or start the explorer with a folder of checkpoints: "
MAKE_ONE += "`streamlit run apps/explorer.py -- FOLDER`"


@dataclass(frozen=True)
class Opened:
    """A loaded checkpoint. Sessions share it: hold `lock` while the model runs, because hooks are attached to it."""

    name: str
    key: tuple[str, int]  # path and time of its weights: what caches are keyed by
    step: int | None
    model: Shard
    lock: Lock


def start_folders() -> list[Path]:
    """The folders named on the command line, else the built-in checkpoint and `runs/`."""
    return [Path(word) for word in sys.argv[1:]] or [BUILT_IN, RUNS]


def find_checkpoints(folders: list[Path]) -> dict[str, Path]:
    """Name to folder of every checkpoint below `folders`: the built-in one first, then the newest. Links that lead
    elsewhere are not followed."""
    found: dict[str, Path] = {}
    for folder in folders:
        root = folder.resolve()
        for path in _below(root, DEPTH):
            inside = [part for part in path.relative_to(root).parts if part != "checkpoints"]
            name = "built-in" if root == BUILT_IN.resolve() else "/".join([root.name, *inside])
            found[str(path) if name in found else name] = path
    return dict(sorted(found.items(), key=lambda item: (item[0] != "built-in", -_age(item[1]), item[0])))


def pick_checkpoint() -> Opened | None:
    """Draw the picker and what it picked; None, with one sentence on the page, when nothing can be opened."""
    folders = start_folders()
    found = find_checkpoints(folders)
    if not found:
        st.title("Shardscope")
        st.info(f"There is no checkpoint under {plain(', '.join(map(str, folders)))} yet: {MAKE_ONE}.")
        return None
    asked = st.session_state.checkpoint
    if asked not in found:
        if asked:
            st.warning(f"{plain(asked)} is not among the checkpoints that this explorer was started with.")
        st.session_state.checkpoint = next(iter(found))
    left, right = st.columns([2, 3], vertical_alignment="bottom")
    name = left.selectbox("Checkpoint", list(found), key="checkpoint")
    try:
        opened = open_checkpoint(name, str(found[name]), _age(found[name]))
    except (ValueError, OSError, RuntimeError, KeyError, TypeError) as error:
        st.error(f"{plain(name)} cannot be opened: {plain(str(error))}")
        return None
    if opened.model.tokenizer is None:
        st.error(f"{plain(name)} has no tokenizer; put the tokenizer.json that it was trained with beside its weights.")
        return None
    right.caption(describe(opened))
    return opened


@st.cache_resource(max_entries=2, show_spinner="Opening the checkpoint …")
def open_checkpoint(name: str, path: str, changed: int) -> Opened:
    return Opened(name=name, key=(path, changed), step=_step(Path(path)), model=load(path), lock=Lock())


def describe(opened: Opened) -> str:
    """Which checkpoint, step and tokenizer the page shows, as Markdown."""
    config, tokenizer = opened.model.config, opened.model.tokenizer
    assert tokenizer is not None
    sliding = config.layer_kinds.count("sliding")
    parts = [
        plain(opened.name) if opened.step is None else f"{plain(opened.name)}, step {opened.step:,}",
        f"{opened.model.n_params:,} parameters",
        f"{config.n_layers} layers ({sliding} sliding, {config.n_layers - sliding} global) of {config.n_heads} heads",
        f"window {config.window}, context {config.n_ctx}",
        f"tokenizer {tokenizer.fingerprint[:8]}, {tokenizer.vocab_size:,} entries",
    ]
    return " · ".join(parts)


def _below(folder: Path, depth: int) -> list[Path]:
    """Folders that look like checkpoints, whole or broken, at most `depth` levels down."""
    if (folder / WEIGHTS).exists() or (folder / CONFIG).exists():
        return [folder]
    if depth == 0 or not folder.is_dir():
        return []
    try:
        inside = [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [
        path for name in sorted(inside) if not Path(name).name.startswith(".") for path in _below(Path(name), depth - 1)
    ]


def _age(path: Path) -> int:
    """When the weights were written, in nanoseconds."""
    file = path / WEIGHTS
    return file.stat().st_mtime_ns if file.exists() else 0


def _step(path: Path) -> int | None:
    """The step of a checkpoint, from its training state, its notes, or its folder's name."""
    for file in (path / STATE, path / CONFIG):
        if file.exists() and isinstance(step := read_json(file).get("step"), int):
            return step
    match = re.fullmatch(r"step-(\d+)", path.name)
    return int(match[1]) if match else None
