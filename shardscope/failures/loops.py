"""Loops: a sequence that ends in copies of one block of tokens.

For a period p let m(p) be the length of the longest suffix in which t[i] = t[i - p]; then m(p) + p tokens are
repeats(p) = (m(p) + p) / p copies of p tokens. The smallest p that qualifies is the primitive period:

    p = 1: at least 8 copies          2 ≤ p ≤ 256: at least 3 copies, and at least 24 tokens

The limits are this project's own. `label` says how often they fire on text that people wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

LoopKind = Literal["token", "phrase", "sentence", "block", "counter"]

MAX_PERIOD = 256
MIN_COPIES_OF_ONE_TOKEN = 8
MIN_COPIES = 3
MIN_TOKENS = 24
SUSPECT_COPIES = 2
SUSPECT_TOKENS = 8  # shorter repeats are everywhere in ordinary text
BLOCK = 64  # a longer period is a block
NUMBER = -1  # stands for a run of digits; no token has this id


@dataclass(frozen=True, kw_only=True)
class Loop:
    """`repeats` copies of `period` tokens, from token `start` to token `end` (not included).

    kind: token (period 1), block (period above 64), sentence (the period holds . ? ! or a line's end), phrase (any
    other), counter (a loop once every number counts as the same one; its period is that of the first copy).
    """

    start: int
    end: int
    period: int
    repeats: float
    kind: LoopKind


def find_loop(ids: Sequence[int], pieces: Sequence[str] | None = None) -> Loop | None:
    """The loop in which `ids` ends, or None. Linear in the number of tokens.

    `pieces`, the text of each token, tells sentences from phrases; counters are found by `find_counter`.
    """
    return _first_qualifying(ids, pieces, _is_loop)


def suspect_loop(ids: Sequence[int], pieces: Sequence[str] | None = None) -> Loop | None:
    """What may become a loop: at least 2 copies and 8 tokens at the end, but not yet enough for `find_loop`."""
    return _first_qualifying(ids, pieces, _is_suspect)


def find_counter(ids: Sequence[int], pieces: Sequence[str]) -> Loop | None:
    """The loop in which `ids` ends if only the numbers in it change; None where `find_loop` finds one, too.

    Its period must hold a word: lists and tables of numbers alone are ordinary text.
    """
    if find_loop(ids) is not None:
        return None
    units, starts = _without_numbers(ids, pieces)
    loop = find_loop(units)
    if loop is None:
        return None
    bounds = [*starts, len(ids)]
    period = range(loop.end - loop.period, loop.end)
    if not any(units[unit] == NUMBER for unit in period):
        return None
    if not any(character.isalpha() for unit in period for character in pieces[starts[unit]]):
        return None
    start = bounds[loop.start]
    return replace(loop, start=start, end=len(ids), period=bounds[loop.start + loop.period] - start, kind="counter")


def find_episodes(ids: Sequence[int], pieces: Sequence[str] | None = None) -> list[Loop]:
    """Every loop anywhere in `ids`, by start. One that ends before the last token was escaped from."""
    tokens = np.asarray(ids, dtype=np.int64)
    found: list[Loop] = []
    for period in range(1, min(MAX_PERIOD, len(tokens) // MIN_COPIES) + 1):
        for start, matched in _runs(tokens[period:] == tokens[:-period], _least_match(period)):
            end = start + matched + period
            # A multiple of a period already found, over the same tokens.
            if not any(loop.start <= start + period and end - period <= loop.end for loop in found):
                found.append(_loop(end, period, matched, ids, pieces))
    return sorted(found, key=lambda loop: loop.start)


# -------------------------------------------------------------------------------------------------- the arithmetic


def matches_with_shift(ids: Sequence[int], max_period: int) -> list[int]:
    """m(p) for p = 0 … max_period: how many of the last tokens equal the token p before them.

    This is the Z-function of the reversed sequence (Gusfield 1997, 1.3), whose work is linear.
    """
    backwards = list(reversed(ids))
    n = len(backwards)
    z = [n]
    left = right = 0  # the match that reaches furthest so far
    for shift in range(1, min(max_period, n - 1) + 1):
        length = min(right - shift, z[shift - left]) if shift < right else 0
        while shift + length < n and backwards[length] == backwards[shift + length]:
            length += 1
        if shift + length > right:
            left, right = shift, shift + length
        z.append(length)
    return z


def _least_match(period: int) -> int:
    """The smallest m(p) that makes a loop."""
    if period == 1:
        return MIN_COPIES_OF_ONE_TOKEN - 1
    return max(MIN_COPIES * period, MIN_TOKENS) - period


def _is_loop(period: int, matched: int) -> bool:
    return matched >= _least_match(period)


def _is_suspect(period: int, matched: int) -> bool:
    return period >= 2 and matched + period >= max(SUSPECT_COPIES * period, SUSPECT_TOKENS)


def _first_qualifying(
    ids: Sequence[int], pieces: Sequence[str] | None, qualifies: Callable[[int, int], bool]
) -> Loop | None:
    for period, matched in enumerate(matches_with_shift(ids, MAX_PERIOD)):
        if period > 0 and qualifies(period, matched):
            return _loop(len(ids), period, matched, ids, pieces)
    return None


def _loop(end: int, period: int, matched: int, ids: Sequence[int], pieces: Sequence[str] | None) -> Loop:
    repeats = (matched + period) / period
    text = "" if pieces is None else "".join(pieces[end - period : end])
    return Loop(start=end - matched - period, end=end, period=period, repeats=repeats, kind=_kind(period, text))


def _kind(period: int, text: str) -> LoopKind:
    if period == 1:
        return "token"
    if period > BLOCK:
        return "block"
    return "sentence" if any(mark in text for mark in ".?!\n") else "phrase"


def _runs(equal: np.ndarray, at_least: int) -> list[tuple[int, int]]:
    """(start, length) of every run of True of that length."""
    if np.count_nonzero(equal) < at_least:
        return []
    edges = np.flatnonzero(np.diff(np.concatenate([[False], equal, [False]]).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    long = ends - starts >= at_least
    return list(zip(starts[long].tolist(), (ends - starts)[long].tolist(), strict=True))


def _without_numbers(ids: Sequence[int], pieces: Sequence[str]) -> tuple[list[int], list[int]]:
    """The ids with every run of digit tokens made one NUMBER, and where each of them starts in `ids`."""
    units: list[int] = []
    starts: list[int] = []
    for index, (id, piece) in enumerate(zip(ids, pieces, strict=True)):
        if piece.strip().isdigit():
            if units and units[-1] == NUMBER and piece[0].isdigit():
                continue
            id = NUMBER
        units.append(id)
        starts.append(index)
    return units, starts
