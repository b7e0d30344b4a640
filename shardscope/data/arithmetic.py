"""A seeded generator of small sums and word problems with worked steps, in the style of the model card's prompts.

The card's own three sums are never asked for, so that a right answer to them is not a memory; a worked step of another
problem may come by one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

SEED = 20240917
CARD_SUMS = frozenset({(12, 7), (7, 12), (23, 19), (19, 23), (17, 23), (23, 17)})

_NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Hugo",
    "Iris",
    "Jonas",
    "Kate",
    "Leo",
    "Maria",
    "Noah",
)
_THINGS = ("apples", "books", "coins", "marbles", "pencils", "stamps", "shells", "cards", "eggs", "stickers", "beads")
_BOXES = ("boxes", "bags", "baskets", "crates", "jars", "packs")


def problems(count: int, seed: int = SEED) -> Iterator[str]:
    """`count` documents, one problem each; the same for the same seed."""
    rng = Random(seed)
    for _ in range(count):
        yield rng.choice(_TEMPLATES)(rng) + "\n"


def _pair(rng: Random, digits: tuple[int, ...] = (1, 2, 2, 2, 3)) -> tuple[int, int]:
    """Two numbers whose lengths are drawn from `digits`."""
    while True:
        a, b = (rng.randrange(1 if n == 1 else 10 ** (n - 1), 10**n) for n in (rng.choice(digits), rng.choice(digits)))
        if (a, b) not in CARD_SUMS:
            return a, b


def _factors(rng: Random) -> tuple[int, int]:
    return _pair(rng, digits=(1, 1, 2, 2))


def _ordered(rng: Random) -> tuple[int, int]:
    a, b = _pair(rng)
    return max(a, b), min(a, b)


# ------------------------------------------------------------------------------------------ worked steps


def addition_steps(a: int, b: int) -> str:
    """`a + b` by place value, as in `40 + 2`."""
    parts = [part for part in _places(b) if part]
    steps, total = [], a
    for part in parts:
        steps.append(f"{total} + {part} = {total + part}")
        total += part
    return ", ".join(steps)


def subtraction_steps(a: int, b: int) -> str:
    steps, left = [], a
    for part in [part for part in _places(b) if part]:
        steps.append(f"{left} - {part} = {left - part}")
        left -= part
    return ", ".join(steps)


def product_steps(a: int, b: int) -> str:
    """`a * b` as a sum of one product for each place of b."""
    parts = [part for part in _places(b) if part]
    if len(parts) == 1:
        return f"{a} * {b} = {a * b}"
    products = ", ".join(f"{a} * {part} = {a * part}" for part in parts)
    return f"{products}, and {' + '.join(str(a * part) for part in parts)} = {a * b}"


def _places(number: int) -> list[int]:
    """247 is [200, 40, 7]."""
    digits = str(number)
    return [int(digit) * 10 ** (len(digits) - 1 - place) for place, digit in enumerate(digits)]


# ------------------------------------------------------------------------------------------ documents


def _question(rng: Random) -> str:
    operation = rng.choice("+++--*")
    a, b = _factors(rng) if operation == "*" else _ordered(rng) if operation == "-" else _pair(rng)
    result = {"+": a + b, "-": a - b, "*": a * b}[operation]
    gap = rng.choice((" ", "\n"))
    return f"Question: What is {a} {operation} {b}?{gap}Answer: {result}"


def _question_with_steps(rng: Random) -> str:
    operation = rng.choice("+-*")
    a, b = _factors(rng) if operation == "*" else _ordered(rng) if operation == "-" else _pair(rng)
    steps = {"+": addition_steps, "-": subtraction_steps, "*": product_steps}[operation](a, b)
    result = {"+": a + b, "-": a - b, "*": a * b}[operation]
    return f"Question: What is {a} {operation} {b}?\nAnswer: {steps}. The answer is {result}."


def _to_compute(rng: Random) -> str:
    a, b = _pair(rng)
    kind = rng.randrange(3)
    if kind == 0:
        steps = f"add {b} to {a} step by step: {addition_steps(a, b)}"
        return f"To compute {a} plus {b}, we can {steps}. So {a} plus {b} is {a + b}."
    if kind == 1:
        a, b = max(a, b), min(a, b)
        steps = f"take away {b} step by step: {subtraction_steps(a, b)}"
        return f"To compute {a} minus {b}, we can {steps}. So {a} minus {b} is {a - b}."
    a, b = _factors(rng)
    return (
        f"To compute {a} times {b}, we can multiply place by place: {product_steps(a, b)}. So {a} times {b} is {a * b}."
    )


def _solve(rng: Random) -> str:
    operation = rng.choice("+-**")
    a, b = _factors(rng) if operation == "*" else _ordered(rng) if operation == "-" else _pair(rng)
    result = {"+": a + b, "-": a - b, "*": a * b}[operation]
    steps = {"+": addition_steps, "-": subtraction_steps, "*": product_steps}[operation](a, b)
    worked = f"Steps: {steps}.\n" if rng.randrange(2) else ""
    return f"Solve: {a} {operation} {b} = ?\n{worked}Answer: {result}"


def _division(rng: Random) -> str:
    b, quotient = rng.randrange(2, 13), rng.randrange(2, 100)
    a = b * quotient
    return f"Question: What is {a} / {b}?\nAnswer: {b} * {quotient} = {a}, so the answer is {quotient}."


def _equation(rng: Random) -> str:
    x, a, b = rng.randrange(1, 20), rng.randrange(2, 10), rng.randrange(1, 50)
    right = a * x + b
    return (
        f"Solve for x: {a}x + {b} = {right}\nSubtract {b} from both sides: {a}x = {right - b}. Divide by {a}: x = {x}."
    )


def _comparison(rng: Random) -> str:
    a, b = _pair(rng)
    if a == b:
        return f"Question: Which is larger, {a} or {b}?\nAnswer: They are equal."
    larger, smaller = max(a, b), min(a, b)
    return (
        f"Question: Which is larger, {a} or {b}?\nAnswer: {larger}, because {larger} - {smaller} = {larger - smaller}."
    )


def _sequence(rng: Random) -> str:
    first, step, length = rng.randrange(1, 50), rng.randrange(1, 13), rng.randrange(4, 8)
    terms = [first + step * n for n in range(length + 1)]
    shown = ", ".join(map(str, terms[:-1]))
    return f"Continue the sequence: {shown}, ...\nEach term is {step} more, so the next is {terms[-1]}."


def _story_gain(rng: Random) -> str:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    a, b = _pair(rng, digits=(1, 2, 2))
    verb = rng.choice(("buys", "finds", "gets", "collects"))
    return (
        f"{name} has {a + 1} {thing} and {verb} {b + 1} more. How many {thing} does {name} have now?\n"
        f"{a + 1} + {b + 1} = {a + b + 2}. {name} has {a + b + 2} {thing}."
    )


def _story_loss(rng: Random) -> str:
    name, friend = rng.sample(_NAMES, 2)
    thing = rng.choice(_THINGS)
    left, given = (number + 1 for number in _pair(rng, digits=(1, 2, 2)))
    return (
        f"{name} has {left + given} {thing}. {name} gives {given} of them to {friend}. How many {thing} are left?\n"
        f"{left + given} - {given} = {left}. There are {left} {thing} left."
    )


def _story_groups(rng: Random) -> str:
    name, thing, box = rng.choice(_NAMES), rng.choice(_THINGS), rng.choice(_BOXES)
    boxes, each, eaten = rng.randrange(2, 13), rng.randrange(2, 13), rng.randrange(1, 4)
    total = boxes * each
    return (
        f"{name} has {boxes} {box} with {each} {thing} in each. {name} sells {eaten} of the {thing}. "
        f"How many {thing} remain?\nFirst, {boxes} * {each} = {total}. Then {total} - {eaten} = {total - eaten}. "
        f"The answer is {total - eaten}."
    )


_TEMPLATES: tuple[Callable[[Random], str], ...] = (
    _question,
    _question,
    _question_with_steps,
    _question_with_steps,
    _to_compute,
    _to_compute,
    _solve,
    _solve,
    _division,
    _equation,
    _comparison,
    _sequence,
    _story_gain,
    _story_loss,
    _story_groups,
)
