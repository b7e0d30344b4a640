"""Long work, done once: kept for all sessions, keyed by plain values, with its progress on the page while it runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import streamlit as st
import torch

from apps.parts.checkpoints import Opened, device, fingerprint
from apps.parts.text import plain
from shardscope import load
from shardscope.lens.microscope import HeadScores, LayerReading, PooledBand, PooledMap, Reading, head_scores, read
from shardscope.model import HookPoint

Result = TypeVar("Result")
Report = Callable[[float, str], None]
Ids = tuple[int, ...]


@st.cache_resource
def _shelf(kind: str) -> OrderedDict[Hashable, Any]:
    return OrderedDict()


def kept(kind: str, key: Hashable, most: int, words: str, work: Callable[[Report], Result]) -> Result:
    """`work`'s result, from the shelf of the `most` last results of this kind if it is there.

    `words` say what is being done while it is not; without them, for quick work, nothing is said.
    """
    shelf = _shelf(kind)
    found: Result | None = shelf.get(key)
    if found is None:
        found = _watched(words, work) if words else work(lambda share, said: None)
    # To the end, where what was used last stays longest. Sessions share the shelf: the key may be gone by now.
    shelf.pop(key, None)
    shelf[key] = found
    while len(shelf) > most:
        shelf.popitem(last=False)
    return found


def _watched(words: str, work: Callable[[Report], Result]) -> Result:
    place = st.empty()
    with place.status(words, expanded=True):
        bar = st.progress(0.0)

        def report(share: float, said: str) -> None:
            bar.progress(min(max(share, 0.0), 1.0), said)

        found = work(report)
    place.empty()
    return found


def kept_reading(opened: Opened, ids: Ids) -> Reading:
    """The queries and keys of every layer: 400 MB of shard-54m at its whole context, so only two are kept."""
    return kept(
        "reading",
        (opened.fingerprint, ids),
        2,
        "Reading the prompt …",
        lambda report: alone(opened, lambda: read(opened.model, torch.tensor(ids), progress=report)),
    )


def kept_scores(opened: Opened, ids: Ids) -> list[HeadScores]:
    """Every head in numbers."""
    reading = kept_reading(opened, ids)
    return kept(
        "scores", (opened.fingerprint, ids), 64, "Scoring all heads …", lambda report: head_scores(reading, report)
    )


def kept_scores_of(path: Path, ids: Ids) -> list[HeadScores]:
    """Every head in numbers, of a checkpoint that is not open and need not stay so."""

    def work(report: Report) -> list[HeadScores]:
        return head_scores(read(load(path, device()), torch.tensor(ids)), report)

    return kept("scores", (fingerprint(path), ids), 64, f"Scoring the heads of {plain(path.name)} …", work)


def kept_map(
    opened: Opened, ids: Ids, reading: LayerReading, head: int, cells: int, by_distance: bool
) -> PooledMap | PooledBand:
    """One head's map, or its band."""
    pooled = reading.pooled_band if by_distance else reading.pooled
    key = (opened.fingerprint, ids, reading.layer, head, cells, by_distance)
    return kept("maps", key, 32, "", lambda _: pooled(head, cells))


def alone(opened: Opened, work: Callable[[], Result], report: Report | None = None, passes: int = 1) -> Result:
    """`work` on the model while no other session runs it: hooks are attached to the model itself.

    `report` is told how far the model is; `passes` is how often `work` runs it.
    """
    blocks, done = opened.model.config.n_layers, 0

    def tell(activation: torch.Tensor, /, *, hook: HookPoint) -> None:
        nonlocal done
        done += 1
        if report is not None:
            report(done / (passes * blocks), f"layer {hook.layer() + 1} of {blocks}")

    watched = [f"blocks.{layer}.hook_resid_post" for layer in range(blocks)] if report is not None else []
    with opened.lock, opened.model.hooks(fwd_hooks=[(name, tell) for name in watched]):
        return work()
