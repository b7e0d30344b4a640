"""A byte-level n-gram model: the least that a language model has to beat.

Interpolated Witten–Bell smoothing (Witten & Bell 1991, doi:10.1109/18.87000): with n(h) bytes seen after history h,
t(h) of them different, the maximum-likelihood estimate gets weight n(h) / (n(h) + t(h)) and the next shorter history
the rest, down to the uniform distribution over 256 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int64]

MAX_ORDER = 7  # so many bytes fit a 64-bit code with room for its sign
_CHUNK = 1 << 26  # bytes counted at once: half a gigabyte of codes


class ByteNGram:
    """Trained on `text`; `order` 3 predicts a byte from the two before it."""

    def __init__(self, text: Bytes, order: int = 3) -> None:
        if not 1 <= order <= MAX_ORDER:
            raise ValueError(f"order={order} is not supported; use 1 to {MAX_ORDER}")
        self.order = order
        self._tables = [_Table(text, n) for n in range(1, order + 1)]

    def bits(self, text: Bytes) -> NDArray[np.float64]:
        """-log2 p of every byte of `text`, the first `order` - 1 excepted: they are only history."""
        probability: NDArray[np.float64] = np.full(max(0, len(text) - self.order + 1), 1 / 256)
        for n, table in enumerate(self._tables, start=1):
            count, seen, kinds = table.look_up(_codes(text, n)[self.order - n :])
            # Equal to weight * count / seen + (1 - weight) * probability, and right where nothing was seen.
            probability = (count + kinds * probability) / np.maximum(seen + kinds, 1) + (seen == 0) * probability
        return -np.log2(probability)


class _Table:
    """How often every run of n bytes occurs: the runs as sorted codes, beside them their counts."""

    def __init__(self, text: Bytes, n: int) -> None:
        codes, counts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        for first, last in _chunks(len(text), n):
            found, times = _distinct(_codes(text[first:last], n), n)
            codes, counts = _merged(np.concatenate([codes, found]), np.concatenate([counts, times]))
        self.codes, self.counts = codes, counts
        self.histories, starts = np.unique(codes >> 8, return_index=True)
        self.seen = np.add.reduceat(counts, starts) if len(counts) else counts
        self.kinds = np.diff(np.append(starts, len(codes)))

    def look_up(self, codes: Codes) -> tuple[Codes, Codes, Codes]:
        """For each run: how often it occurs, how often its history does, and by how many bytes that is followed."""
        history = codes >> 8
        return (
            _values(self.codes, self.counts, codes),
            _values(self.histories, self.seen, history),
            _values(self.histories, self.kinds, history),
        )


def _distinct(codes: Codes, n: int) -> tuple[Codes, Codes]:
    if n <= 3:  # a dense table is far quicker than a sort
        dense = np.bincount(codes, minlength=256**n)
        found = np.flatnonzero(dense)
        return found, dense[found]
    return np.unique(codes, return_counts=True)


def _merged(codes: Codes, counts: Codes) -> tuple[Codes, Codes]:
    """The same codes sorted, each once, with its counts added up."""
    order = np.argsort(codes, kind="stable")
    codes, starts = np.unique(codes[order], return_index=True)
    return codes, np.add.reduceat(counts[order], starts) if len(codes) else counts


def _values(keys: Codes, values: Codes, wanted: Codes) -> Codes:
    """The value beside each wanted key, 0 where there is none."""
    if not len(keys):
        return np.zeros_like(wanted)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def _chunks(length: int, n: int) -> Iterator[tuple[int, int]]:
    """Spans that overlap by n - 1 bytes, so that every run of n lies in exactly one of them."""
    edges = [*range(0, max(1, length), _CHUNK), length]
    for first, last in pairwise(edges):
        yield first, min(length, last + n - 1)


def _codes(text: Bytes, n: int) -> Codes:
    """Every run of n bytes as one number, the last byte lowest."""
    wide = text.astype(np.int64)
    length = max(0, len(text) - n + 1)
    return sum((wide[i : i + length] << 8 * (n - 1 - i) for i in range(n)), np.zeros(length, dtype=np.int64))
