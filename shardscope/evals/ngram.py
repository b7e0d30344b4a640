"""n-gram models of bytes and of words: the least that a language model has to beat.

Interpolated modified Kneser–Ney smoothing (Chen & Goodman 1999, doi:10.1006/csla.1999.0128, 4.1.6), as KenLM estimates
it: the longest grams keep their counts, shorter ones count the different symbols that came before them, and each count
of one, two, and three or more gives up its own discount to the next shorter history, down to the uniform distribution.

Axes: pos (symbols of a text), gram (the different runs of n symbols, sorted), history (the grams of n - 1 symbols).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Integer, UInt8
from numpy import ndarray

from shardscope.config import ConfigError

MAX_ORDER = 16
MAX_SYMBOLS = 1 << 31  # so many grams fit their 32-bit numbers
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # where a text is too short or too regular to estimate them; KenLM's own
WORD_ORDER = 5
SPELLING_ORDER = 6
_DENSE = 1 << 24

# A word or a sign with the space before it, a single digit, or a run of white space; nothing is lost.
_WORD = re.compile(rb" ?[A-Za-z\x80-\xff]+| ?[0-9]| ?[^\sA-Za-z0-9\x80-\xff]|\s+(?!\S)|\s+")
_UNKNOWN = 0  # stands for every word seen once or never
_END = 256  # of a spelled word


class KneserNey:
    """Trained on a sequence of symbols 0 … `symbols` - 1; order 3 predicts one from the two before it.

    Raises ConfigError for an order or a length that the tables cannot hold.
    """

    def __init__(self, text: Integer[ndarray, "pos"], symbols: int, order: int) -> None:
        if not 1 <= order <= MAX_ORDER:
            raise ConfigError(f"an n-gram model of order {order} is not supported; use 1 to {MAX_ORDER} (--ngram)")
        if len(text) >= MAX_SYMBOLS:
            raise ConfigError(
                f"an n-gram model of {len(text):,} symbols is not supported; use fewer than {MAX_SYMBOLS:,}"
            )
        self.order, self.symbols = order, symbols
        self._levels: list[_Level] = []
        # The number of the gram of n - 1 symbols that starts at each symbol; there is one of none.
        grams = np.zeros(len(text) + 1, dtype=np.int32)
        for n in range(1, min(order, len(text)) + 1):
            codes = grams[: len(text) - n + 1].astype(np.int64) * symbols + text[n - 1 :]
            level, longer, example = _Level.of(codes)
            if self._levels:
                # An example of each gram says which shorter gram it ends with.
                self._levels[-1].counts = np.bincount(grams[example + 1], minlength=len(self._levels[-1].keys))
            self._levels.append(level)
            grams = longer
        for level in self._levels:
            level.smooth(symbols)

    def bits(self, text: Integer[ndarray, "pos"]) -> Float[ndarray, "pos"]:
        """-log2 p of every symbol, given those before it in `text`."""
        probability = np.full(len(text), 1 / self.symbols)
        history = np.zeros(len(text), dtype=np.int64)  # -1: never seen
        for level in self._levels:
            gram, share, rest = level.look_up(history, text, self.symbols)
            probability = np.where(history >= 0, share + rest * probability, probability)
            # The gram that ends at a symbol is the history of the next.
            history = np.append(-1, gram)[: len(text)]
        return -np.log2(probability)


class _Level:
    """The grams of one length: their codes (number of the history · symbols + last symbol), counts, and discounts."""

    def __init__(self, keys: Integer[ndarray, "gram"], counts: Integer[ndarray, "gram"]) -> None:
        self.keys, self.counts = keys, counts

    @classmethod
    def of(cls, codes: Integer[ndarray, "pos"]) -> tuple[_Level, Integer[ndarray, "pos"], Integer[ndarray, "gram"]]:
        """The level, for each position the number of its gram, and for each gram a position where it stands."""
        if int(codes.max()) < max(_DENSE, 4 * len(codes)):  # a table of every code is far quicker than a sort
            counts = np.bincount(codes)
            keys = np.flatnonzero(counts)
            number = np.cumsum(counts > 0, dtype=np.int32) - 1
            grams = number[codes]
            example = np.empty(len(keys), dtype=np.int64)
            example[grams] = np.arange(len(codes))
            return cls(keys, counts[keys]), grams, example
        by_code = np.argsort(codes)
        ordered = codes[by_code]
        new = np.append(True, ordered[1:] != ordered[:-1])
        grams = np.empty(len(codes), dtype=np.int32)
        grams[by_code] = np.cumsum(new, dtype=np.int32) - 1
        starts = np.flatnonzero(new)
        return cls(ordered[starts], np.diff(np.append(starts, len(codes)))), grams, by_code[starts]

    def smooth(self, symbols: int) -> None:
        """What each gram keeps of its history's probability, and what each history leaves to the shorter one."""
        discounts = np.array([0.0, *_discounts(self.counts)])
        lost = discounts[np.minimum(self.counts, 3)]
        history = self.keys // symbols
        seen = np.bincount(history, weights=self.counts)
        total = np.maximum(seen[history], 1)
        self.kept = ((self.counts - lost) / total).astype(np.float32)
        # A history seen only at the very beginning of the text has counts of 0, and leaves everything.
        self.left = np.where(seen > 0, np.bincount(history, weights=lost) / np.maximum(seen, 1), 1.0)

    def look_up(
        self, history: Integer[ndarray, "pos"], text: Integer[ndarray, "pos"], symbols: int
    ) -> tuple[Integer[ndarray, "pos"], Float[ndarray, "pos"], Float[ndarray, "pos"]]:
        """The grams' numbers (-1: never seen), what they keep, and what their histories leave."""
        codes = history * symbols + text
        place = np.minimum(np.searchsorted(self.keys, codes), len(self.keys) - 1)
        found = (history >= 0) & (self.keys[place] == codes)
        known = (history >= 0) & (history < len(self.left))
        rest = np.where(known, self.left[np.where(known, history, 0)], 1.0)
        return np.where(found, place, -1), np.where(found, self.kept[place], 0.0), rest


class ByteNGram:
    """Trained on the bytes of `text`; `order` 3 predicts a byte from the two before it."""

    def __init__(self, text: UInt8[ndarray, "pos"], order: int = 3) -> None:
        self._model = KneserNey(text, 256, order)

    def bits(self, text: UInt8[ndarray, "pos"]) -> Float[ndarray, "pos"]:
        """-log2 p of every byte, given those before it in `text`."""
        return self._model.bits(text)


class WordNGram:
    """An n-gram model of words; a word seen once or never is announced as unknown and then spelled.

    The bits are those of an exact code for the bytes: a word's own, or those of "unknown", of each byte by a byte model
    of the words seen once, and of the word's end.
    """

    def __init__(self, text: UInt8[ndarray, "pos"], order: int = WORD_ORDER) -> None:
        counts = Counter[bytes]()
        for piece in _pieces(text):
            counts.update(_WORD.findall(piece))
        known = sorted(word for word, count in counts.items() if count > 1)
        self._ids = {word: id for id, word in enumerate(known, start=_UNKNOWN + 1)}
        once = sorted(word for word, count in counts.items() if count == 1)
        ids = [self._words(_WORD.findall(piece)) for piece in _pieces(text)]
        self._model = KneserNey(np.concatenate(ids or [np.empty(0, dtype=np.int32)]), len(known) + 1, order)
        self._spelling = KneserNey(_spelled(once), _END + 1, SPELLING_ORDER)

    def bits(self, text: UInt8[ndarray, "pos"]) -> float:
        """-log2 p of the whole text."""
        words = _WORD.findall(text.tobytes())
        ids = self._words(words)
        unknown = [words[place] for place in np.flatnonzero(ids == _UNKNOWN)]
        return float(self._model.bits(ids).sum() + self._spelling.bits(_spelled(unknown))[1:].sum())

    def _words(self, words: list[bytes]) -> Integer[ndarray, "pos"]:
        return np.fromiter((self._ids.get(word, _UNKNOWN) for word in words), dtype=np.int32, count=len(words))


def _discounts(counts: Integer[ndarray, "gram"]) -> tuple[float, float, float]:
    """What counts of 1, 2, and 3 or more give up; equation 26 of Chen and Goodman."""
    one, two, three, four = (int(np.count_nonzero(counts == times)) for times in (1, 2, 3, 4))
    if not (one and two and three):
        return FALLBACK_DISCOUNTS
    y = one / (one + 2 * two)
    found = (1 - 2 * y * two / one, 2 - 3 * y * three / two, 3 - 4 * y * four / three)
    return found if all(0 <= lost <= times for times, lost in enumerate(found, start=1)) else FALLBACK_DISCOUNTS


def _spelled(words: Iterable[bytes]) -> Integer[ndarray, "pos"]:
    """The bytes of the words, with a sign at the very beginning and after each."""
    return np.array([_END, *(symbol for word in words for symbol in (*word, _END))], dtype=np.int32)


def _pieces(text: UInt8[ndarray, "pos"], size: int = 1 << 24) -> Iterable[bytes]:
    """The text in pieces, so that its words are never all in memory as Python objects."""
    return (text[first : first + size].tobytes() for first in range(0, len(text), size))
