"""Answers that repeat the question, and numbers that come from nowhere.

Numbers are compared without their sign: `9-5` does not say whether it holds a minus or a dash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Literal

HallucinationKind = Literal["unsupported", "wrong_arithmetic", "digit_salad"]

FEWEST_WORDS = 6  # in a row, shared by prompt and output, make an echo

_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_ANSWER = re.compile(r"answer is|=|####", re.IGNORECASE)
_LIST_MARKER = re.compile(r"(?m)^[ \t]*(\d+)[.)]\s")
_EQUATION = re.compile(rf"({_NUMBER.pattern})\s*([-+*/×÷])\s*({_NUMBER.pattern})\s*=\s*-?({_NUMBER.pattern})")


@dataclass(frozen=True, kw_only=True)
class Found:
    """Characters start … end - 1 of the output."""

    start: int
    end: int
    kind: str


def find_number_echo(prompt: str, text: str, gold: str | None) -> Found | None:
    """The answer is a number of the prompt, and not the right one.

    The answer is the number after the last "answer is", "=" or "####", else the first number.
    """
    markers = list(_ANSWER.finditer(text))
    answer = _NUMBER.search(text, markers[-1].end()) if markers else None
    answer = answer or _NUMBER.search(text)
    if answer is None or _value(answer[0]) not in numbers(prompt) or _value(answer[0]) in numbers(gold or ""):
        return None
    return Found(start=answer.start(), end=answer.end(), kind="number")


def find_text_echo(prompt: str, text: str) -> Found | None:
    """A run of words taken from the prompt: at least 6, and at least half of the shorter of the two."""
    ours, theirs = list(re.finditer(r"\w+", text.lower())), re.findall(r"\w+", prompt.lower())
    least = max(FEWEST_WORDS, -(-min(len(ours), len(theirs)) // 2))
    start, length = _longest_common_run([word[0] for word in ours], theirs)
    if length < least:
        return None
    return Found(start=ours[start].start(), end=ours[start + length - 1].end(), kind="text")


def find_unsupported_number(prompt: str, text: str, gold: str | None) -> Found | None:
    """The first number in the output that is no number of the prompt, nor the answer, nor one operation away from them.

    Where the output shows its work (an `=`), results may be used once more. List markers are no numbers.
    """
    given = set(numbers(prompt)) | set(numbers(gold or ""))
    markers = {match.start(1) for match in _LIST_MARKER.finditer(text)}
    written = [match for match in _NUMBER.finditer(text) if match.start() not in markers]
    supported = given | _one_step(given, given)
    if "=" in text and any(_value(match[0]) not in supported for match in written):
        supported |= _one_step(supported, given)
    for match in written:
        if _value(match[0]) not in supported:
            return Found(start=match.start(), end=match.end(), kind=_kind(match, prompt, text, gold))
    return None


def numbers(text: str) -> list[Fraction]:
    """The numbers in a text, without their signs."""
    return [_value(match[0]) for match in _NUMBER.finditer(text)]


def _value(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))


def _one_step(left: Iterable[Fraction], right: Iterable[Fraction]) -> set[Fraction]:
    """|a + b|, |a - b|, a · b, and a / b and b / a where they come out whole."""
    reached: set[Fraction] = set()
    for a, b in product(left, right):
        reached |= {a + b, abs(a - b), a * b}
        reached |= {top / bottom for top, bottom in ((a, b), (b, a)) if bottom and (top / bottom).denominator == 1}
    return reached


def _kind(match: re.Match[str], prompt: str, text: str, gold: str | None) -> HallucinationKind:
    longest = max((len(found[0]) for found in _NUMBER.finditer(f"{prompt} {gold or ''}")), default=0)
    if len(match[0]) > 2 * longest > 0:
        return "digit_salad"
    for equation in _EQUATION.finditer(text):
        if equation.start(4) == match.start() and not _holds(equation):
            return "wrong_arithmetic"
    return "unsupported"


def _holds(equation: re.Match[str]) -> bool:
    a, b, c = _value(equation[1]), _value(equation[3]), _value(equation[4])
    match equation[2]:
        case "+":
            return a + b == c
        case "-":
            return abs(a - b) == c
        case "*" | "×":
            return a * b == c
        case _:
            return b != 0 and a / b == c


def _longest_common_run(a: list[str], b: list[str]) -> tuple[int, int]:
    """(start in a, length) of the longest run of words that both hold."""
    best_start = best = 0
    above = [0] * (len(b) + 1)
    for i, word in enumerate(a):
        row = [0] * (len(b) + 1)
        for j, other in enumerate(b):
            if word == other:
                row[j + 1] = above[j] + 1
                if row[j + 1] > best:
                    best_start, best = i - row[j + 1] + 1, row[j + 1]
        above = row
    return best_start, best
