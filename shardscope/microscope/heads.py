"""Every head in numbers, over the whole prompt, and the search by them.

One pass over the rows of each head, in blocks. All that depends on the distance alone (previous token, mass by
distance, reach, mean distance) is read off one profile: the sums along the block's diagonals.

Axes: pos (query, key), head; `cell` counts the squares of a small map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shardscope.config import LayerKind, suggest
from shardscope.microscope.reading import (
    LayerReading,
    MicroscopeError,
    PooledMap,
    Progress,
    Reading,
    add_pooled,
    cell_sizes,
    read,
)
from shardscope.model import Prompt, Shard

THUMBNAIL_CELLS = 32
# What `find_heads` can search by.
SCORES = {
    "induction": "mass on tokens that followed an earlier occurrence of the current token",
    "previous": "mass on the token before",
    "duplicate": "mass on earlier occurrences of the current token",
    "sink": "mass on the first token",
    "reach": "mass further back than any sliding layer can see",
    "entropy": "bits; 0 is all mass on one token",
    "distance": "mean distance to what is read, in tokens",
}


@dataclass(frozen=True, eq=False)
class HeadScores:
    """One head in numbers: means over all queries but the first, which has nothing to choose.

    Masses are between 0 and 1. `duplicate` and `induction` are TransformerLens's `duplicate_token_head` and
    `induction_head` detection patterns (Elhage et al. 2021, Olsson et al. 2022), at any lag. `reach` is the mass on
    keys at distance >= config.window, exactly 0 for a sliding head. `mass_by_distance[i]` is the mass at distances
    `distance_edges[i]` … `distance_edges[i + 1] - 1`: doubling bins, cut at the window's edge too.
    """

    layer: int
    head: int
    kind: LayerKind
    window: int | None
    entropy: float  # bits
    sink: float
    previous: float
    duplicate: float
    induction: float
    reach: float
    distance: float  # tokens
    distance_edges: Int[np.ndarray, "edges"]
    mass_by_distance: Float[np.ndarray, "bins"]
    map: PooledMap  # all queries and keys in few squares


@overload
def head_scores(
    source: Shard, prompt: Prompt, *, progress: Progress | None = None, max_cells: int = THUMBNAIL_CELLS
) -> list[HeadScores]: ...
@overload
def head_scores(
    source: Reading, *, progress: Progress | None = None, max_cells: int = THUMBNAIL_CELLS
) -> list[HeadScores]: ...
def head_scores(
    source: Any,
    prompt: Any = None,
    *,
    progress: Progress | None = None,
    max_cells: int = THUMBNAIL_CELLS,
) -> list[HeadScores]:
    """Every head of every layer over a prompt, layer by layer: `head_scores(model, prompt)`.

    `head_scores(reading)` is the same for what `read` returned, without another pass. Each head comes with its map in
    at most `max_cells` squares on a side. `progress` is called with the share done and a few words. Raises PromptError
    for a prompt that the model cannot read, MicroscopeError where the prompt is missing or there is one too many.
    """
    if isinstance(source, Shard) and prompt is None:
        raise MicroscopeError(
            "head_scores(model) lacks a prompt; use head_scores(model, prompt) or head_scores(reading)"
        )
    if isinstance(source, Reading) and prompt is not None:
        raise MicroscopeError(
            "a reading has its prompt already; use head_scores(reading) or head_scores(model, prompt)"
        )
    if not isinstance(source, Shard | Reading):
        raise MicroscopeError(
            f"head_scores takes a model and a prompt, or a reading, not {type(source).__name__}; "
            "use head_scores(model, prompt) or head_scores(reading)"
        )
    if max_cells < 1:
        raise MicroscopeError(f"max_cells={max_cells} leaves nothing to draw; use at least 1")
    reading = source if isinstance(source, Reading) else read(source, prompt, progress=progress)
    scores: list[HeadScores] = []
    for layer in reading.layers:
        scores += _layer_scores(layer, reading, max_cells)
        if progress is not None:
            done = layer.layer + 1
            progress(done / len(reading.layers), f"scored the heads of layer {done} of {len(reading.layers)}")
    return scores


def find_heads(
    scores: Sequence[HeadScores], by: str = "induction", top: int = 10, kind: LayerKind | None = None
) -> list[HeadScores]:
    """The `top` heads with the largest score `by` (a key of SCORES), of one kind of layer or of both.

    Raises MicroscopeError for an unknown score or kind.
    """
    if by not in SCORES:
        raise MicroscopeError(f"there is no score {by!r}{suggest(by, SCORES)}")
    if kind not in (None, "sliding", "global"):
        raise MicroscopeError(f"there is no kind of layer {kind!r}; use 'sliding', 'global', or None for both")
    if top < 1:
        raise MicroscopeError(f"top={top} finds nothing; ask for at least one head")
    found = [score for score in scores if kind in (None, score.kind)]
    return sorted(found, key=lambda score: -getattr(score, by))[:top]


def distance_edges(n_tokens: int, window: int) -> Int[np.ndarray, "edges"]:
    """0, 1, 2, 4, 8 … n_tokens, and the window's edge where it lies between."""
    doubling = [2**power for power in range(n_tokens.bit_length())]
    return np.array(sorted({0, n_tokens, *(edge for edge in (*doubling, window) if edge < n_tokens)}))


@torch.no_grad()
def _layer_scores(layer: LayerReading, reading: Reading, max_cells: int) -> list[HeadScores]:
    n, heads, device = layer.n_tokens, layer.n_heads, layer.q.device
    cell = -(-n // max_cells)
    cells = -(-n // cell)
    minus_entropy, sinks = torch.zeros(heads, device=device), torch.zeros(heads, device=device)
    by_distance, matches = torch.zeros(heads, n, device=device), torch.zeros(heads, 2, device=device)
    sums, largest = (torch.zeros(heads, cells, cells, device=device) for _ in range(2))
    for queries in layer.blocks(range(n), cell):
        for head in range(heads):
            keys, log_weights = layer.log_rows(head, queries)
            if head == 0:
                rows = _Rows(queries, keys, device)
                wanted = _matches(reading.ids, rows)
            torch.exp(log_weights, out=rows.weights)
            minus_entropy[head] += log_weights.mul_(rows.weights).sum()
            matches[head] += wanted @ rows.padded
            by_distance[head, : len(keys)] += rows.by_distance()
            if keys.start == 0:
                sinks[head] += rows.weights[:, 0].sum()
            add_pooled(sums[head], largest[head], rows.weights, queries.start, keys.start, cell, cell)
    # The first query sees only itself: from here on it is left out, unless there is no other.
    first = 1 if n > 1 else 0
    means, maxima = sums.cpu().numpy() / np.outer(cell_sizes(n, cell), cell_sizes(n, cell)), largest.cpu().numpy()
    sink = (sinks - first).cpu().numpy() / (n - first)
    entropy = -minus_entropy.cpu().numpy() / (n - first) / np.log(2)
    duplicate, induction = matches.cpu().numpy().T / (n - first)
    mass = by_distance.double().cpu().numpy()
    mass[:, 0] -= first
    mass /= n - first
    edges, window = distance_edges(n, reading.config.window), reading.config.window
    return [
        HeadScores(
            layer=layer.layer,
            head=head,
            kind=layer.kind,
            window=layer.window,
            entropy=float(entropy[head]),
            sink=float(sink[head]),
            previous=float(mass[head, 1:2].sum()),
            duplicate=float(duplicate[head]),
            induction=float(induction[head]),
            reach=float(mass[head, window:].sum()),
            distance=float(mass[head] @ np.arange(n)),
            distance_edges=edges,
            mass_by_distance=np.add.reduceat(mass[head], edges[:-1]),
            map=PooledMap(range(n), range(n), cell, means[head], maxima[head]),
        )
        for head in range(heads)
    ]


class _Rows:
    """Whole rows of one head, laid out so that a diagonal is a column of a view.

    A row is followed by as many zeros as the block has queries, less one. Reading the same memory with rows one longer
    shifts every row by one more than the row above, which puts equal distances under each other.
    """

    def __init__(self, queries: range, keys: range, device: torch.device) -> None:
        self.queries, self.keys = queries, keys
        # The sum over queries is a product with ones: as fast as memory.
        self.ones = torch.ones(len(queries), device=device)
        gap = len(queries) - 1
        width = len(keys) + gap
        memory = torch.zeros(gap + len(queries) * width, device=device)
        self.padded = memory[gap:]  # [query · (key + gap)]
        self.weights = self.padded.view(len(queries), width)[:, : len(keys)]  # [query key], to be written into
        self.diagonals = memory.as_strided((len(queries), width), (width + 1, 1))

    def by_distance(self) -> Float[Tensor, "key"]:
        """What the queries together give to distance 0, 1, 2 …"""
        return (self.ones @ self.diagonals).flip(0)[len(self.queries) - 1 :]


def _matches(ids: Int[Tensor, "pos"], rows: _Rows) -> Float[Tensor, "two padded"]:
    """Ones where keys are earlier occurrences of the query's token, and where they follow one, laid out as the rows."""
    queries, keys = rows.queries, rows.keys
    found = torch.zeros(2, len(rows.padded), device=ids.device)
    for shift, mask in enumerate(found.view(2, len(queries), -1)):
        before = range(max(keys.start - shift, 0), keys.stop - shift)
        same = ids[queries.start : queries.stop, None] == ids[before.start : before.stop]
        mask[:, len(keys) - len(before) : len(keys)] = same.tril_(queries.start - before.start - 1)
    return found
