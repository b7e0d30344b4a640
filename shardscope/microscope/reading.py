"""One pass over a prompt, and every view of its attention.

A `Reading` holds the rotated queries and keys of each layer: 2 · layers · pos · d_model numbers where the patterns
would be layers · heads · pos². A view recomputes the rows it needs in blocks of queries, so the largest thing ever held
is one block of one head's rows.

Axes: pos (query, key), head, d_head; `cell` counts the squares of a pooled map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from shardscope.config import ConfigError, LayerKind, ShardConfig
from shardscope.microscope.forward import attend_in_bands
from shardscope.model import HookPoint, Prompt, Shard
from shardscope.model.prompts import one_prompt
from shardscope.threads import use_free_cores

if TYPE_CHECKING:
    from shardscope.microscope.head_map import HeadMap

Ids = Int[Tensor, "pos"]
HeadVectors = Float[Tensor, "pos head d_head"]
Progress = Callable[[float, str], None]

MAX_CELLS = 512
MAX_TILE = 2**22  # weights of one exact rectangle: 2048 × 2048, 16 MiB
# Queries of a block: on the CPU a block and what is computed from it should fit the caches.
BLOCK_ROWS = {"cpu": 128, "cuda": 1024}
# A hidden score: its weight is exactly 0, and unlike with -inf, weight · log(weight) is 0 and not NaN.
HIDDEN = -1e30


class MicroscopeError(ConfigError):
    """What cannot be looked at: a layer, head, token or score that is not there."""


@dataclass(frozen=True)
class PooledMap:
    """One head's attention in squares of `cell` × `cell` tokens; with `cell == 1` it is the exact pattern.

    `mean` and `max` are over all weights of a square, those that a query cannot see counting 0; the last square of a
    side may hold fewer tokens. The first square begins at queries.start and keys.start.
    """

    queries: range
    keys: range
    cell: int
    mean: Float[np.ndarray, "query_cell key_cell"]
    max: Float[np.ndarray, "query_cell key_cell"]

    @property
    def mass(self) -> Float[np.ndarray, "query_cell key_cell"]:
        """What an average query of a cell gives to all keys of a cell together; rows of a whole map sum to 1."""
        return self.mean * cell_sizes(len(self.keys), self.cell)

    def coarser(self, max_cells: int) -> PooledMap:
        """The same map in larger squares, at most `max_cells` on a side."""
        factor = -(-max(self.mean.shape) // max_cells)
        cell = self.cell * factor
        sums, largest = self.mean * self._sizes(self.cell), self.max
        for axis in (0, 1):
            starts = np.arange(0, self.mean.shape[axis], factor)
            sums = np.add.reduceat(sums, starts, axis=axis)
            largest = np.maximum.reduceat(largest, starts, axis=axis)
        return PooledMap(self.queries, self.keys, cell, sums / self._sizes(cell), largest)

    def _sizes(self, cell: int) -> Float[np.ndarray, "query_cell key_cell"]:
        return cell_sizes(len(self.queries), cell)[:, None] * cell_sizes(len(self.keys), cell)


@dataclass(frozen=True)
class PooledBand:
    """A sliding head's attention by query and distance, in squares of `cell` queries × `distance_cell` distances.

    Distance 0 is the query itself. Pairs before the first token count 0.
    """

    n_tokens: int
    window: int
    cell: int
    distance_cell: int
    mean: Float[np.ndarray, "query_cell distance_cell"]
    max: Float[np.ndarray, "query_cell distance_cell"]


@dataclass(frozen=True, eq=False)
class LayerReading:
    """One layer over one prompt: its rotated queries and keys, and every view of its heads.

    Views raise MicroscopeError for a head, token or distance that is not there, and return arrays of exact float32
    weights: a query's weights sum to 1, and what it cannot see is exactly 0.
    """

    layer: int
    window: int | None
    q: HeadVectors
    k: HeadVectors
    _logsumexp: dict[int, Float[Tensor, "pos"]] = field(default_factory=dict, repr=False)

    @property
    def kind(self) -> LayerKind:
        return "global" if self.window is None else "sliding"

    @property
    def n_tokens(self) -> int:
        return self.q.shape[0]

    @property
    def n_heads(self) -> int:
        return self.q.shape[1]

    @property
    def logsumexp(self) -> Float[Tensor, "head pos"]:
        """log Σ exp(score) of every row; computed on first use, head by head, and cached."""
        return torch.stack([self._row_logsumexp(head) for head in range(self.n_heads)])

    def tile(self, head: int, queries: range, keys: range) -> Float[np.ndarray, "query key"]:
        """The exact weights of a rectangle, up to MAX_TILE of them; `pooled` takes rectangles of any size."""
        self._check(head, queries=queries, keys=keys)
        if len(queries) * len(keys) > MAX_TILE:
            raise MicroscopeError(
                f"a tile of {len(queries)} × {len(keys)} tokens is too large; take at most {MAX_TILE:,} weights, "
                "or pooled(head, queries=…, keys=…)"
            )
        tile = np.zeros((len(queries), len(keys)), dtype=np.float32)
        for block in self.blocks(queries):
            seen, weights = self.rows(head, block)
            left, right = max(seen.start, keys.start), min(seen.stop, keys.stop)
            if left < right:
                part = weights[:, left - seen.start : right - seen.start].cpu().numpy()
                tile[block.start - queries.start :][: len(block), left - keys.start : right - keys.start] = part
        return tile

    def row(self, head: int, query: int) -> Float[np.ndarray, "pos"]:
        """What one query reads: its weight on every token."""
        self._check(head, query=query)
        return self.tile(head, range(query, query + 1), range(self.n_tokens))[0]

    def column(self, head: int, key: int) -> Float[np.ndarray, "pos"]:
        """What reads one key: the weight that every token gives it."""
        self._check(head, key=key)
        weights = np.zeros(self.n_tokens, dtype=np.float32)
        readers = range(key, self.n_tokens if self.window is None else min(key + self.window, self.n_tokens))
        q, scale = self.q[readers.start : readers.stop, head].float(), self.q.shape[-1] ** -0.5
        scores = q @ self.k[key, head].float() * scale
        weights[readers.start : readers.stop] = (
            (scores - self._row_logsumexp(head)[readers.start : readers.stop]).exp().cpu().numpy()
        )
        return weights

    def band(self, head: int, queries: range, distances: range) -> Float[np.ndarray, "query distance"]:
        """Exact weights by distance: [i, j] is what queries[i] gives the token distances[j] before it, itself being 0.

        Distances run to the window's edge in a sliding layer, to the first token in a global one; 0 before the first.
        """
        self._check(head, queries=queries, distances=distances)
        if len(queries) * len(distances) > MAX_TILE:
            raise MicroscopeError(f"a band of {len(queries)} × {len(distances)} is too large; use pooled_band")
        return np.concatenate(
            [self._band(head, block, distances).cpu().numpy() for block in self.blocks(queries)], axis=0
        )

    def pooled(
        self, head: int, max_cells: int = MAX_CELLS, queries: range | None = None, keys: range | None = None
    ) -> PooledMap:
        """A rectangle (None: all queries, all keys), however large, in at most `max_cells` squares on a side."""
        queries = range(self.n_tokens) if queries is None else queries
        keys = range(self.n_tokens) if keys is None else keys
        self._check(head, queries=queries, keys=keys, max_cells=max_cells)
        cell = -(-max(len(queries), len(keys)) // max_cells)
        shape = (-(-len(queries) // cell), -(-len(keys) // cell))
        sums, largest = (torch.zeros(shape, device=self.q.device) for _ in range(2))
        for block in self.blocks(queries, cell):
            seen, weights = self.rows(head, block)
            left, right = max(seen.start, keys.start), min(seen.stop, keys.stop)
            if left < right:
                part = weights[:, left - seen.start : right - seen.start]
                add_pooled(sums, largest, part, block.start - queries.start, left - keys.start, cell, cell)
        sizes = cell_sizes(len(queries), cell)[:, None] * cell_sizes(len(keys), cell)
        return PooledMap(queries, keys, cell, sums.cpu().numpy() / sizes, largest.cpu().numpy())

    def pooled_band(self, head: int, max_cells: int = MAX_CELLS) -> PooledBand:
        """A sliding head by query and distance: no square is spent on what lies outside the window."""
        self._check(head, max_cells=max_cells)
        if self.window is None:
            raise MicroscopeError(f"layer {self.layer} is global and has no window; a band shows sliding layers")
        reach = min(self.window, self.n_tokens)
        cell, distance_cell = -(-self.n_tokens // max_cells), -(-reach // max_cells)
        shape = (-(-self.n_tokens // cell), -(-reach // distance_cell))
        mean, largest = (torch.zeros(shape, device=self.q.device) for _ in range(2))
        for block in self.blocks(range(self.n_tokens), cell):
            band = self._band(head, block, range(reach))
            add_pooled(mean, largest, band, block.start, 0, cell, distance_cell)
        sizes = cell_sizes(self.n_tokens, cell)[:, None] * cell_sizes(reach, distance_cell)
        return PooledBand(
            self.n_tokens, self.window, cell, distance_cell, mean.cpu().numpy() / sizes, largest.cpu().numpy()
        )

    # ---------------------------------------------------------------------------------- rows, in blocks

    def blocks(self, queries: range, cell: int = 1) -> Iterator[range]:
        """`queries` in blocks, each of whole cells or within one cell."""
        rows = BLOCK_ROWS.get(self.q.device.type, BLOCK_ROWS["cpu"])
        if cell > rows:
            return (block for one_cell in cut(queries, cell) for block in cut(one_cell, rows))
        return cut(queries, rows - rows % cell)

    def rows(self, head: int, queries: range) -> tuple[range, Float[Tensor, "query key"]]:
        """The keys that any of `queries` sees, and the queries' weights on them."""
        keys, scores = self._scores(head, queries)
        return keys, scores.softmax(dim=-1)

    def log_rows(self, head: int, queries: range) -> tuple[range, Float[Tensor, "query key"]]:
        """The same keys, and the logarithm of the weights (HIDDEN: none)."""
        keys, scores = self._scores(head, queries)
        return keys, scores.log_softmax(dim=-1)

    def _scores(self, head: int, queries: range) -> tuple[range, Float[Tensor, "query key"]]:
        """Scaled scores of whole rows over the keys that any of `queries` sees; HIDDEN where one does not."""
        keys = range(0 if self.window is None else max(0, queries.start - self.window + 1), queries.stop)
        q = self.q[queries.start : queries.stop, head].float() * self.q.shape[-1] ** -0.5
        scores = q @ self.k[keys.start : keys.stop, head].float().T
        # Only the outermost columns hold keys that some of the queries see and others do not.
        edge = len(queries)
        scores[:, -edge:].masked_fill_(~self._visible(queries, keys[-edge:]), HIDDEN)
        if self.window is not None:
            scores[:, :edge].masked_fill_(~self._visible(queries, keys[:edge]), HIDDEN)
        return keys, scores

    def _visible(self, queries: range, keys: range) -> Bool[Tensor, "query key"]:
        device = self.q.device
        query = torch.arange(queries.start, queries.stop, device=device)[:, None]
        distance = query - torch.arange(keys.start, keys.stop, device=device)
        return (distance >= 0) if self.window is None else (distance >= 0) & (distance < self.window)

    def _band(self, head: int, queries: range, distances: range) -> Float[Tensor, "query distance"]:
        keys, weights = self.rows(head, queries)
        device = self.q.device
        key = torch.arange(queries.start, queries.stop, device=device)[:, None]
        key = key - torch.arange(distances.start, distances.stop, device=device) - keys.start
        return weights.gather(1, key.clamp(min=0)) * (key >= 0)

    def _row_logsumexp(self, head: int) -> Float[Tensor, "pos"]:
        if head not in self._logsumexp:
            rows = []
            for block in self.blocks(range(self.n_tokens)):
                keys, scores = self._scores(head, block)
                # log_softmax is one fused kernel and logsumexp five passes; score - log(weight) is the same number
                # in every column. A query always sees itself.
                own = torch.arange(len(block), device=scores.device)[:, None] + block.start - keys.start
                rows.append((scores.gather(1, own) - scores.log_softmax(dim=-1).gather(1, own))[:, 0])
            self._logsumexp[head] = torch.cat(rows)
        return self._logsumexp[head]

    # ------------------------------------------------------------------------------------------- checks

    def check_head(self, head: int) -> None:
        """Raises MicroscopeError when there is no such head."""
        if not 0 <= head < self.n_heads:
            raise MicroscopeError(f"there is no head {head}; layer {self.layer} has heads 0 to {self.n_heads - 1}")

    def _check(
        self,
        head: int,
        query: int = 0,
        key: int = 0,
        queries: range | None = None,
        keys: range | None = None,
        distances: range | None = None,
        max_cells: int = 1,
    ) -> None:
        self.check_head(head)
        for token in (query, key):
            if not 0 <= token < self.n_tokens:
                raise MicroscopeError(f"there is no token {token}; this prompt has tokens 0 to {self.n_tokens - 1}")
        reach = self.n_tokens if self.window is None else self.window
        for name, span, limit in (("queries", queries, self.n_tokens), ("keys", keys, self.n_tokens)):
            _check_span(name, span, limit, f"this prompt has tokens 0 to {self.n_tokens - 1}")
        _check_span("distances", distances, reach, f"layer {self.layer} sees distances 0 to {reach - 1}")
        if max_cells < 1:
            raise MicroscopeError(f"max_cells={max_cells} leaves nothing to draw; use at least 1")


@dataclass(frozen=True, eq=False)
class Reading:
    """What `read` saw: the prompt and one LayerReading for each layer."""

    config: ShardConfig
    ids: Ids
    layers: list[LayerReading]

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    def layer(self, layer: int) -> LayerReading:
        """One layer, counted from 0. Raises MicroscopeError when there is no such layer."""
        if not 0 <= layer < len(self.layers):
            raise MicroscopeError(f"there is no layer {layer}; this model has layers 0 to {len(self.layers) - 1}")
        return self.layers[layer]

    def head(self, layer: int, head: int) -> HeadMap:
        """One head's map. Raises MicroscopeError when there is no such layer or head."""
        from shardscope.microscope.head_map import HeadMap  # which draws what is read here

        chosen = self.layer(layer)
        chosen.check_head(head)
        return HeadMap(chosen, head)


def read(model: Shard, prompt: Prompt, *, progress: Progress | None = None) -> Reading:
    """One pass over a prompt: the rotated queries and keys of every layer, in the model's dtype, on its device.

    Hooks on the model act, so a reading within `ablated(...)` shows the attention of the ablated model. `progress` is
    called with the share that is done and a few words. Raises PromptError for a prompt the model cannot read.
    """
    ids = one_prompt(model, prompt)
    layers: list[LayerReading] = []
    for layer in read_layers(model, ids):
        layers.append(layer)
        if progress is not None:
            progress(len(layers) / model.config.n_layers, f"read layer {len(layers)} of {model.config.n_layers}")
    return Reading(model.config, ids, layers)


def read_layers(model: Shard, prompt: Prompt) -> Iterator[LayerReading]:
    """The layers of `read`, each as soon as it is read; the next is computed when it is asked for."""
    ids = one_prompt(model, prompt)
    held: list[Tensor] = []

    def record(activation: Tensor, /, *, hook: HookPoint) -> None:
        held.append(activation[0])

    with torch.no_grad():
        x = model.hook_embed(model.embed(ids[None]))
    last = model.config.n_layers - 1
    for layer, (block, window) in enumerate(zip(model.blocks, model.config.windows, strict=True)):
        held.clear()
        use_free_cores(model.device)
        names = [f"blocks.{layer}.attn.hook_rot_{part}" for part in "qk"]
        with torch.no_grad(), model.hooks(fwd_hooks=[(name, record) for name in names]):
            if layer < last:
                x = block(x, attend=attend_in_bands)
            else:  # of which only queries and keys are looked at
                block.attn.project(block.ln1(block.hook_resid_pre(x)))
        q, k = held
        check_finite_activations(q, k)
        yield LayerReading(layer, window, q, k)


def check_finite_activations(*activations: Tensor) -> None:
    """Raises MicroscopeError where a model computes no numbers."""
    if not all(bool(activation.isfinite().all()) for activation in activations):
        raise MicroscopeError(
            "the model's activations are not finite: a weight or a number of its config is NaN or too large; "
            "load another checkpoint"
        )


def cell_sizes(n: int, cell: int) -> Float[np.ndarray, "cells"]:
    """How many of `n` tokens each cell holds: `cell`, and what is left in the last."""
    return np.diff(np.append(np.arange(0, n, cell), n)).astype(np.float32)


def add_pooled(
    sums: Float[Tensor, "query_cell key_cell"],
    largest: Float[Tensor, "query_cell key_cell"],
    weights: Float[Tensor, "query key"],
    query: int,
    key: int,
    query_cell: int,
    key_cell: int,
) -> None:
    """Add the weights of a block that begins at [query, key] to its squares, and raise their maxima to the block's."""
    row, (column, inside) = query // query_cell, divmod(key, key_cell)
    height = min(query_cell, weights.shape[0])  # blocks hold whole cells, or lie within one
    beyond, below = -(weights.shape[1] + inside) % key_cell, -weights.shape[0] % height
    if inside or beyond or below:
        weights = F.pad(weights, (inside, beyond, 0, below))
    # First over queries, which runs along memory; what is left for the keys is small.
    by_query = weights.unflatten(0, (-1, height))
    added, maxima = (part.unflatten(1, (-1, key_cell)) for part in (by_query.sum(dim=1), by_query.amax(dim=1)))
    here = slice(row, row + added.shape[0]), slice(column, column + added.shape[1])
    sums[here] += added.sum(dim=-1)
    torch.maximum(largest[here], maxima.amax(dim=-1), out=largest[here])


def cut(span: range, length: int) -> Iterator[range]:
    """`span` in stretches of `length`; the last may be shorter."""
    return (span[first : first + length] for first in range(0, len(span), length))


def _check_span(name: str, span: range | None, limit: int, there: str) -> None:
    if span is not None and not (span.step == 1 and 0 <= span.start < span.stop <= limit):
        raise MicroscopeError(f"{name}={span} is not a stretch of what is there; {there}")
