"""Text without what does not make it another text: case, the kind of space, quotation mark or dash, and spelling.

Unicode spells é in two ways, ﬁ in two, and has spaces, quotation marks, dashes and invisible characters (soft hyphens,
zero-width spaces, byte order marks) that come and go as text is copied. `folded` takes compatibility forms (NFKC) of
case-folded text (Unicode Standard Annex 15, and section 3.13 of the standard), leaves invisible characters out, and
writes spaces, quotation marks and dashes as ASCII does.

Axes: byte, character, document.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Characters = NDArray[np.uint32]  # code points
Places = NDArray[np.int64]

SPACE = ord(" ")
_LEFT_OUT = 0
_KNOWN = 0x20000  # code points from here on are ideographs, nearly all
_QUOTES = dict.fromkeys("`‘’‚‛′‵‹›", "'") | dict.fromkeys("“”„‟″‶«»", '"')


class Folded(NamedTuple):
    """Documents end to end, and where each begins."""

    characters: Characters
    starts: Places


def folded(data: NDArray[np.uint8], starts: Places) -> Folded:
    """Documents of UTF-8 end to end, folded; bytes that are no UTF-8 are U+FFFD."""
    ascii_forms = _tables()[0][:128]
    stops = np.append(starts[1:], len(data))
    beyond_ascii = np.concatenate([np.zeros(1, np.int64), np.cumsum(data >= 128)])
    lengths, done = stops - starts, 0
    pieces: list[Characters] = []
    for number in np.flatnonzero(beyond_ascii[stops] > beyond_ascii[starts]).tolist():
        start, stop = int(starts[number]), int(stops[number])
        pieces += [ascii_forms[data[done:start]], _folded_text(data[start:stop].tobytes())]
        lengths[number], done = len(pieces[-1]), stop
    pieces.append(ascii_forms[data[done:]])
    return Folded(np.concatenate(pieces), starts[:1].sum() + np.cumsum(lengths) - lengths)


def in_words(characters: Characters) -> NDArray[np.bool_]:
    """Which characters are part of a word: letters, digits, and the marks that belong to them."""
    return _tables()[1][np.minimum(characters, _KNOWN - 1)]


def _folded_text(data: bytes) -> Characters:
    # NFKC would make a space and an accent of it.
    text = data.decode("utf-8", errors="replace").replace("´", "'")
    text = unicodedata.normalize("NFKC", text).casefold()
    text = unicodedata.normalize("NFKC", text)  # folding case may take a letter apart
    characters = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint32, copy=False)
    forms = _tables()[0][np.minimum(characters, _KNOWN - 1)]
    characters = np.where(characters < _KNOWN, forms, characters)
    return characters[characters != _LEFT_OUT]


@cache
def _tables() -> tuple[Characters, NDArray[np.bool_]]:
    """For each code point below _KNOWN what stands for it, and whether it is part of a word."""
    forms, word = np.arange(_KNOWN, dtype=np.uint32), np.ones(_KNOWN, np.bool_)
    for code in range(_KNOWN - 1):  # the last stands for all that follow
        character = chr(code)
        category = unicodedata.category(character)
        word[code] = character.isalnum() or category[0] == "M"
        if category == "Cf" or 0xFE00 <= code <= 0xFE0F:  # formats, and selectors of a glyph
            forms[code], word[code] = _LEFT_OUT, False
        elif character.isspace() or category == "Cc":
            forms[code] = SPACE
        elif category == "Pd" or character == "−":
            forms[code] = ord("-")
        else:
            forms[code] = ord(_QUOTES.get(character, character.lower() if code < 128 else character))
    return forms, word
