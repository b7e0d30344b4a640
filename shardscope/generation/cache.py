"""The key-value cache: a ring of `window` slots for a sliding layer, one slot per position for a global one.

Rows of a batch may hold different numbers of positions; nothing is padded on the left. Keys are kept rotated, so the
order of the slots does not matter to attention, and position p always lies in slot p mod size: a global layer is a
ring that never turns over. What a slot holds therefore follows from the row's length alone.

Axes: batch, pos (query, key, slot), head, d_head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shardscope.config import ShardConfig

QKV = Float[Tensor, "batch pos head d_head"]
Slots = Float[Tensor, "batch head slot d_head"]


def held_positions(lengths: Int[Tensor, "batch"], size: int, slots: int) -> Int[Tensor, "batch slot"]:
    """The position in each of the first `slots` slots of a ring of `size`; below 0 where nothing was written yet."""
    slot = torch.arange(slots, device=lengths.device)
    last = lengths[:, None] - 1
    return last - (last - slot) % size


@dataclass(frozen=True, kw_only=True)
class Span:
    """The new positions of one call, for all layers of one size: where they are kept and what they see."""

    window: int | None
    query: Int[Tensor, "batch query"]  # positions of the queries
    key: Int[Tensor, "batch key"]  # positions of the keys that `extend` returns, below 0: none
    visible: Bool[Tensor, "batch 1 query key"] | None  # None: every query sees every key
    batch_rows: Int[Tensor, "batch"] | None  # rows of the cache that take part; None: all
    held: int  # slots read from the cache
    single: bool  # one new position in each row
    attempt: bool = False  # the new positions are kept by `settle`, once it is known how many
    rows: Int[Tensor, "new"]  # where each new position comes from and goes to
    columns: Int[Tensor, "new"]
    slots: Int[Tensor, "new"]


class LayerCache:
    """One layer's keys and values."""

    def __init__(self, config: ShardConfig, batch: int, size: int, device: torch.device, dtype: torch.dtype) -> None:
        # Zeros, because a masked slot has weight 0 and 0 · NaN would still be NaN.
        shape = (batch, config.n_heads, size, config.d_head)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self._attempted: tuple[QKV, QKV] | None = None

    def extend(self, k: QKV, v: QKV, span: Span) -> tuple[Slots, Slots]:
        """Keep the new keys and values; returns all that the new positions may see, in the order of `span.key`."""
        if span.single:
            # The newest position takes the place of the one that just left the window.
            self._write(k, v, span)
            return self.keys[:, :, : span.held], self.values[:, :, : span.held]
        # A chunk's first queries still see positions that its last ones overwrite, so join before writing.
        together = []
        for kept, new in ((self.keys, k), (self.values, v)):
            old = kept[:, :, : span.held] if span.batch_rows is None else kept[span.batch_rows, :, : span.held]
            together.append(torch.cat([old, new.transpose(1, 2)], dim=2))
        if span.attempt:
            self._attempted = k, v
        else:
            self._write(k, v, span)
        return together[0], together[1]

    def settle(self, span: Span, count: int) -> None:
        """Keep the first `count` positions of an attempt of one row, and forget the others.

        They could not be taken back later: what they would overwrite in a ring, the queries before them still see.
        """
        assert self._attempted is not None
        k, v = self._attempted
        self._attempted = None
        first = slice(count)
        self._write(k, v, replace(span, rows=span.rows[first], columns=span.columns[first], slots=span.slots[first]))

    def _write(self, k: QKV, v: QKV, span: Span) -> None:
        rows = span.rows if span.batch_rows is None else span.batch_rows[span.rows]
        self.keys[rows, :, span.slots] = k[span.rows, span.columns]
        self.values[rows, :, span.slots] = v[span.rows, span.columns]


class KVCache:
    """The caches of all layers, for `batch` sequences of at most `capacity` positions."""

    def __init__(
        self, config: ShardConfig, batch: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.device = device
        self.windows = config.windows
        self.sizes = [min(window or capacity, capacity) for window in config.windows]
        self.layers = [LayerCache(config, batch, size, device, dtype) for size in self.sizes]
        self.lengths = [0] * batch

    def spans(self, counts: Sequence[int], pos: int, batch_rows: Sequence[int] | None = None) -> list[Span]:
        """For every layer the span of `counts[row]` new positions in a call `pos` wide; the rest is padding."""
        chosen = range(len(self.lengths)) if batch_rows is None else batch_rows
        lengths = [self.lengths[row] for row in chosen]
        by_kind: dict[tuple[int | None, int], Span] = {}
        for kind in zip(self.windows, self.sizes, strict=True):
            if kind not in by_kind:
                by_kind[kind] = _span(lengths, counts, pos, *kind, batch_rows, self.device)
        return [by_kind[kind] for kind in zip(self.windows, self.sizes, strict=True)]

    def advance(self, counts: Sequence[int], batch_rows: Sequence[int] | None = None) -> None:
        """Count the new positions as held, once every layer has them."""
        chosen = range(len(self.lengths)) if batch_rows is None else batch_rows
        for row, count in zip(chosen, counts, strict=True):
            self.lengths[row] += count

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every sequence but `rows`."""
        index = torch.tensor(rows, device=self.device)
        self.lengths = [self.lengths[row] for row in rows]
        for layer in self.layers:
            layer.keys = layer.keys[index]
            layer.values = layer.values[index]


def in_order(kept: Slots, key: Int[Tensor, "batch slot"], total: int) -> Float[Tensor, "batch head {total} d_head"]:
    """Slots laid out by position 0 … total - 1; zeros where a position is not held."""
    batch, head, _, d_head = kept.shape
    ordered = kept.new_zeros(batch, head, total + 1, d_head)
    # Empty slots go to one place past the end, which is cut off.
    place = rearrange(torch.where(key < 0, total, key), "batch slot -> batch 1 slot 1").expand(kept.shape)
    return ordered.scatter_(2, place, kept)[:, :, :total]


def _span(
    lengths: list[int],
    counts: Sequence[int],
    pos: int,
    window: int | None,
    size: int,
    batch_rows: Sequence[int] | None,
    device: torch.device,
) -> Span:
    before = torch.tensor(lengths, device=device)
    query = before[:, None] + torch.arange(pos, device=device)
    single = pos == 1 and batch_rows is None
    visible: Tensor | None
    if single:
        held = min(max(lengths) + 1, size)
        key = held_positions(before + 1, size, held)
        visible = None if min(lengths) + 1 >= held else rearrange(key >= 0, "batch key -> batch 1 1 key")
    else:
        held = min(max(lengths), size)
        key = torch.cat([held_positions(before, size, held), query], dim=1)
        # A row's padding lies after all of its positions, where causality hides it.
        seen = (key[:, None, :] >= 0) & (key[:, None, :] <= query[:, :, None])
        if window is not None:
            seen &= key[:, None, :] > query[:, :, None] - window
        visible = rearrange(seen, "batch query key -> batch 1 query key")
    is_new = torch.arange(pos, device=device) < torch.tensor(counts, device=device)[:, None]
    rows, columns = is_new.nonzero(as_tuple=True)
    return Span(
        window=window,
        query=query,
        key=key,
        visible=visible,
        batch_rows=None if batch_rows is None else torch.tensor(batch_rows, device=device),
        held=held,
        single=single,
        rows=rows,
        columns=columns,
        slots=query[rows, columns] % size,
    )
