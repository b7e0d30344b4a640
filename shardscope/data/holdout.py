"""Held-out text in fixed windows, with the bytes that each target stands for.

Bits per byte are the bits a model spends on the tokens of a text, over the text's UTF-8 bytes. Windows of
seq_len + 1 tokens overlap by one, so that every token but the very first is a target exactly once. A token
stands for the bytes it is made of, also where a window or a token begins inside a character; the window's first token
is only context and counts with the window before. `<|endoftext|>` stands for no byte: neither its bits nor any bytes
are counted, so the number compares with models that have other tokens or none.

Axes: batch, window (seq_len + 1 tokens), pos (their seq_len targets).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from shardscope.data.files import DataError
from shardscope.data.shards import TokenShard
from shardscope.tokenizer import Tokenizer


@dataclass(frozen=True)
class HoldoutBatch:
    """Windows, and for each target its bytes; 0: not scored (`<|endoftext|>`, or the padding after the text)."""

    tokens: Int[Tensor, "batch window"]
    bytes: Int[Tensor, "batch pos"]

    def scored_nats(self, nats: Float[Tensor, "batch pos"]) -> Tensor:
        """The sum over the scored targets of -log p, in nats; a scalar."""
        return torch.where(self.bytes.to(nats.device) > 0, nats, 0.0).sum()


class Holdout:
    """The held-out windows of one source: all of them, or about `eval_tokens` tokens spread evenly over them."""

    def __init__(self, name: str, shard: TokenShard, tokenizer: Tokenizer, *, seq_len: int, eval_tokens: int) -> None:
        if len(shard) == len(shard.starts):
            raise DataError(f"data.sources.{name}: the held-out documents are empty; name others in holdout")
        self.name, self.shard, self.seq_len = name, shard, seq_len
        self._bos_id = tokenizer.bos_id
        self._byte_lengths = np.array([len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size)])
        every = math.ceil((len(shard) - 1) / seq_len)
        wanted = min(every, math.ceil(eval_tokens / seq_len))
        # Where the windows begin, in the tokens of `shard`.
        self.starts = [window * every // wanted * seq_len for window in range(wanted)]

    def batches(self, batch_size: int) -> Iterator[HoldoutBatch]:
        """The same windows in the same order every time; the last batch may be smaller."""
        for first in range(0, len(self.starts), batch_size):
            tokens = np.stack([self._window(start) for start in self.starts[first : first + batch_size]])
            lengths = self._byte_lengths[tokens[:, 1:]]
            yield HoldoutBatch(torch.from_numpy(tokens), torch.from_numpy(lengths))

    @cached_property
    def bytes(self) -> int:
        """UTF-8 bytes of all scored targets."""
        return sum(int(batch.bytes.sum()) for batch in self.batches(64))

    @cached_property
    def tokens(self) -> int:
        """Number of scored targets."""
        return sum(int((batch.bytes > 0).sum()) for batch in self.batches(64))

    def bits_per_byte(self, nats: float) -> float:
        """From the nats of all scored targets of all batches."""
        return nats / math.log(2) / self.bytes

    def _window(self, start: int) -> NDArray[np.int64]:
        """seq_len + 1 tokens; after the end of the text `<|endoftext|>`, which no earlier position sees."""
        found = self.shard.tokens[start : start + self.seq_len + 1].astype(np.int64)
        return np.pad(found, (0, self.seq_len + 1 - len(found)), constant_values=self._bos_id)
