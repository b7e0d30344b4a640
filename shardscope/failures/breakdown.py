"""Symbol breakdown: where text gives way to punctuation, repeated signs, or bytes that are no characters.

A window of 32 tokens (all of them, if fewer) breaks down when at least half of its visible characters are neither
letters nor digits; and any run of five or more of one such character is a breakdown of its own. In code, indentation,
brackets, and rules of up to 80 signs (`# -----`, `=====`) are ordinary, and two windows must break down.
The limits are this project's own. `label` says how often they fire on text that people wrote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from shardscope.failures.prompts import Domain

BreakdownKind = Literal["same_char", "mixed_symbols", "encoding"]

WINDOW = 32
SHARE = 0.5
RUN = 5
FEWEST = 5  # visible characters a window needs
REPLACEMENT = "\ufffd"

_RUN = re.compile(rf"([^\w\s]|_)\1{{{RUN - 1},}}")
_RULE = re.compile(r"(?m)^[ \t]*(?:#|//)?[ \t]*([-=#*~+_])\1{2,79}[ \t]*(?:#|//)?[ \t]*$")
_BRACKETS = frozenset("()[]{}")


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Tokens start … end - 1 break down; `share` of their visible characters are neither letters nor digits."""

    start: int
    end: int
    share: float
    kind: BreakdownKind


def find_breakdown(pieces: Sequence[str], domain: Domain | None = None) -> Breakdown | None:
    """The first breakdown in an output, given as the text of each token, or None."""
    code = domain == "code"
    text = "".join(pieces)
    if code:
        text = _RULE.sub(lambda rule: " " * len(rule[0]), text)
    symbols, visible = _counts(text, pieces, ignored=_BRACKETS if code else frozenset())
    windows = _broken_windows(symbols, visible)
    if code:
        windows = windows if windows and windows[-1] >= windows[0] + WINDOW else []
    runs = None if code else _RUN.search(text)
    if not windows and not runs:
        return None
    if runs and not (windows and windows[0] <= _token_at(pieces, runs.start())):
        start, end = _token_at(pieces, runs.start()), _token_at(pieces, runs.end() - 1) + 1
    else:
        start, end = windows[0], min(windows[0] + WINDOW, len(pieces))
    ends = [0, *accumulate(map(len, pieces))]
    share = (symbols[end] - symbols[start]) / max(1, visible[end] - visible[start])
    return Breakdown(start=start, end=end, share=share, kind=_kind(text[ends[start] : ends[end]]))


def _counts(text: str, pieces: Sequence[str], ignored: frozenset[str]) -> tuple[list[int], list[int]]:
    """For every number of leading pieces, how many symbols and how many visible characters they hold."""
    symbols, visible = [0], [0]
    at = 0
    for piece in pieces:
        seen = [c for c in text[at : at + len(piece)] if not c.isspace() and c not in ignored]
        symbols.append(symbols[-1] + sum(not c.isalnum() for c in seen))
        visible.append(visible[-1] + len(seen))
        at += len(piece)
    return symbols, visible


def _broken_windows(symbols: list[int], visible: list[int]) -> list[int]:
    """Where the windows start that are at least half symbols."""
    tokens = len(symbols) - 1
    width = min(WINDOW, tokens)
    return [
        start
        for start in range(tokens - width + 1)
        if visible[start + width] - visible[start] >= FEWEST
        and symbols[start + width] - symbols[start] >= SHARE * (visible[start + width] - visible[start])
    ]


def _kind(text: str) -> BreakdownKind:
    symbols = [c for c in text if not c.isspace() and not c.isalnum()]
    if 2 * symbols.count(REPLACEMENT) >= len(symbols):
        return "encoding"
    return "same_char" if _RUN.search(text) else "mixed_symbols"


def _token_at(pieces: Sequence[str], character: int) -> int:
    """The token that the text's character number `character` belongs to."""
    return next(token for token, end in enumerate(accumulate(map(len, pieces))) if character < end)
