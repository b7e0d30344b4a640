"""Markdown that shows as it was meant, whatever stands in it."""

from __future__ import annotations

import re
from collections.abc import Sequence

SHOWN_OF_A_SAMPLE = 200  # characters
DASH = "–"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """A table; the columns `words` are text, the others numbers, which stand at the right and on one line."""
    ruler = "|".join(["", *("---" if place in words else "---:" for place in range(len(header))), ""])
    return "\n".join([f"| {' | '.join(header)} |", ruler, *(f"| {' | '.join(map(_unbroken, row))} |" for row in rows)])


def _unbroken(cell: str) -> str:
    """A number and its error, or a product, with spaces that no browser breaks the line at."""
    return re.sub(r" ([±×]) ", "\u00a0\\1\u00a0", cell)


def code(text: str) -> str:
    """Text on one line, as code, so that none of it is read as Markdown; of a long one the beginning."""
    line = " ".join(text.split()).replace("|", "¦").replace("`", "'")
    shown = line if len(line) <= SHOWN_OF_A_SAMPLE else line[: SHOWN_OF_A_SAMPLE - 1] + "…"
    return f"`{shown}`" if shown else "nothing"
