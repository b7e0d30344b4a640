"""The key-value cache: a ring of `window` slots for a sliding layer, one slot per position for a global one.

Rows of a batch may hold different numbers of positions; nothing is padded on the left. Keys are cached rotated, so the
order of the slots does not matter to attention, and position p always lies in slot p mod size: a global layer is a
ring that never turns over. What a slot holds therefore follows from the row's length alone.

Axes: batch, pos (query, key, slot), head, d_head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

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
    """The new positions of one call, for all layers of one size: where they are cached and what they see."""

    window: int | None
    size: int  # slots of the cache
    query: Int[Tensor, "batch query"]  # positions of the queries
    batch_rows: Int[Tensor, "batch"] | None  # rows of the cache that take part; None: all
    held: int  # slots read from the cache
    full: bool  # all of them hold a position, in every row
    attempt: bool = False  # the new positions are cached by `settle`, once it is known how many
    rows: Int[Tensor, "new"]  # where each new position comes from and goes to
    columns: Int[Tensor, "new"] | None  # None: one new position in each row of the cache
    slots: Int[Tensor, "new"]
    # Rows, heads and slots of the cache that the new positions fill as one block; None: they lie scattered.
    block: tuple[slice, slice, slice] | None

    @cached_property
    def key(self) -> Int[Tensor, "batch key"]:
        """Positions of the keys that `extend` returns, below 0: none."""
        first = self.query[:, 0]
        if self.columns is None:
            return held_positions(first + 1, self.size, self.held)
        return torch.cat([held_positions(first, self.size, self.held), self.query], dim=1)

    @cached_property
    def visible(self) -> Bool[Tensor, "batch 1 query key"] | None:
        """None: every query sees every key."""
        if self.columns is None:
            return None if self.full else rearrange(self.key >= 0, "batch key -> batch 1 1 key")
        # A row's padding lies after all of its positions, where causality hides it.
        key, query = self.key[:, None, :], self.query[:, :, None]
        seen = (key >= 0) & (key <= query)
        if self.window is not None:
            seen &= key > query - self.window
        return rearrange(seen, "batch query key -> batch 1 query key")


class LayerCache:
    """One layer's keys and values."""

    def __init__(self, config: ShardConfig, batch: int, size: int, device: torch.device, dtype: torch.dtype) -> None:
        # Zeros, because a masked slot has weight 0 and 0 · NaN would still be NaN.
        shape = (batch, config.n_heads, size, config.d_head)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self._attempted: tuple[QKV, QKV] | None = None

    def extend(self, k: QKV, v: QKV, span: Span) -> tuple[Slots, Slots]:
        """Cache the new keys and values; returns all that the new positions may see, in the order of `span.key`."""
        if span.columns is None:
            # The newest position takes the place of the one that just left the window.
            self._write(k, v, span)
            return self.keys[:, :, : span.held], self.values[:, :, : span.held]
        # A chunk's first queries still see positions that its last ones overwrite, so join before writing.
        together = []
        for cached, new in ((self.keys, k), (self.values, v)):
            slots = new.transpose(1, 2)
            if span.held:
                old = cached[:, :, : span.held] if span.batch_rows is None else cached[span.batch_rows, :, : span.held]
                slots = torch.cat([old, slots], dim=2)
            together.append(slots)
        if span.attempt:
            self._attempted = k, v
        else:
            self._write(k, v, span)
        return together[0], together[1]

    def settle(self, span: Span, count: int) -> None:
        """Cache the first `count` positions of an attempt of one row, and drop the others.

        They could not be taken back later: what they would overwrite in a ring, the queries before them still see.
        """
        assert self._attempted is not None
        assert span.columns is not None
        k, v = self._attempted
        self._attempted = None
        rows, columns, slots = span.rows[:count], span.columns[:count], span.slots[:count]
        self._write(k, v, replace(span, rows=rows, columns=columns, slots=slots, block=None))

    def _write(self, k: QKV, v: QKV, span: Span) -> None:
        rows = span.rows if span.batch_rows is None else span.batch_rows[span.rows]
        for cached, new in ((self.keys, k), (self.values, v)):
            if span.block is not None:
                cached[span.block] = new.transpose(1, 2)
            else:
                cached[rows, :, span.slots] = new[:, 0] if span.columns is None else new[span.rows, span.columns]


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
        query = torch.tensor(lengths, device=self.device)[:, None]
        single = pos == 1 and batch_rows is None
        if single:
            rows, columns = torch.arange(len(lengths), device=self.device), None
        else:
            query = query + torch.arange(pos, device=self.device)
            is_new = torch.arange(pos, device=self.device) < torch.tensor(counts, device=self.device)[:, None]
            rows, columns = is_new.nonzero(as_tuple=True)
        new = query[:, 0] if columns is None else query[rows, columns]
        together = range(chosen[0], chosen[0] + len(chosen))
        aligned = list(chosen) == list(together) and set(counts) == {pos} and len(set(lengths)) == 1
        by_kind: dict[tuple[int | None, int], Span] = {}
        for window, size in zip(self.windows, self.sizes, strict=True):
            if (window, size) not in by_kind:
                held = min(max(lengths) + single, size)
                start = lengths[0] % size
                filled = (slice(together.start, together.stop), slice(None), slice(start, start + pos))
                by_kind[window, size] = Span(
                    window=window,
                    size=size,
                    query=query,
                    batch_rows=None if batch_rows is None else torch.tensor(batch_rows, device=self.device),
                    held=held,
                    full=min(lengths) + single >= held,
                    rows=rows,
                    columns=columns,
                    slots=new % size,
                    block=filled if aligned and start + pos <= size else None,
                )
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


def in_order(cached: Slots, key: Int[Tensor, "batch slot"], total: int) -> Float[Tensor, "batch head {total} d_head"]:
    """Slots laid out by position 0 … total - 1; zeros where a position is not held."""
    batch, head, _, d_head = cached.shape
    ordered = cached.new_zeros(batch, head, total + 1, d_head)
    # Empty slots go to one place past the end, which is cut off.
    place = rearrange(torch.where(key < 0, total, key), "batch slot -> batch 1 slot 1").expand(cached.shape)
    return ordered.scatter_(2, place, cached)[:, :, :total]
