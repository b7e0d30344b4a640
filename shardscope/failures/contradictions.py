"""Sentences that cannot be true: one thing called two that exclude each other, or explained by itself.

Whether fluent text is true cannot be read off it, so what is found here is only ever a suspicion: SCARECROW's
"Self-Contradiction" and "Commonsense" (Dou et al. 2022, arXiv:2107.01294), as far as a list reaches.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

ContradictionKind = Literal["contradiction", "circular"]

# Nothing is of two of these classes at once; in all but the first two, nothing is two things of one class either.
EXCLUSIVE: tuple[frozenset[str], ...] = (
    frozenset(
        [
            "woman",
            "girl",
            "lady",
            "queen",
            "princess",
            "mother",
            "daughter",
            "sister",
            "aunt",
            "wife",
            "widow",
            "grandmother",
            "niece",
        ]
    ),
    frozenset(
        [
            "man",
            "boy",
            "gentleman",
            "king",
            "prince",
            "father",
            "son",
            "brother",
            "uncle",
            "husband",
            "grandfather",
            "nephew",
        ]
    ),
    frozenset(["village", "town", "city"]),
    frozenset(["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]),
    frozenset(
        [
            "january",
            "february",
            "march",
            "april",
            "june",
            "july",
            "august",
            "september",
            "october",
            "november",
            "december",
        ]
    ),
    frozenset(["dog", "cat", "horse", "cow", "sheep", "bird", "fish", "mouse", "elephant", "spider"]),
    frozenset(["earth", "sun", "moon", "mars", "jupiter", "venus", "saturn"]),
    frozenset(["oxygen", "hydrogen", "carbon", "nitrogen", "gold", "silver", "iron"]),
)
_MAY_BE_BOTH = (0, 1)  # a sister may be an aunt
_CLASS = {word: number for number, words in enumerate(EXCLUSIVE) for word in words}

_IS = re.compile(
    r"\b(?P<determiner>the|a|an|my|his|her)?\s*(?:(?:little|old|young|great|small|large|poor)\s+)?"
    r"(?P<subject>[a-z]{3,})\s+(?:is|was)\s+(?:a|an|the|called)?\s*(?:(?:little|old|young|great|small|large|poor)\s+)?"
    r"(?P<object>[a-z]{3,})\b(?!')",
    re.IGNORECASE,
)
_CIRCULAR = re.compile(
    r"\bthe (?P<what>[a-z]{3,}(?: of (?:the )?[a-z]{3,})?) (?:is|was) (?:the|a) "
    r"(?:(?:same|great|first|largest|smallest) )?(?:as the )?(?P=what)\b",
    re.IGNORECASE,
)


class Contradiction(NamedTuple):
    """Characters start … end - 1 of the text."""

    start: int
    end: int
    kind: ContradictionKind


def find_contradiction(text: str) -> Contradiction | None:
    """The first sentence that contradicts itself, or explains a thing by itself."""
    found = [Contradiction(*match.span(), "circular") for match in _CIRCULAR.finditer(text)]
    found += [Contradiction(*match.span(), "contradiction") for match in _IS.finditer(text) if _excludes(match)]
    return min(found, default=None)


def _excludes(match: re.Match[str]) -> bool:
    subject, object_ = match["subject"].lower(), match["object"].lower()
    a, b = _CLASS.get(subject), _CLASS.get(object_)
    if a is None or b is None or subject == object_:
        return False
    return a != b or a not in _MAY_BE_BOTH
