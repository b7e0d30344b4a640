"""A byte-level n-gram model: the least that a language model has to beat.

Interpolated Witten–Bell smoothing (Witten & Bell 1991, doi:10.1109/18.87000): with n(h) bytes seen after history h,
t(h) of them different, the maximum-likelihood estimate gets weight n(h) / (n(h) + t(h)) and the next shorter history the
rest, down to the uniform distribution over 256 bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class ByteNGram:
    """Trained on `text`; `order` 3 predicts a byte from the two before it. At most 3: counts are dense tables."""

    def __init__(self, text: Bytes, order: int = 3) -> None:
        if not 1 <= order <= 3:
            raise ValueError(f"order={order} is not supported; use 1, 2 or 3")
        self.order = order
        self._counts = [self._count(text, n) for n in range(1, order + 1)]

    def bits(self, text: Bytes) -> NDArray[np.float64]:
        """-log2 p of every byte of `text`, the first `order` - 1 excepted: they are only history."""
        probability: NDArray[np.float64] = np.full(max(0, len(text) - self.order + 1), 1 / 256)
        for n, counts in enumerate(self._counts, start=1):
            code = _codes(text, n)[self.order - n :]
            history = counts.reshape(-1, 256)
            seen, kinds = history.sum(axis=1), (history > 0).sum(axis=1)
            weight = seen / np.maximum(seen + kinds, 1)
            at = code >> 8
            likeliest = counts[code] / np.maximum(seen[at], 1)
            probability = weight[at] * likeliest + (1 - weight[at]) * probability
        return -np.log2(probability)

    @staticmethod
    def _count(text: Bytes, n: int) -> NDArray[np.int64]:
        return np.bincount(_codes(text, n), minlength=256**n)


def _codes(text: Bytes, n: int) -> NDArray[np.int64]:
    """Every run of n bytes as one number, the last byte lowest."""
    wide = text.astype(np.int64)
    length = max(0, len(text) - n + 1)
    return sum((wide[i : i + length] << 8 * (n - 1 - i) for i in range(n)), np.zeros(length, dtype=np.int64))
