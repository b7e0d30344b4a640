"""Answers that are wrong, answers that repeat the question, and numbers that come from nowhere.

Echoes and stray numbers are compared without their sign: `9-5` does not say whether it holds a minus or a dash.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    rf"(?<!\d){_NUMBER.pattern}"
    rf"(?:\s*[+*×÷]\s*|\s+(?:[-/]|plus|minus|times|(?:multiplied|divided) by)\s+){_NUMBER.pattern}",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"answer is|=|####", re.IGNORECASE)
_LIST_MARKER = re.compile(r"(?m)^[ \t]*(\d+)[.)](?=[ \t]+\S)")
# A whole equation of two operands: no part of `1 + 2 + 3 = 6` or `2 + 3 = 4 + 1`.
_EQUATION = re.compile(
    rf"(?<![-+*/×÷.,\d])(?<![-+*/×÷]\s)({_NUMBER.pattern})\s*([-+*/×÷])\s*({_NUMBER.pattern})"
    rf"\s*=\s*-?({_NUMBER.pattern})(?!\d|,\d|\.\d|\s*[-+*/×÷]\s*\d)"
)


_SIGN = {
    **dict.fromkeys(("+", "plus"), "+"),
    **dict.fromkeys(("-", "−", "minus"), "-"),
    **dict.fromkeys(("*", "×", "times", "multiplied by"), "*"),
    **dict.fromkeys(("/", "÷", "divided by"), "/"),
}
# The same, where nothing follows but a request to work it out.
_ASKED = re.compile(
    rf"(?<![\d.,])(?P<a>{_NUMBER.pattern})\s*(?P<sign>[-+*×÷/−]|plus|minus|times|multiplied by|divided by)\s*"
    rf"(?P<b>{_NUMBER.pattern})(?P<request>\s*(?:=\s*)?(?:\?\s*)?(?:is|equals)?[\s,:]*"
    r"(?:(?:the )?(?:answer|result)\b(?: is)?:?|we can(?: see that the answer is)?|you get)?\s*)\Z",
    re.IGNORECASE,
)
_UNIT = re.compile(r"\w+|[^\w\s]")
_MINUS = re.compile(r"(?:(?<![\w)\]])[-−–]|\b(?:minus|negative)) ?\Z", re.IGNORECASE)
_NEXT_QUESTION = re.compile(r"\n\s*(?:Question|Problem|Solve|Q)\b")
# The same asked for in words, in a prompt of a few.
_REQUEST = re.compile(
    r"\b(?:add(?:ing|ed)?|sum|total|subtract(?:ed)?|difference|take|multiply|product|divided?|times)\b", re.IGNORECASE
)
FEW_WORDS = 14
ANSWER_WORDS = 16  # of a text; an answer that is no number stands within them
FEWEST_WORDS = 6  # of a text that was cut off, before it can be said to lack an answer


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


def find_wrong(text: str, gold: Sequence[str], domain: Domain | None = None, cut_off: bool = False) -> Found | None:
    """The answer given, where it is none of `gold`; None where one of them is given, or nothing is asked.

    A number is right if it is what the text states (`stated_numbers`), another answer if its words stand among the
    text's first 16, code if it stands first. A text that was cut off before the sixth word, and has stated no number
    where one is asked for, may yet answer: it is only suspected.
    """
    if not gold or any(_gives(text, answer, domain) for answer in gold):
        return None
    words = [word.span() for word in _UNIT.finditer(text)][:ANSWER_WORDS]
    span = words[0][0] if words else 0, words[-1][1] if words else len(text)
    stated = stated_numbers(text) if asks_number(gold) else []
    unfinished = cut_off and len(words) < FEWEST_WORDS and not stated and domain != "code"
    return Found(start=span[0], end=span[1], kind="number" if stated else "text", suspect=unfinished)


def asks_number(gold: Sequence[str]) -> bool:
    """Whether one of the right answers is a number."""
    return any(_as_number(answer) is not None for answer in gold)


def implied_answer(prompt: str) -> str | None:
    """The result, where all that a prompt asks for is one operation on its only two numbers; None elsewhere."""
    asked = _ASKED.search(prompt)
    operands = [_signed(prompt, number) for number in _NUMBER.finditer(prompt)]
    if asked is None or len(operands) != 2:
        return None
    if asked["sign"] in "-/" and not asked["request"].strip() and prompt[asked.start("sign") - 1] != " ":
        return None  # pages 5-7, 1/4 of it
    a, b = (_value(asked[name]) for name in ("a", "b"))
    if operands[0] < 0:  # -3 + 5
        a = -a
    match _SIGN[asked["sign"].lower().strip()]:
        case "+":
            result = a + b
        case "-":
            result = a - b
        case "*":
            result = a * b
        case _:
            if b == 0 or (a / b).denominator != 1:
                return None
            result = a / b
    return str(result.numerator) if result.denominator == 1 else None


def stated_numbers(text: str) -> list[Fraction]:
    """The numbers, with their signs, that a text may mean as its answer; empty if it holds none.

    After "####" or "answer is" there is one. Else they are those after the last "=" of the first line with a number and
    of the first paragraph; without a "=", the first and the last of the first sentence with a number. Another question
    ends the text.
    """
    question = _NEXT_QUESTION.search(text)
    text = text[: question.start()] if question and text[: question.start()].strip() else text
    for marker in ("####", "answer is"):
        place = text.lower().find(marker)
        number = _NUMBER.search(text, place) if place >= 0 else None
        if number:
            return [_signed(text, number)]
    paragraph = next((part for part in text.split("\n\n") if _NUMBER.search(part)), "")
    line = next((line for line in paragraph.splitlines() if _NUMBER.search(line)), "")
    results = [_after_last_equals(part) for part in (line, paragraph)]
    if any(result is not None for result in results):
        return [result for result in results if result is not None]
    sentence = next((part for part in re.split(r"[.!?](?=\s)", line) if _NUMBER.search(part)), "")
    found = [_signed(sentence, number) for number in _NUMBER.finditer(sentence)]
    return [*found[:1], *found[1:][-1:]]


def _after_last_equals(text: str) -> Fraction | None:
    place = text.rfind("=")
    number = _NUMBER.search(text, place) if place >= 0 else None
    return None if number is None else _signed(text, number)


def _gives(text: str, answer: str, domain: Domain | None) -> bool:
    number = _as_number(answer)
    if number is not None and domain != "code":
        return number in stated_numbers(text)
    wanted = _UNIT.findall(answer.lower())
    given = _UNIT.findall(text.lower())
    if domain == "code":
        # `n % 2 == 0` is not begun by `n % 2 == 0.5`, nor `x` by `x[0]`.
        return given[: len(wanted)] == wanted and (
            not wanted or given[len(wanted) :][:1] not in [[s] for s in ".[(+-*/"]
        )
    last = ANSWER_WORDS if len(wanted) < ANSWER_WORDS else len(wanted)
    return any(given[start : start + len(wanted)] == wanted for start in range(last))


def _as_number(answer: str) -> Fraction | None:
    found = _NUMBER.fullmatch(answer.strip().lstrip("-−"))
    return None if found is None else _value(found[0]) * (-1 if answer.strip()[0] in "-−" else 1)


def _signed(text: str, number: re.Match[str]) -> Fraction:
    return _value(number[0]) * (-1 if _MINUS.search(text[max(0, number.start() - 10) : number.start()]) else 1)


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
    one_operation = len(asked) == 2 and _asks_for_one(prompt)
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


def _asks_for_one(prompt: str) -> bool:
    """Whether an operation stands in the prompt, in signs or, if it is short, in words."""
    short = len(prompt.split()) <= FEW_WORDS
    return _OPERATION.search(prompt) is not None or (short and _REQUEST.search(prompt) is not None)


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
