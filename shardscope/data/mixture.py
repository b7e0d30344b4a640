"""Training batches from several sources by weight, as a pure function of (seed, step).

Nothing is stored between steps: row r of the whole run takes its source by arithmetic on r, and the n-th row of a
source takes its window of tokens by arithmetic on n. Any step can be asked for at any time, in any order.

Axes: batch, window (seq_len + 1 tokens: positions 0 … seq_len-1 are inputs, 1 … seq_len their targets).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from shardscope.config import ConfigError
from shardscope.data.files import DataError
from shardscope.data.permute import key, permuted
from shardscope.data.shards import TokenShard

_FRACTION_BITS = 48


@dataclass(frozen=True)
class Batch:
    """Sequences of one step, and for each the number of its source."""

    tokens: Int[Tensor, "batch window"]
    sources: Int[Tensor, "batch"]


@dataclass(frozen=True)
class SourcePlan:
    """What a number of steps takes from one source."""

    name: str
    tokens: int  # in the source
    share: float  # of the sequences
    sequences: int
    epochs: float


class Mixture:
    """`weights` are shares of the sequences, not of the documents; a source of weight 0 is left out."""

    def __init__(
        self,
        shards: Mapping[str, TokenShard],
        weights: Mapping[str, float],
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.names = tuple(name for name in shards if weights[name] > 0)
        self.seq_len, self.batch_size, self.seed = seq_len, batch_size, seed
        self._sources = [_Windows(name, shards[name], seq_len, seed) for name in self.names]
        self._turns = _Turns([weights[name] for name in self.names])

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The rows of `step` that belong to `rank`; one rank after another they are the whole batch."""
        rows = [(source, self._sources[source].tokens(nth)) for source, nth in self._draws(step, rank, ranks)]
        tokens = np.stack([window for _, window in rows]).astype(np.int64)
        return Batch(torch.from_numpy(tokens), torch.tensor([source for source, _ in rows]))

    def describe(self, step: int, rank: int = 0, ranks: int = 1) -> list[tuple[str, tuple[str, ...]]]:
        """For each row of the batch its source and the origins of the documents in it."""
        return [
            (self.names[source], self._sources[source].origins(nth)) for source, nth in self._draws(step, rank, ranks)
        ]

    def plan(self, steps: int) -> list[SourcePlan]:
        """What `steps` steps take from each source."""
        rows = steps * self.batch_size
        counts = self._turns.counts(rows)
        return [
            SourcePlan(source.name, len(source.shard), count / max(1, rows), count, count / source.count)
            for source, count in zip(self._sources, counts, strict=True)
        ]

    def _draws(self, step: int, rank: int, ranks: int) -> list[tuple[int, int]]:
        if self.batch_size % ranks or not 0 <= rank < ranks:
            raise ConfigError(
                f"train.batch_size={self.batch_size} cannot be divided among {ranks} devices (rank {rank})"
            )
        per_rank = self.batch_size // ranks
        first = step * self.batch_size + rank * per_rank
        return [self._turns.turn(row) for row in range(first, first + per_rank)]


def format_plan(plan: Sequence[SourcePlan]) -> str:
    """A table of a plan, to print."""
    width = max(6, *(len(line.name) for line in plan))
    rows = [f"{'source':{width}}  {'tokens':>14}  {'share':>6}  {'sequences':>10}  {'epochs':>7}"]
    rows += [f"{p.name:{width}}  {p.tokens:>14,}  {p.share:>6.1%}  {p.sequences:>10,}  {p.epochs:>7.2f}" for p in plan]
    return "\n".join(rows)


def document_starts(tokens: Int[Tensor, "batch pos"], bos_id: int) -> Int[Tensor, "batch pos"]:
    """For every position the first position of its document; 0 for the document that was already going on."""
    position = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    starts: Tensor = torch.where(tokens == bos_id, position, 0).cummax(dim=1).values
    return starts


def dealt(weights: Sequence[float], rows: int) -> list[int]:
    """How many of a run's first `rows` rows each source has, by its weight."""
    having = [number for number, weight in enumerate(weights) if weight > 0]
    counts = dict(zip(having, _Turns([weights[number] for number in having]).counts(rows), strict=True))
    return [counts.get(number, 0) for number in range(len(weights))]


class _Turns:
    """Deals rows to sources so evenly that after any number of rows each is within a few rows of its share.

    One source after another takes its fraction of the rows that are left to it: of n such rows, round(n · fraction).
    """

    def __init__(self, weights: Sequence[float]) -> None:
        left = list(accumulate(reversed(weights)))[::-1]
        self._fractions = [
            max(1, round(weight / rest * 2**_FRACTION_BITS)) for weight, rest in zip(weights, left, strict=True)
        ]

    def turn(self, row: int) -> tuple[int, int]:
        """(source, how many rows it had before) of a row of the run."""
        for source, fraction in enumerate(self._fractions):
            before = _rounded(row, fraction)
            if _rounded(row + 1, fraction) > before:
                return source, before
            row -= before
        raise AssertionError("the last source takes all that is left")

    def counts(self, rows: int) -> list[int]:
        """How many of the first `rows` rows each source has."""
        counts = []
        for fraction in self._fractions:
            counts.append(_rounded(rows, fraction))
            rows -= counts[-1]
        return counts


def _rounded(rows: int, fraction: int) -> int:
    return (rows * fraction + (1 << _FRACTION_BITS - 1)) >> _FRACTION_BITS


class _Windows:
    """The windows of one source, epoch after epoch.

    In an epoch every window is visited once, in an order of that epoch; they start at an offset of that epoch, so that
    another epoch cuts the text elsewhere. Neighbours share one token: the last target of one is the first input of the
    next, and no token is a target twice in an epoch.
    """

    def __init__(self, name: str, shard: TokenShard, seq_len: int, seed: int) -> None:
        if len(shard) < seq_len + 1:
            raise DataError(
                f"data.sources.{name}: {len(shard)} tokens to train on, but one sequence needs data.seq_len + 1 = "
                f"{seq_len + 1}; add text or lower data.seq_len"
            )
        self.name, self.shard, self.seq_len, self.seed = name, shard, seq_len, seed
        self.count = max(1, (len(shard) - seq_len) // seq_len)
        self._offsets = len(shard) - self.count * seq_len

    def start(self, nth: int) -> int:
        epoch, place = divmod(nth, self.count)
        epoch_key = key(self.seed, self.name, epoch)
        return epoch_key % self._offsets + self.seq_len * permuted(place, self.count, epoch_key)

    def tokens(self, nth: int) -> np.ndarray:
        start = self.start(nth)
        return self.shard.tokens[start : start + self.seq_len + 1]

    def origins(self, nth: int) -> tuple[str, ...]:
        start = self.start(nth)
        return tuple(self.shard.origin(number) for number in self.shard.documents_in(start, start + self.seq_len + 1))
