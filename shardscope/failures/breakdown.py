"""Symbol breakdown: where text gives way to punctuation, repeated signs, or bytes that are no characters.

A window of 32 tokens (all of them, if fewer) breaks down when a large share of its visible characters are neither
letters nor digits, and a run of five or more of one such character is a breakdown of its own. How large a share is too
large, and what is no sign of anything, depends on the domain (`RULES`): TeX is full of backslashes, code of brackets.
In code, rules of up to 80 signs (`# -----`, `=====`) are ordinary as well, and two windows must break down; elsewhere
dashes, blanks to fill in and dotted lines of that length are. The mark after a list's number or letter (`1.`, `b)`)
never counts. The limits are this project's own, set so that people's text stays below them: docs/failures.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

from shardscope.failures.prompts import Domain

BreakdownKind = Literal["same_char", "mixed_symbols", "encoding"]

WINDOW = 32
RUN = 5
FEWEST = 5  # visible characters a window needs
REPLACEMENT = "\ufffd"

_RUN = re.compile(rf"([^\w\s]|_)\1{{{RUN - 1},}}")
_RULE = re.compile(r"(?m)^[ \t]*(?:(?:#|//)[ \t]*)?([-=#*~+_])\1{2,79}[ \t]*(?:(?:#|//)[ \t]*)?$")
_LEADER = re.compile(r"([-._])\1{2,79}(?!\1)")
_LIST_MARK = re.compile(r"(?<!\S)(\(?(?:\d+|[A-Za-z]))[.)](?=\s)")


class Rule(NamedTuple):
    """At least `share` of the visible characters but the `ignored` ones are signs, in `windows` windows apart."""

    share: float
    ignored: frozenset[str] = frozenset()
    windows: int = 1


RULES: dict[Domain, Rule] = {
    "prose": Rule(0.7),
    "math": Rule(0.65, frozenset("()[]{}\\$^_&|+-−=")),
    "code": Rule(0.85, frozenset("()[]{}"), windows=2),
}


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Tokens start … end - 1 break down; `share` of their visible characters are neither letters nor digits."""

    start: int
    end: int
    share: float
    kind: BreakdownKind


def find_breakdown(pieces: Sequence[str], domain: Domain | None = None) -> Breakdown | None:
    """The first breakdown in an output, given as the text of each token, or None."""
    rule, code = RULES[domain or "prose"], domain == "code"
    text = _LIST_MARK.sub(r"\1 ", "".join(pieces))
    text = (_RULE if code else _LEADER).sub(lambda line: " " * len(line[0]), text)
    symbols, visible = _counts(text, pieces, rule.ignored)
    windows = _broken_windows(symbols, visible, rule.share)
    if windows and windows[-1] < windows[0] + (rule.windows - 1) * WINDOW:
        windows = []
    runs = None if code else next((run for run in _RUN.finditer(text) if run[1] not in rule.ignored), None)
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
    ends = [0, *accumulate(map(len, pieces))]
    seen = [not c.isspace() and c not in ignored for c in text]
    visible = [0, *accumulate(seen)]
    symbols = [0, *accumulate(shown and not c.isalnum() for shown, c in zip(seen, text, strict=True))]
    return [symbols[end] for end in ends], [visible[end] for end in ends]


def _broken_windows(symbols: list[int], visible: list[int], share: float) -> list[int]:
    """Where the windows start that have at least this share of symbols."""
    tokens = len(symbols) - 1
    width = min(WINDOW, tokens)
    return [
        start
        for start in range(tokens - width + 1)
        if visible[start + width] - visible[start] >= FEWEST
        and symbols[start + width] - symbols[start] >= share * (visible[start + width] - visible[start])
    ]


def _kind(text: str) -> BreakdownKind:
    symbols = [c for c in text if not c.isspace() and not c.isalnum()]
    if 2 * symbols.count(REPLACEMENT) >= len(symbols):
        return "encoding"
    return "same_char" if _RUN.search(text) else "mixed_symbols"


def _token_at(pieces: Sequence[str], character: int) -> int:
    """The token that the text's character number `character` belongs to."""
    return next(token for token, end in enumerate(accumulate(map(len, pieces))) if character < end)
