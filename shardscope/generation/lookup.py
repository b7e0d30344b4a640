"""Guessing the next tokens from the text so far, for greedy decoding.

Where a sequence repeats itself, what followed the last few tokens before will follow again. Several guesses pass
through the model in one step, and those are accepted that the model would have chosen itself: the text is that of one
token at a time (speculative decoding, Leviathan et al. 2023, arXiv:2211.17192, with the text itself as the draft, as in
prompt lookup, https://github.com/apoorvumang/prompt-lookup-decoding). A step of few rows costs a CPU little more than
one of a single row, because both read every weight once; and small models repeat themselves a lot.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST = 15  # guesses at once
FEWEST = 2
_LONGEST, _SHORTEST = 4, 2  # tokens that have to be equal


class Guesser:
    """The tokens of one sequence, and what they suggest."""

    def __init__(self, ids: Sequence[int], most: int = MOST) -> None:
        """`most` is the largest number of guesses at once."""
        self.ids: list[int] = []
        self._most = max(0, most)
        self._many = min(FEWEST, self._most)
        # For every run of tokens, where the text went on after it the last time.
        self._after: dict[tuple[int, ...], int] = {}
        for id in ids:
            self.push(id)

    def push(self, id: int) -> None:
        for length in range(_SHORTEST, _LONGEST + 1):
            if len(self.ids) >= length:
                self._after[tuple(self.ids[-length:])] = len(self.ids)
        self.ids.append(id)

    def guess(self, most: int) -> list[int]:
        """At most `most` tokens that may follow; none where the last few are new."""
        many = min(self._many, most)
        for length in range(_LONGEST, _SHORTEST - 1, -1):
            start = self._after.get(tuple(self.ids[-length:])) if len(self.ids) >= length else None
            if start is not None and many > 0:
                found = self.ids[start : start + many]
                # A period shorter than the guess goes round.
                period = len(self.ids) - start
                return [found[place % period] for place in range(many)]
        return []

    def learn(self, guessed: int, right: int) -> None:
        """Guess more after a guess that was right throughout, and as much as was right after another."""
        if guessed:
            self._many = (
                min(2 * self._many + 1, self._most) if right == guessed else max(right, min(FEWEST, self._most))
            )
