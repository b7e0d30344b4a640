"""The checkpoints that this explorer may open, and the one that is open."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import streamlit as st
import torch

from apps.parts.text import plain
from shardscope import Shard, checkpoint, load
from shardscope.checkpoint import BUILT_IN, CONFIG, RUNS, STATE, TOKENIZER, WEIGHTS
from shardscope.config import ConfigError
from shardscope.visible import visible

DEPTH = 4
MOST_TRIED = 8  # broken checkpoints that are passed over for one that opens
MAKE_ONE = "train one in a few minutes with `make demo`, or start the explorer with a folder of checkpoints: "
MAKE_ONE += "`streamlit run apps/explorer.py -- FOLDER`"


# What a stranger's files may make of opening them.
FAILURES = (ValueError, OSError, RuntimeError, KeyError, TypeError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Opened:
    """A loaded checkpoint. Sessions share it: hold `lock` while the model runs, because hooks are attached to it."""

    name: str
    path: Path
    fingerprint: str  # of its weights, config and tokenizer: what caches are keyed by
    step: int | None
    model: Shard
    lock: Lock


def start_folders() -> list[Path]:
    """The folders named on the command line, else the built-in checkpoint and `runs/`."""
    return [Path(word) for word in sys.argv[1:]] or [BUILT_IN, RUNS]


def find_checkpoints(folders: list[Path]) -> dict[str, Path]:
    """Name to folder of every checkpoint below `folders`: folder by folder, the newest of each first. Links that lead
    elsewhere are not followed, and names that are not UTF-8 have their bytes written out."""
    found: dict[str, Path] = {}
    place: dict[str, int] = {}
    for number, folder in enumerate(folders):
        root = real(folder)
        for path in below(root, (WEIGHTS, CONFIG)):
            if path in found.values():  # named by itself, too
                continue
            inside = [part for part in path.relative_to(root).parts if part != "checkpoints"]
            name = "built-in" if root == real(BUILT_IN) else visible("/".join([root.name, *inside]))
            name = visible(str(path)) if name in found else name
            found[name], place[name] = path, number
    return dict(sorted(found.items(), key=lambda item: (place[item[0]], -weights_age(item[1]), item[0])))


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
        same = _named_otherwise(found)
        if asked and same is None:
            st.warning(f"{plain(asked)} is not among the checkpoints that this explorer was started with.")
            _forget_fingerprint()
        st.session_state.checkpoint = same or _first_that_opens(found)
    elif not _holds(found[asked], st.session_state.fingerprint) and (same := _named_otherwise(found)) is not None:
        # The name has been given to another checkpoint since; the fingerprint says which one was meant.
        st.info(f"{plain(asked)} holds another checkpoint now; the one that the address means is {plain(same)}.")
        st.session_state.checkpoint = same
    left, right = st.columns([2, 5], vertical_alignment="center")
    name = left.selectbox(
        "Checkpoint", list(found), key="checkpoint", on_change=_forget_fingerprint, label_visibility="collapsed"
    )
    opened = try_to_open(name, found[name])
    if opened is None:
        return None
    expected = st.session_state.fingerprint
    if expected and expected != opened.fingerprint:
        st.warning(
            f"The address was made with another checkpoint ({plain(expected)}) than {plain(name)} holds now "
            f"({opened.fingerprint}): what you see may differ."
        )
    else:
        st.session_state.fingerprint = opened.fingerprint
    right.caption(describe(opened))
    return opened


def _named_otherwise(found: dict[str, Path]) -> str | None:
    """The name of the checkpoint that the address means, whatever it was called then."""
    return next((name for name, path in found.items() if _holds(path, st.session_state.fingerprint)), None)


def try_to_open(name: str, path: Path) -> Opened | None:
    """The checkpoint; None, with one sentence on the page, when it is broken, foreign or without a tokenizer."""
    try:
        opened = open_checkpoint(name, os.fsencode(path), written(path))
    except FAILURES as error:
        st.error(f"{plain(name)} cannot be opened: {plain(str(error))}")
        return None
    if opened.model.tokenizer is None:
        st.error(f"{plain(name)} has no tokenizer; put the tokenizer.json that it was trained with beside its weights.")
        return None
    return opened


def _first_that_opens(found: dict[str, Path]) -> str:
    """The first that can be shown, with a line on the page for each that was passed over; the first if none can."""
    problems = []
    for name, path in list(found.items())[:MOST_TRIED]:
        try:
            if open_checkpoint(name, os.fsencode(path), written(path)).model.tokenizer is not None:
                break
            problems.append(f"{plain(name)} has no tokenizer.")
        except FAILURES as error:
            problems.append(f"{plain(name)} cannot be opened: {plain(str(error))}")
    else:
        return next(iter(found))
    for problem in problems:
        st.warning(problem)
    return name


def _forget_fingerprint() -> None:
    st.session_state.fingerprint = ""


@st.cache_resource(max_entries=2, show_spinner="Opening the checkpoint …")
def open_checkpoint(name: str, path: bytes, changed: tuple[int, ...]) -> Opened:
    folder = Path(os.fsdecode(path))  # in bytes, because a name that is not UTF-8 is no key for a cache
    return Opened(name, folder, fingerprint(folder), checkpoint.step_of(folder), load(folder, device()), Lock())


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def fingerprint(folder: Path) -> str:
    """The first twelve digits of the checkpoint's fingerprint."""
    return _digest(os.fsencode(folder), written(folder))


@st.cache_data(max_entries=256, show_spinner=False)
def _digest(folder: bytes, changed: tuple[int, ...]) -> str:
    return checkpoint.fingerprint(Path(os.fsdecode(folder)))[:12]


def _holds(folder: Path, wanted: str) -> bool:
    """Whether a checkpoint, under whatever name, is the one whose fingerprint an address holds."""
    try:
        return bool(wanted) and os.path.exists(folder / WEIGHTS) and fingerprint(folder) == wanted
    except (OSError, ConfigError):  # a pipe or a folder in the place of a file
        return False


def run_of(opened: Opened) -> Path | None:
    """The folder of the run that wrote the checkpoint; None for one that stands alone."""
    return opened.path.parent.parent if opened.path.parent.name == "checkpoints" else None


def describe(opened: Opened) -> str:
    """Which checkpoint, step and tokenizer the page shows, as Markdown."""
    config, tokenizer = opened.model.config, opened.model.tokenizer
    assert tokenizer is not None
    sliding = config.layer_kinds.count("sliding")
    parts = [
        plain(opened.name) if opened.step is None else f"{plain(opened.name)}, step {opened.step:,}",
        f"fingerprint {opened.fingerprint}",
        f"{opened.model.n_params:,} parameters",
        f"{config.n_layers} layers ({sliding} sliding, {config.n_layers - sliding} global) of {config.n_heads} heads",
        f"window {config.window}, context {config.n_ctx}",
        f"tokenizer {tokenizer.fingerprint[:8]}, {tokenizer.vocab_size:,} entries",
    ]
    return " · ".join(parts)


def below(folder: Path, signs: tuple[str, ...], depth: int = DEPTH) -> list[Path]:
    """Folders that hold one of the files `signs`, whole or broken, at most `depth` levels down. No link is followed."""
    # os.path, because a Path raises where a folder may not be entered.
    if any(os.path.lexists(folder / sign) for sign in signs):
        return [folder]
    if depth == 0 or not os.path.isdir(folder):
        return []
    try:
        inside = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [
        path for inner in sorted(inside) if not inner.name.startswith(".") for path in below(inner, signs, depth - 1)
    ]


def weights_age(path: Path) -> int:
    """When the weights were written, in nanoseconds."""
    return _age(path / WEIGHTS)


def written(path: Path) -> tuple[int, ...]:
    """When each file of a checkpoint was written, in nanoseconds; 0 for one that is not there."""
    return tuple(_age(path / name) for name in (WEIGHTS, CONFIG, TOKENIZER, STATE))


def _age(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def real(folder: Path) -> Path:
    """The folder without links on the way to it; links that lead in a circle stay, and then hold nothing."""
    return Path(os.path.realpath(folder))
