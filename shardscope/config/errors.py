"""What every config says when it is asked for something impossible."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ConfigError(ValueError):
    """A config or recipe that states something impossible; the message says what, what is allowed, and where."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def shown(value: Any) -> str:
    """`repr` for a message: of a long value the beginning only."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of more than 4,300 digits
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else "a number of too many digits"
    return text if len(text) <= 120 else text[:120] + "…"


def suggest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for a near miss, else the list of what is known."""
    known = list(known)
    return suggest_close(word, known) or (f"; known: {', '.join(known)}" if known else "")


def suggest_close(word: str, there: Iterable[str]) -> str:
    """'; did you mean X?' for a near miss, else nothing: for files and flags, of which there may be hundreds."""
    close = difflib.get_close_matches(word, list(there), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
