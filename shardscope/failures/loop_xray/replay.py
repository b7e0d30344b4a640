"""The loop played again under many interventions at once: does it go on, and how sure is the model of each next token?

What comes before the loop passes through the model once, untouched; its keys and values are copied for every row. Then
each row is given the loop's first copies and the text that the loop would go on with, all in one pass, intervened in.
A row whose likeliest tokens are those of the loop throughout has thereby written the loop: greedy decoding would give
the same. Only a row that leaves it is continued token by token from there.

Axes: row, pos, vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from shardscope.failures.loop_xray.interventions import Activations, Interventions
from shardscope.failures.loop_xray.parts import Part, XrayError
from shardscope.failures.loops import find_loop
from shardscope.generation import Decoder, Packed
from shardscope.model import Shard

# "variant": another loop, at least half of whose steps from token to token are the loop's own.
Outcome = Literal["same loop", "variant", "another loop", "no loop"]

STARTS = 8  # places at which greedy decoding takes over, spread over a period
FEWEST_PERIODS = 4  # that a text is given to show that it still loops; find_loop asks for three
SHORTEST = 96  # tokens in which another loop can show itself, besides three periods
EFFECT_TOKENS = 16  # an effect is a mean over at least so many tokens, in whole periods
LOGITS_AT_ONCE = 2**25  # 128 MiB of float32
CACHE_BYTES = {"cpu": 2**29, "cuda": 2**33}  # keys and values of the rows of one batch


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What the model thought of given tokens.

    `log_odds`: log p/(1 - p), in nats. `margin`: logit less that of the best other token, which is `other`.
    """

    log_odds: Float[np.ndarray, "row pos"]
    margin: Float[np.ndarray, "row pos"]
    other: Int[np.ndarray, "row pos"]
    chosen: Int[np.ndarray, "row pos"]  # the likeliest token


@dataclass(frozen=True, eq=False)
class Replayed:
    """The rows of one replay: scores of the loop's tokens after its given copies, and what became of each start."""

    log_odds: Float[np.ndarray, "row pos"]
    margin: Float[np.ndarray, "row pos"]
    outcomes: list[list[Outcome]]  # by row and start


def breaks(outcome: Outcome) -> bool:
    """Whether the text ends neither in the loop nor in a variant of it."""
    return outcome in ("another loop", "no loop")


def score_tokens(logits: Float[Tensor, "n vocab"], tokens: Int[Tensor, "n"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-odds, margin, the best other token and the likeliest of all, for one token a row."""
    chosen = logits.argmax(dim=-1)
    own = logits.gather(1, tokens[:, None])
    others = logits.scatter(1, tokens[:, None], -torch.inf)
    best, other = others.max(dim=-1)
    return own[:, 0] - others.logsumexp(dim=-1), own[:, 0] - best, other, chosen


class Replay:
    """A loop of a model, ready to be played again."""

    def __init__(
        self, model: Shard, ids: Sequence[int], first: int, period: int, given: int = 2, packed: Packed | None = None
    ) -> None:
        """The loop of `period` begins at ids[first]; `given` copies of it stand in every row. Raises XrayError."""
        self.model, self.period, self.given = model, period, given
        self.before, self.block = list(ids[:first]), list(ids[first : first + period])
        self.step = max(1, period // STARTS)
        room = model.config.n_ctx - first - given * period - (STARTS - 1) * self.step
        self.length = min(3 * period + max(period, SHORTEST), room)
        if self.length < FEWEST_PERIODS * period:
            needed = first + given * period + (STARTS - 1) * self.step + FEWEST_PERIODS * period
            raise XrayError(
                f"the loop of {period} tokens begins at token {first}; to see whether it goes on takes {needed} tokens "
                f"and this model's context holds {model.config.n_ctx}; X-ray a loop that begins earlier"
            )
        self.text = [
            self.block[place % period] for place in range(given * period + (STARTS - 1) * self.step + self.length)
        ]
        self.effect = min(-(-EFFECT_TOKENS // period) * period, len(self.text) - given * period)
        self._start = Decoder(model, 1, first + len(self.text), packed or Packed(model))
        if self.before:
            for _ in self._start.feed([self.before]):
                pass

    @property
    def rows_at_once(self) -> int:
        """Rows whose keys and values fit CACHE_BYTES."""
        layers = self._start.cache.layers
        bytes_a_row = sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in layers)
        return max(1, CACHE_BYTES.get(self.model.device.type, CACHE_BYTES["cpu"]) // bytes_a_row)

    def scores(self, sets: Sequence[Sequence[Part]], bank: Activations) -> Replayed:
        """What the model thinks of the loop's tokens after the given copies, a row for each set; nothing is written."""
        return self.play(sets, bank, [[]] * len(sets))

    def play(
        self, sets: Sequence[Sequence[Part]], bank: Activations, starts: Sequence[Sequence[int]] | None = None
    ) -> Replayed:
        """The scores, and what becomes of the text of every set from each of its `starts` on (None: all STARTS)."""
        chosen = [list(range(STARTS)) for _ in sets] if starts is None else starts
        parts = []
        for first in range(0, len(sets), self.rows_at_once):
            some = slice(first, first + self.rows_at_once)
            parts.append(self._play(sets[some], bank, chosen[some]))
        return Replayed(
            np.concatenate([part.log_odds for part in parts]),
            np.concatenate([part.margin for part in parts]),
            [outcomes for part in parts for outcomes in part.outcomes],
        )

    def _play(self, sets: Sequence[Sequence[Part]], bank: Activations, starts: Sequence[Sequence[int]]) -> Replayed:
        given = self.given * self.period
        # As far as the last start of any row may have to go.
        last = max((start for row in starts for start in row), default=-1)
        text = self.text[: given + (self.effect if last < 0 else last * self.step + self.length)]
        tokens = torch.tensor(text, device=self.model.device).expand(len(sets), -1)
        scores = read_tokens(branch(self._start, [0] * len(sets)), Interventions(self.model, sets, bank), tokens)
        # Where each row first writes something else than the loop, from each start on.
        leaves = [np.flatnonzero(row) for row in scores.chosen != np.array(text)]
        turns: dict[tuple[int, int], int | None] = {}
        for row, places in enumerate(leaves):
            for start in starts[row]:
                begin = given + start * self.step
                turns[row, start] = next((int(at) for at in places if begin <= at < begin + self.length), None)
        written = self._continue(sets, bank, scores, [(row, at) for (row, _), at in turns.items() if at is not None])
        outcomes: list[list[Outcome]] = [[] for _ in sets]
        for (row, start), at in turns.items():
            begin = given + start * self.step
            after = text[begin:] if at is None else text[begin:at] + written[row, at]
            outcomes[row].append(self.outcome(after[: self.length]))
        effect = slice(given, given + self.effect)
        return Replayed(scores.log_odds[:, effect], scores.margin[:, effect], outcomes)

    def _continue(
        self, sets: Sequence[Sequence[Part]], bank: Activations, scores: TokenScores, turns: Sequence[tuple[int, int]]
    ) -> dict[tuple[int, int], list[int]]:
        """Greedy text of (row, place) from the place on, where the row writes its own choice instead of the loop."""
        written: dict[tuple[int, int], list[int]] = {}
        turns = sorted(set(turns))
        for first in range(0, len(turns), self.rows_at_once):
            some = turns[first : first + self.rows_at_once]
            texts = [[*self.text[:at], int(scores.chosen[row, at])] for row, at in some]
            interventions = Interventions(self.model, [sets[row] for row, _ in some], bank)
            longest = max(scores.chosen.shape[1] - len(text) for text in texts)
            rows = write_tokens(branch(self._start, [0] * len(some)), interventions, texts, longest)
            written |= {key: [text[-1], *row] for key, text, row in zip(some, texts, rows, strict=True)}
        return written

    def outcome(self, written: Sequence[int]) -> Outcome:
        """What a text, the loop's tokens among it or not, ends in."""
        loop = find_loop(written)
        if loop is None:
            return "no loop"
        block = written[loop.end - loop.period : loop.end]
        if is_rotation(block, self.block):
            return "same loop"
        own = _steps(self.block)
        shared = sum(step in own for step in _steps(block))
        return "variant" if 2 * shared >= len(_steps(block)) else "another loop"


def branch(decoder: Decoder, rows: Sequence[int]) -> Decoder:
    """A decoder of its own that goes on from copies of these sequences."""
    other = copy(decoder)
    other.cache = copy(decoder.cache)
    other.cache.layers = [copy(layer) for layer in decoder.cache.layers]
    other.keep(rows)
    return other


# ------------------------------------------------------------------------------------------------ reading and writing


def read_tokens(decoder: Decoder, interventions: Interventions, texts: Int[Tensor, "row pos"]) -> TokenScores:
    """Append the texts and score every token but the first of each, whose place holds zeros."""
    rows, pos = texts.shape
    columns: list[list[Tensor]] = [[] for _ in range(4)]
    at_once = max(1, LOGITS_AT_ONCE // decoder.model.config.vocab_size)
    for first in range(0, pos - 1, decoder.chunk):
        piece = texts[:, first : min(first + decoder.chunk, pos - 1)]
        following = texts[:, first + 1 : first + 1 + piece.shape[1]].flatten()
        hidden = _call(decoder, interventions, piece, [piece.shape[1]] * rows).flatten(0, 1)
        parts = [
            score_tokens(decoder.logits(some[:, None])[:, 0], token)
            for some, token in zip(hidden.split(at_once), following.split(at_once), strict=True)
        ]
        for column, values in zip(columns, zip(*parts, strict=True), strict=True):
            column.append(torch.cat(values).view(rows, -1))
    log_odds, margin, other, chosen = (F.pad(torch.cat(column, dim=1), (1, 0)).cpu().numpy() for column in columns)
    chosen[:, 0] = texts[:, 0].cpu().numpy()
    return TokenScores(log_odds, margin, other, chosen)


def write_tokens(
    decoder: Decoder, interventions: Interventions, texts: Sequence[Sequence[int]], count: int
) -> list[list[int]]:
    """Append the texts, of any lengths, and continue each with `count` greedy tokens."""
    logits = _prefill(decoder, interventions, texts)
    written = []
    for _ in range(count):
        ids = logits.argmax(dim=-1)
        written.append(ids)
        if len(written) < count:
            logits = decoder.logits(_call(decoder, interventions, ids[:, None], [1] * len(texts)))[:, 0]
    rows: list[list[int]] = torch.stack(written, dim=1).tolist() if written else [[] for _ in texts]
    return rows


def _prefill(
    decoder: Decoder, interventions: Interventions, texts: Sequence[Sequence[int]]
) -> Float[Tensor, "row vocab"]:
    """The logits after the last token of each text."""
    device, last = decoder.model.device, [torch.empty(0)] * len(texts)
    for first in range(0, max(map(len, texts)), decoder.chunk):
        pieces = [list(text[first : first + decoder.chunk]) for text in texts]
        counts = [len(piece) for piece in pieces]
        tokens = torch.tensor([piece + [0] * (max(counts) - len(piece)) for piece in pieces], device=device)
        hidden = _call(decoder, interventions, tokens, counts)
        for row, count in enumerate(counts):
            if 0 < count == len(texts[row]) - first:
                last[row] = hidden[row, count - 1]
    return decoder.logits(torch.stack(last)[:, None])[:, 0]


def _call(
    decoder: Decoder, interventions: Interventions, tokens: Int[Tensor, "row pos"], counts: Sequence[int]
) -> Float[Tensor, "row pos d_model"]:
    before = torch.tensor(decoder.cache.lengths)[:, None]
    interventions.move_to(before + torch.arange(tokens.shape[1]))
    with interventions.active():
        return decoder.hidden(tokens, counts)


def _steps(block: Sequence[int]) -> set[tuple[int, int]]:
    """From token to token, round and round."""
    return set(zip(block, [*block[1:], block[0]], strict=True))


def is_rotation(some: Sequence[int], block: Sequence[int]) -> bool:
    """Whether the one block is the other, begun elsewhere."""
    twice = [*block, *block]
    return len(some) == len(block) and any(
        twice[first : first + len(block)] == list(some) for first in range(len(block))
    )
