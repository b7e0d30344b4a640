"""Letters in place of words: passages in which too many words are none.

A word is one if it stood in the training text twice (`TextModel.knows`). People's names, identifiers and rare words are
none either, so a passage is held to what people of the domain write at its length: `calibration.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from shardscope.failures.text_model import TextModel

SIZES = (64, 128, 256, 512, 1024)  # characters of a text; the limit is that of the largest that fits
FEWEST = 8  # words, before anything is said
LONGEST = 48  # words of a passage

_WORD = re.compile(r"[^\W\d_]{3,}")


class BrokenWords(NamedTuple):
    """Characters start … end - 1, and the share of their words that no training text has."""

    start: int
    end: int
    share: float


def find_broken_words(text: str, model: TextModel, limits: Mapping[int, float]) -> BrokenWords | None:
    """The passage with the largest share of unknown words, if that is above the limit; None otherwise.

    `limits` gives, for each of SIZES, the largest share in people's text of about that length. A text shorter than the
    smallest size is not judged.
    """
    size = max((size for size in SIZES if size <= len(text)), default=None)
    worst = None if size is None else most_broken(text, model)
    return worst if size is not None and worst is not None and worst.share > limits[size] else None


def is_unfamiliar(prompt: str, model: TextModel) -> bool:
    """Whether half of a prompt's words, three or more, are unknown: another language, which is not judged."""
    words = [word[0] for word in _WORD.finditer(prompt)]
    return len(words) >= 3 and 2 * sum(not model.knows(word) for word in words) >= len(words)


def most_broken(text: str, model: TextModel) -> BrokenWords | None:
    """The passage of 48 words (all, where there are fewer, but at least 8) with the most unknown ones."""
    words = list(_WORD.finditer(text))
    if len(words) < FEWEST:
        return None
    unknown = [not model.knows(word[0]) for word in words]
    width = min(LONGEST, len(words))
    count = most = sum(unknown[:width])
    first = 0
    for start in range(1, len(words) - width + 1):
        count += unknown[start + width - 1] - unknown[start - 1]
        if count > most:
            most, first = count, start
    return BrokenWords(words[first].start(), words[first + width - 1].end(), most / width)
