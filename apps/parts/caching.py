"""Long work, done once: cached for all sessions, keyed by plain values, with its progress on the page while it runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import streamlit as st
import torch

from apps.parts.checkpoints import Opened, device, fingerprint
from apps.parts.heads import sprite
from apps.parts.text import plain
from shardscope import load
from shardscope.microscope import (
    HeadScores,
    LayerReading,
    PooledBand,
    PooledMap,
    Reading,
    head_scores,
    read_layers,
)
from shardscope.model import HookPoint

Result = TypeVar("Result")
Report = Callable[[float, str], None]
Ids = tuple[int, ...]

MAP_CELLS = 256  # on a side of a whole map


@st.cache_resource
def _results(kind: str) -> OrderedDict[Hashable, Any]:
    return OrderedDict()


def cached(kind: str, key: Hashable, most: int, words: str, work: Callable[[Report], Result]) -> Result:
    """`work`'s result, from the `most` results of this kind that were used last, if it is among them.

    `words` say what is being done while it is not; without them, for quick work, nothing is said.
    """
    results = _results(kind)
    found: Result | None = results.get(key)
    if found is None:
        found = _watched(words, work) if words else work(lambda share, said: None)
    # To the end, where what was used last stays longest. Sessions share the results: the key may be gone by now.
    results.pop(key, None)
    results[key] = found
    while len(results) > most:
        results.popitem(last=False)
    return found


def _watched(words: str, work: Callable[[Report], Result]) -> Result:
    place = st.empty()
    try:
        with place.status(words, expanded=True):
            bar = st.progress(0.0)

            def report(share: float, said: str) -> None:
                bar.progress(min(max(share, 0.0), 1.0), said)

            return work(report)
    finally:
        place.empty()  # after the status has ended, which draws it once more


class PartialReading:
    """A prompt that is read layer by layer, as far as somebody has asked for."""

    def __init__(self, opened: Opened, ids: Ids) -> None:
        self.opened = opened
        self.ids = torch.tensor(ids)
        self._lock = Lock()
        self._begin()

    def _begin(self) -> None:
        self.layers: list[LayerReading] = []
        self._rest = read_layers(self.opened.model, self.ids)

    def upto(self, layer: int) -> LayerReading:
        """This layer; the page says so while it is waited for."""
        if layer >= len(self.layers):
            _watched("Reading the prompt …", lambda report: self._read(layer, report))
        return self.layers[layer]

    def _read(self, layer: int, report: Report) -> None:
        n_layers = self.opened.model.config.n_layers
        while layer >= len(self.layers):
            report(len(self.layers) / n_layers, f"layer {len(self.layers) + 1} of {n_layers}")
            with self._lock:  # sessions share it
                if layer >= len(self.layers):
                    try:
                        self.layers.append(alone(self.opened, lambda: next(self._rest)))
                    except BaseException:
                        self._begin()  # a pass that broke off does not go on
                        raise


def _reading(opened: Opened, ids: Ids) -> PartialReading:
    """400 MB of shard-54m at its whole context, so only two stay."""
    return cached("reading", (opened.fingerprint, ids), 2, "", lambda _: PartialReading(opened, ids))


def cached_layer(opened: Opened, ids: Ids, layer: int) -> LayerReading:
    """The queries and keys of a layer; what comes after it is not read for it."""
    return _reading(opened, ids).upto(layer)


def cached_reading(opened: Opened, ids: Ids) -> Reading:
    """The queries and keys of every layer."""
    partial = _reading(opened, ids)
    partial.upto(opened.model.config.n_layers - 1)
    return Reading(opened.model.config, torch.tensor(ids).to(opened.model.device), partial.layers)


def cached_scores(opened: Opened, ids: Ids) -> list[HeadScores]:
    """Every head in numbers and as a map: 50 MB of shard-54m, so only two stay."""
    reading = cached_reading(opened, ids)
    return cached(
        "scores and maps",
        (opened.fingerprint, ids),
        2,
        "Scoring all heads …",
        lambda report: head_scores(reading, progress=report, max_cells=MAP_CELLS),
    )


def cached_small_maps(opened: Opened, ids: Ids) -> str:
    """Every head as a small map, in one picture."""
    key = (opened.fingerprint, ids)
    return cached("small maps", key, 16, "", lambda _: sprite(cached_scores(opened, ids), opened.model.config))


def cached_scores_of(path: Path, ids: Ids) -> list[HeadScores]:
    """Every head in numbers, of a checkpoint that is not open and need not stay so."""

    def work(report: Report) -> list[HeadScores]:
        return head_scores(load(path, device()), ids, progress=report)

    return cached("scores", (fingerprint(path), ids), 64, f"Scoring the heads of {plain(path.name)} …", work)


def cached_map(opened: Opened, ids: Ids, reading: LayerReading, head: int, by_distance: bool) -> PooledMap | PooledBand:
    """One head's map, or its band."""
    if not by_distance:
        for score in _results("scores and maps").get((opened.fingerprint, ids), ()):
            if (score.layer, score.head) == (reading.layer, head):
                return score.map
    pooled = reading.pooled_band if by_distance else reading.pooled
    key = (opened.fingerprint, ids, reading.layer, head, by_distance)
    return cached("maps", key, 32, "", lambda _: pooled(head, MAP_CELLS))


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
