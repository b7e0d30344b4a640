"""Letters in place of words: passages in which too many words are none.

A word is one if it stood in the training text three times (`TextModel.knows`). Only words of lower-case letters with
nothing but space or a sentence's marks around them are asked about: names and identifiers are nobody's mistake.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from shardscope.failures.text_model import TextModel

FEWEST = 12  # words asked about, before anything is said
LONGEST = 48  # words of a passage

_PLAIN = re.compile(r"(?:(?<=[\s(\"'“‘—])|^)[a-z]{3,}(?=[\s.,;:!?)\"'”’—]|$)(?![.:](?=\w))")


class BrokenWords(NamedTuple):
    """Characters start … end - 1, and the share of their plain words that no training text has."""

    start: int
    end: int
    share: float


def find_broken_words(text: str, model: TextModel, limit: float) -> BrokenWords | None:
    """The passage with the largest share of unknown words, if that is above `limit`; None otherwise."""
    worst = most_broken(text, model)
    return worst if worst is not None and worst.share > limit else None


def is_unfamiliar(prompt: str, model: TextModel) -> bool:
    """Whether half of a prompt's plain words, three or more, are unknown: another language, which is not judged."""
    words = [word[0] for word in _PLAIN.finditer(prompt)]
    return len(words) >= 3 and 2 * sum(not model.knows(word) for word in words) >= len(words)


def most_broken(text: str, model: TextModel) -> BrokenWords | None:
    """The passage of 48 plain words (all, where there are fewer, but at least 12) with the most unknown ones."""
    words = list(_PLAIN.finditer(text))
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
