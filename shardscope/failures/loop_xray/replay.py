"""The loop played again under many interventions at once: does it go on, and how sure is the model of each next token?

What comes before the loop passes through the model once, untouched; its keys and values are copied for every row. Then
each row is given the loop's first copies and the text that the loop would go on with, all in one pass, intervened in.
A row whose likeliest tokens are those of the loop throughout has thereby written the loop: greedy decoding would give
the same. Only a row that leaves it is continued token by token from there. Four copies of a loop settle a row.

Axes: row, pos, vocab.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from shardscope.failures.loop_xray.interventions import Activations, Interventions
from shardscope.failures.loop_xray.parts import Part, XrayError
from shardscope.failures.loop_xray.rows import branch, read_tokens, rows_at_once, write_tokens
from shardscope.failures.loops import MIN_COPIES_OF_ONE_TOKEN, MIN_TOKENS, find_loop
from shardscope.generation import Decoder, Packed
from shardscope.model import Shard

# "variant": another loop, at least half of whose steps from token to token are the loop's own.
Outcome = Literal["same loop", "variant", "another loop", "no loop"]

STARTS = 8  # places at which greedy decoding takes over, spread over a period
FEWEST_PERIODS = 4  # that a text is given to show that it still loops; find_loop asks for three
SHORTEST = 96  # tokens in which another loop can show itself, besides three periods
EFFECT_TOKENS = 16  # an effect is a mean over at least so many tokens, in whole periods


@dataclass(frozen=True, eq=False)
class Replayed:
    """The rows of one replay: scores of the loop's tokens after its given copies, and what became of each start."""

    log_odds: Float[np.ndarray, "row pos"]
    margin: Float[np.ndarray, "row pos"]
    outcomes: list[list[Outcome]]  # by row and start


def breaks(outcome: Outcome) -> bool:
    """Whether the text ends neither in the loop nor in a variant of it."""
    return outcome in ("another loop", "no loop")


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
        # So much of the loop is a text that still loops; a text that has left it is followed for `length` tokens.
        self.settled = min(self.length, max(FEWEST_PERIODS * period, MIN_TOKENS, MIN_COPIES_OF_ONE_TOKEN))
        self.text = [
            self.block[place % period] for place in range(given * period + (STARTS - 1) * self.step + self.length)
        ]
        self.effect = min(-(-EFFECT_TOKENS // period) * period, len(self.text) - given * period)
        self._start = Decoder(model, 1, first + len(self.text), packed or Packed(model))
        self._at_once = rows_at_once(self._start)
        if self.before:
            for _ in self._start.feed([self.before]):
                pass

    def scores(self, sets: Sequence[Sequence[Part]], bank: Activations) -> Replayed:
        """What the model thinks of the loop's tokens after the given copies, a row for each set; nothing is written."""
        return self.play(sets, bank, [[]] * len(sets))

    def play(
        self, sets: Sequence[Sequence[Part]], bank: Activations, starts: Sequence[Sequence[int]] | None = None
    ) -> Replayed:
        """The scores, and what becomes of the text of every set from each of its `starts` on (None: all STARTS)."""
        chosen = [list(range(STARTS)) for _ in sets] if starts is None else starts
        parts = []
        for first in range(0, len(sets), self._at_once):
            some = slice(first, first + self._at_once)
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
        reach = max(self.effect, 0 if last < 0 else last * self.step + self.settled)
        text = self.text[: given + reach]
        tokens = torch.tensor(text, device=self.model.device).expand(len(sets), -1)
        interventions = Interventions(self.model, sets, bank)
        scores = read_tokens(branch(self._start, [0] * len(sets)), interventions, tokens, first=given)
        # Where each row first writes something else than the loop, from each start on.
        leaves = [given + np.flatnonzero(row) for row in scores.chosen != np.array(text[given:])]
        turns: dict[tuple[int, int], int | None] = {}
        for row, places in enumerate(leaves):
            for start in starts[row]:
                begin = given + start * self.step
                turns[row, start] = next((int(at) for at in places if begin <= at < begin + self.settled), None)
        left = {(row, at): int(scores.chosen[row, at - given]) for (row, _), at in turns.items() if at is not None}
        written = self._continue(sets, bank, left, given + max(0, last) * self.step + self.length)
        outcomes: list[list[Outcome]] = [[] for _ in sets]
        for (row, start), at in turns.items():
            begin = given + start * self.step
            after = text[begin : begin + self.settled] if at is None else text[begin:at] + written[row, at]
            outcomes[row].append(self.outcome(after[: self.length]))
        return Replayed(scores.log_odds[:, : self.effect], scores.margin[:, : self.effect], outcomes)

    def _continue(
        self, sets: Sequence[Sequence[Part]], bank: Activations, left: Mapping[tuple[int, int], int], end: int
    ) -> dict[tuple[int, int], list[int]]:
        """Greedy text of (row, place) from the place on, at which the row writes a token of its own; up to `end`."""
        written: dict[tuple[int, int], list[int]] = {}
        turns = sorted(left)
        for first in range(0, len(turns), self._at_once):
            some = turns[first : first + self._at_once]
            texts = [[*self.text[:at], left[row, at]] for row, at in some]
            interventions = Interventions(self.model, [sets[row] for row, _ in some], bank)
            longest = max(end - len(text) for text in texts)
            decoder = branch(self._start, [0] * len(some))
            rows = write_tokens(decoder, interventions, texts, longest, settled_copies=FEWEST_PERIODS)
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


def _steps(block: Sequence[int]) -> set[tuple[int, int]]:
    """From token to token, round and round."""
    return set(zip(block, [*block[1:], block[0]], strict=True))


def is_rotation(some: Sequence[int], block: Sequence[int]) -> bool:
    """Whether the one block is the other, begun elsewhere."""
    twice = [*block, *block]
    return len(some) == len(block) and any(
        twice[first : first + len(block)] == list(some) for first in range(len(block))
    )
