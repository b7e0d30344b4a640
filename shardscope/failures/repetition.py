"""Near-repetition: text that says the same again and again without ever repeating itself exactly.

Two measures, each against what people of the same domain write at the same length: the share of 4-grams of words that
stood in the passage before (Welleck et al. 2020, arXiv:1908.04319, call it seq-rep-4), and how many times smaller zlib
makes it (Radford et al. 2022, arXiv:2212.04356, drop transcripts above 2.4). Both grow with length, so a text is
judged by passages of one of a few sizes: the largest that fits. Words and signs are counted, not tokens, so that one
limit serves every tokenizer. The limits are percentiles of people's text: `calibration.py`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

SIZES = (96, 192, 384, 768, 1536)  # characters
GRAM = 4

# A word, or a row of one sign: a dotted line says nothing twice.
_UNIT = re.compile(r"\w+|([^\w\s])\1*")


class Passage(NamedTuple):
    """Characters start … end - 1, what share of their 4-grams is repeated, and bytes per byte of zlib's output."""

    start: int
    end: int
    repeated: float
    compression: float


def find_repetition(text: str, limits: Mapping[int, tuple[float, float]]) -> Passage | None:
    """The most repetitive passage if it is above a limit, else None.

    `limits` gives, for each of SIZES, the largest share of repeated 4-grams and the largest compression that people's
    text of the domain shows. A text shorter than the smallest size is not judged.
    """
    found = passages(text)
    if not found:
        return None
    most_repeated, most_compressed = limits[_size(text)]
    above = [p for p in found if p.repeated > most_repeated or p.compression > most_compressed]
    return max(above, key=lambda passage: passage.repeated + passage.compression, default=None)


def passages(text: str) -> list[Passage]:
    """Overlapping passages of the largest size that fits, half a passage apart, the last one at the end."""
    size = _size(text)
    if size == 0:
        return []
    last = len(text) - size
    return [_measured(text, start, start + size) for start in sorted({*range(0, last, size // 2), last})]


def _size(text: str) -> int:
    return max((size for size in SIZES if size <= len(text)), default=0)


def _measured(text: str, start: int, end: int) -> Passage:
    passage = text[start:end]
    units = [unit[0] for unit in _UNIT.finditer(passage)]
    grams = list(zip(*(units[place:] for place in range(GRAM)), strict=False))
    repeated = 1 - len(set(grams)) / len(grams) if grams else 0.0
    data = passage.encode("utf-8", errors="replace")
    return Passage(start, end, repeated, len(data) / len(zlib.compress(data)))
