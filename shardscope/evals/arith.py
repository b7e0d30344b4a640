"""shard_arith: a seeded suite of sums, differences and products in the formats of the model card's prompts.

Every problem says its operation, the digits of its longer operand, and how many columns carry or borrow, so a score can
be cut along each. The card's own three sums come first; the package's training generator never makes those.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from random import Random
from typing import Any

from shardscope.failures import Failure, label
from shardscope.failures.answers import stated_answer
from shardscope.generation import StopReason

SEED = 41
COUNT = 240
FORMATS = {
    "question": "Question: What is {a} {sign} {b}? Answer:",
    "solve": "Solve: {a} {sign} {b} = ?\nAnswer:",
    "compute": "To compute {a} {word} {b}, we can see that the answer is",
    "equation": "{a} {sign} {b} =",
}
WORD = {"+": "plus", "-": "minus", "*": "times"}
CARD = ((12, "+", 7, "compute"), (23, "+", 19, "question"), (17, "*", 23, "solve"))
# What can be wrong with an answer, the first that holds; "other" is a wrong number without a name.
NAMED: tuple[Failure, ...] = ("early end", "breakdown", "loop", "echo", "digits")
KINDS = (*NAMED, "no_number", "other")
OPERATION = {"+": "add", "-": "subtract", "*": "multiply"}


def problems(count: int = COUNT, seed: int = SEED) -> list[dict[str, Any]]:
    """`count` problems, the same for the same seed: prompt, answer, and what it consists of."""
    rng = Random(seed)
    made = [problem(*card, rng) for card in CARD]
    seen = {row["prompt"] for row in made}
    while len(made) < count:
        sign, shape = rng.choice("+-*"), rng.choice(list(FORMATS))
        digits = rng.choice((1, 2) if sign == "*" else (1, 2, 3))
        a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
        row = problem(max(a, b), sign, min(a, b), shape, rng)
        if row["prompt"] not in seen:
            seen.add(row["prompt"])
            made.append(row)
    return made[:count]


def problem(a: int, sign: str, b: int, shape: str, rng: Random) -> dict[str, Any]:
    answer = {"+": a + b, "-": a - b, "*": a * b}[sign]
    choices = [answer, *_near_misses(answer, a, b, rng)]
    rng.shuffle(choices)
    return {
        "prompt": FORMATS[shape].format(a=a, b=b, sign=sign, word=WORD[sign]),
        "answer": str(answer),
        "operation": sign,
        "digits": len(str(max(a, b))),
        "carries": carries(a, sign, b),
        "format": shape,
        "choices": [str(choice) for choice in choices],
        "gold": choices.index(answer),
    }


def carries(a: int, sign: str, b: int) -> int:
    """Columns that carry (+) or borrow (-); for a product, those of adding up its single-digit products."""
    if sign == "*":
        return sum(carries(total, "+", a * digit * 10**place) for total, digit, place in _partial_sums(a, b))
    count = carry = 0
    while a or b:
        column = a % 10 + b % 10 + carry if sign == "+" else a % 10 - b % 10 - carry
        carry = int(not 0 <= column <= 9)
        count += carry
        a, b = a // 10, b // 10
    return count


def stated_number(text: str) -> str | None:
    """The number that the first line with anything in it states: after its last "answer is", "=" or "####", if any.

    Its sign counts, its thousands' commas do not. Later lines are ignored: a model that has answered keeps generating.
    """
    line = next((line for line in text.splitlines() if line.strip()), "")
    found = stated_answer(line)
    if found is None:
        return None
    sign = "-" if line[: found.start()].endswith(("-", "−")) else ""
    return sign + found[0].replace(",", "")


def digit_accuracy(stated: str | None, answer: str) -> float:
    """The share of the answer's digits that the stated number has in the same place, counted from the right."""
    given = (stated or "").lstrip("-").partition(".")[0]
    right = sum(x == y for x, y in zip(reversed(given), reversed(answer), strict=False))
    return right / max(len(answer), len(given))


def judge(row: dict[str, Any], text: str) -> dict[str, float]:
    """Exact match, over all and by what the problem consists of; digit accuracy; what is wrong with a wrong answer.

    A problem has a value for its own operation, digits and carries only, so that a mean is over those problems.
    """
    stated = stated_number(text)
    exact = stated is not None and Fraction(stated) == Fraction(row["answer"])
    found = "" if exact else _failure(row, text, stated is not None)
    return {
        "exact_match": float(exact),
        "digit_accuracy": digit_accuracy(stated, row["answer"]),
        **{f"exact_match_{part}": float(exact) for part in _consists_of(row)},
        **{kind.replace(" ", "_"): float(kind == found) for kind in KINDS},
    }


def _consists_of(row: dict[str, Any]) -> tuple[str, str, str]:
    return OPERATION[row["operation"]], f"{row['digits']}_digit", "carry" if row["carries"] else "no_carry"


def _failure(row: dict[str, Any], text: str, stated: bool) -> str:
    """The failure label of a wrong answer, all its lines. The harness tells neither its tokens nor why it ended.

    So it is cut into the tokens of the built-in model, whichever model wrote it, and only an empty text ended early.
    """
    reason: StopReason = "stop" if text.strip() else "eos"
    labels = label(text, prompt=row["prompt"], stop_reason=reason, domain="math", gold=row["answer"])
    found = {flag.failure for flag in labels.flags if not flag.suspect}
    return next((kind for kind in NAMED if kind in found), "other" if stated else "no_number")


def _near_misses(answer: int, a: int, b: int, rng: Random) -> list[int]:
    """Three wrong answers: one digit off, a carry forgotten or too many, an operand (or another near number)."""
    wrong = [answer + rng.choice((-1, 1)), answer + rng.choice((-10, 10)), rng.choice((a, b))]
    chosen: list[int] = []
    for candidate in wrong:
        while candidate < 0 or candidate == answer or candidate in chosen:
            candidate += rng.randrange(1, 9)
        chosen.append(candidate)
    return chosen


def _partial_sums(a: int, b: int) -> Sequence[tuple[int, int, int]]:
    """For every digit of b from the right: (the sum so far, the digit, its place)."""
    sums, total = [], 0
    for place, digit in enumerate(map(int, reversed(str(b)))):
        sums.append((total, digit, place))
        total += a * digit * 10**place
    return sums
