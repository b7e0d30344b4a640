"""Answers that repeat the question, and numbers that come from nowhere.

Numbers are compared without their sign: `9-5` does not say whether it holds a minus or a dash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, product
from typing import Literal

HallucinationKind = Literal["unsupported", "wrong_arithmetic", "digit_salad"]

FEWEST_WORDS = 6  # in a row, shared by prompt and output, make an echo

_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_ANSWER = re.compile(r"answer is|=|####", re.IGNORECASE)
_LIST_MARKER = re.compile(r"(?m)^[ \t]*(\d+)[.)]\s")
# A whole equation of two operands: no part of `1 + 2 + 3 = 6` or `2 + 3 = 4 + 1`.
_EQUATION = re.compile(
    rf"(?<![-+*/×÷.,\d])(?<![-+*/×÷]\s)({_NUMBER.pattern})\s*([-+*/×÷])\s*({_NUMBER.pattern})"
    rf"\s*=\s*-?({_NUMBER.pattern})(?!\d|,\d|\.\d|\s*[-+*/×÷]\s*\d)"
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Characters start … end - 1 of the output."""

    start: int
    end: int
    kind: str


def find_number_echo(prompt: str, text: str, gold: str | None) -> Found | None:
    """The stated answer is a number of the prompt, and not the right one."""
    answer = stated_answer(text)
    if answer is None or _value(answer[0]) not in numbers(prompt) or _value(answer[0]) in numbers(gold or ""):
        return None
    return Found(start=answer.start(), end=answer.end(), kind="number")


def stated_answer(text: str) -> re.Match[str] | None:
    """The number after the last "answer is", "=" or "####", else the first number."""
    markers = list(_ANSWER.finditer(text))
    answer = _NUMBER.search(text, markers[-1].end()) if markers else None
    return answer or _NUMBER.search(text)


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

    Where the output shows its work (an `=`), results may be used once more. The result of an equation that does not
    hold counts as well, whatever it is. List markers are no numbers.
    """
    asked = numbers(prompt)
    supported = {*asked, *numbers(gold or "")}
    for a, b in combinations(asked, 2):
        supported |= _one_step(a, b)
    if "=" in text:
        for a, b in product(tuple(supported), asked):
            supported |= _one_step(a, b)
    false = {equation.start(4) for equation in _EQUATION.finditer(text) if not _holds(equation)}
    markers = {match.start(1) for match in _LIST_MARKER.finditer(text)}
    longest = max((len(found[0]) for found in _NUMBER.finditer(f"{prompt} {gold or ''}")), default=0)
    for match in _NUMBER.finditer(text):
        if match.start() in markers or (_value(match[0]) in supported and match.start() not in false):
            continue
        kind: HallucinationKind = "wrong_arithmetic" if match.start() in false else "unsupported"
        if len(match[0]) > 2 * longest > 0:
            kind = "digit_salad"
        return Found(start=match.start(), end=match.end(), kind=kind)
    return None


def numbers(text: str) -> list[Fraction]:
    """The numbers in a text, without their signs."""
    return [_value(match[0]) for match in _NUMBER.finditer(text)]


def _value(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))


def _one_step(a: Fraction, b: Fraction) -> set[Fraction]:
    """a + b, |a - b|, a · b, and a / b and b / a where they come out whole."""
    quotients = {top / bottom for top, bottom in ((a, b), (b, a)) if bottom}
    return {a + b, abs(a - b), a * b, *(quotient for quotient in quotients if quotient.denominator == 1)}


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
            # A quotient written with decimals may be rounded.
            decimals = len(equation[4].partition(".")[2])
            return b != 0 and abs(a / b - c) <= (Fraction(1, 2 * 10**decimals) if decimals else 0)


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
