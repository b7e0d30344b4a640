"""What two texts have in common, as 64-bit numbers: polynomial hashes (Karp & Rabin 1987) of their folded characters.

Axes: byte, word, gram (13 words), document.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardscope.data.folding import SPACE, Places, folded, in_words
from shardscope.data.shards import WORDS_IN_COMMON

Bytes = NDArray[np.uint8]
Hashes = NDArray[np.uint64]

_BASE, _STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)  # odd, so they have inverses mod 2⁶⁴


class Documents(NamedTuple):
    """Texts end to end, and where each begins; a line end stands between them."""

    data: Bytes
    starts: Places


class Prints(NamedTuple):
    """What two overlapping documents have in common: hashes of their grams, and of their whole texts."""

    grams: Hashes
    gram_documents: Places  # which document a gram is of
    texts: Hashes  # one for each document; 0: it holds nothing but space


def prints_of(documents: Documents) -> Prints:
    """The prints of texts, folded: words for their grams, all but the amount of space for whole texts."""
    characters, starts = folded(*documents)
    in_word = in_words(characters)
    words, begins = _hashed_runs(characters, in_word)
    of_document = np.searchsorted(starts, begins, side="right") - 1
    count = max(0, len(words) - WORDS_IN_COMMON + 1)
    grams = np.zeros(count, np.uint64)
    for n in range(WORDS_IN_COMMON):
        grams = grams * _STEP + words[n : n + count]
    within = of_document[:count] == of_document[WORDS_IN_COMMON - 1 :][:count]
    tokens, begins = _hashed_runs(characters, characters != SPACE)
    first = np.searchsorted(begins, starts)
    after = np.append(first[1:], len(begins))
    texts = _hashed_spans(tokens, first, after)
    texts[after == first] = 0
    return Prints(_mixed(grams[within]), of_document[:count][within], texts)


def _hashed_runs(characters: NDArray[np.uint32], wanted: NDArray[np.bool_]) -> tuple[Hashes, Places]:
    """The hash of every longest run of wanted characters, and where it begins."""
    edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
    begins, ends = edges[::2], edges[1::2]
    return _hashed_spans(characters.astype(np.uint64), begins, ends), begins


def _hashed_spans(values: Hashes, begins: Places, ends: Places) -> Hashes:
    """The hash of every span of the values: of what is in it, wherever it lies."""
    powers, inverses = _powers(len(values))
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum((values + np.uint64(1)) * powers[: len(values)])])
    return _mixed((total[ends] - total[begins]) * inverses[begins])


def _powers(count: int) -> tuple[Hashes, Hashes]:
    """_BASE to the powers 0, 1, 2 … and their inverses, mod 2⁶⁴; at least one more than `count`."""
    return _powers_below(1 << max(16, count.bit_length()))


@lru_cache(maxsize=4)
def _powers_below(count: int) -> tuple[Hashes, Hashes]:
    inverse = np.uint64(pow(int(_BASE), -1, 2**64))
    both = []
    for base in (_BASE, inverse):
        factors = np.full(count, base, np.uint64)
        factors[0] = 1
        both.append(np.cumprod(factors))
    return both[0], both[1]


def _mixed(hashes: Hashes) -> Hashes:
    """All bits of a hash spread over all of it (splitmix64, Steele et al. 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))
