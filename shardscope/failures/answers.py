"""Answers that repeat the question, and numbers that come from nowhere.

Numbers are compared without their sign: `9-5` does not say whether it holds a minus or a dash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import combinations
from math import ceil
from typing import Literal

from shardscope.failures.prompts import Domain

HallucinationKind = Literal["unsupported", "wrong_arithmetic", "digit_salad"]

# (words in a row, share of the shorter of the two texts) that make an echo. Calibrated on people's text, which repeats
# its own openings: code most of all, and there in short lines.
ECHO: dict[Domain, tuple[int, float]] = {"prose": (6, 0.9), "math": (6, 0.9), "code": (14, 0.5)}
OPERANDS = 32  # the last numbers of a prompt; what two of them make is computed
DIGITS = 400  # of a number that are read; loops make longer ones

_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
# One operation on two numbers (1/4 and 5-7 are none): all that a prompt asks for if it holds no third number.
_OPERATION = re.compile(
    rf"{_NUMBER.pattern}(?:\s*[+*×÷]\s*|\s+(?:[-/]|plus|minus|times|(?:multiplied|divided) by)\s+){_NUMBER.pattern}",
    re.IGNORECASE,
)
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
    suspect: bool = False


def find_number_echo(prompt: str, text: str, gold: str | None) -> Found | None:
    """The stated answer is a number of the prompt, and not the right one; only suspected if no right one is known."""
    answer = stated_answer(text)
    if answer is None or _value(answer[0]) not in numbers(prompt) or _value(answer[0]) in numbers(gold or ""):
        return None
    return Found(start=answer.start(), end=answer.end(), kind="number", suspect=gold is None)


def stated_answer(text: str) -> re.Match[str] | None:
    """The number after the last "answer is", "=" or "####", else the first number."""
    markers = list(_ANSWER.finditer(text))
    answer = _NUMBER.search(text, markers[-1].end()) if markers else None
    return answer or _NUMBER.search(text)


def find_text_echo(prompt: str, text: str, domain: Domain | None = None) -> Found | None:
    """The first long run of words taken from the prompt; `ECHO` says how long, None counts as prose."""
    ours, theirs = list(re.finditer(r"\w+", text.lower())), re.findall(r"\w+", prompt.lower())
    fewest, share = ECHO[domain or "prose"]
    least = max(fewest, ceil(share * min(len(ours), len(theirs))))
    run = _first_common_run([word[0] for word in ours], theirs, least)
    return None if run is None else Found(start=ours[run.start].start(), end=ours[run.stop - 1].end(), kind="text")


def find_unsupported_number(prompt: str, text: str, gold: str | None, before: int | None = None) -> Found | None:
    """The first number in the output that is no number of the prompt, nor the answer, nor one operation away from them.

    Only numbers that start before character `before` are judged. Where the output shows its work (an `=`), results may
    be used once more. List markers are no numbers. The result of an equation that does not hold counts, whatever it is.

    People bring numbers of their own to a word problem (60 minutes, twice, a step in between), but none to `23 + 19`:
    anything but a false equation is only suspected unless the prompt asks for one operation on its only two numbers.
    """
    asked = numbers(prompt)
    supported = _Closure([*asked, *numbers(gold or "")], asked[-OPERANDS:], shown_work="=" in text)
    false = {equation.start(4) for equation in _EQUATION.finditer(text) if not _holds(equation)}
    markers = {match.start(1) for match in _LIST_MARKER.finditer(text)}
    longest = max((_digits(found[0]) for found in _NUMBER.finditer(f"{prompt} {gold or ''}")), default=0)
    one_operation = len(asked) == 2 and _OPERATION.search(prompt) is not None
    suspected = None
    for match in _NUMBER.finditer(text):
        if before is not None and match.start() >= before:
            break
        wrong = match.start() in false
        if match.start() in markers or (not wrong and _value(match[0]) in supported):
            continue
        kind: HallucinationKind = "wrong_arithmetic" if wrong else "unsupported"
        if _digits(match[0]) > 2 * longest > 0:
            kind = "digit_salad"
        found = Found(start=match.start(), end=match.end(), kind=kind, suspect=not (wrong or one_operation))
        if not found.suspect:
            return found
        suspected = suspected or found
    return suspected


class _Closure:
    """Which numbers are `given`, or follow from two of the `operands`; with `shown_work`, from one more step."""

    def __init__(self, given: list[Fraction], operands: list[Fraction], shown_work: bool) -> None:
        self.given, self.operands, self.shown_work = set(given), operands, shown_work

    def __contains__(self, number: Fraction) -> bool:
        if number in self.given or number in self._one_step:
            return True
        return self.shown_work and any(self._follows(number, operand) for operand in self.operands)

    @cached_property
    def _one_step(self) -> set[Fraction]:
        return {result for a, b in combinations(self.operands, 2) for result in _one_step(a, b)}

    def _follows(self, number: Fraction, b: Fraction) -> bool:
        """Whether number = a + b, |a - b|, a · b, a / b or b / a for some a that is known; quotients are whole."""
        before = [number - b, number + b, b - number]
        if b:
            before += [number / b]
        if b and number and number.denominator == 1:
            before += [number * b, b / number]
        return any(a in self.given or a in self._one_step for a in before)


def numbers(text: str) -> list[Fraction]:
    """The numbers in a text, without their signs."""
    return [_value(match[0]) for match in _NUMBER.finditer(text)]


def _value(number: str) -> Fraction:
    return Fraction(number.replace(",", "")[:DIGITS].rstrip("."))


def _digits(number: str) -> int:
    return sum(character.isdigit() for character in number)


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


def _first_common_run(ours: list[str], theirs: list[str], least: int) -> range | None:
    """Where in `ours` the first run of at least `least` words stands that `theirs` holds too."""
    places: dict[tuple[str, ...], int] = {}
    for first in range(len(theirs) - least, -1, -1):
        places[tuple(theirs[first : first + least])] = first
    for start in range(len(ours) - least + 1):
        place = places.get(tuple(ours[start : start + least]))
        if place is not None:
            length = least
            while ours[start + length : start + length + 1] == theirs[place + length : place + length + 1] != []:
                length += 1
            return range(start, start + length)
    return None
