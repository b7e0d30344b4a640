from __future__ import annotations

import pytest

from shardscope.failures.breakdown import find_breakdown

PROSE = "The clockmaker counted every second of the day, and nobody in the village ever asked him why he did so. "
CODE = 'def area(box):\n    # ------------------------------\n    return (box[0] * box[1]) if box else {"a": [1, 2]}\n'
BANNER = "# ==================\n# Settings\n# ==================\n"


def pieces(text: str) -> list[str]:
    """Tokens of four characters."""
    return [text[first : first + 4] for first in range(0, len(text), 4)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("?????\n*****", "same_char"),
        (PROSE + "!!!!!!", "same_char"),
        ("@#$%^&*()_+{}|:<>?~" * 8, "mixed_symbols"),
        ("\ufffd\ufffd \ufffd\ufffd\ufffd", "encoding"),
    ],
)
def test_symbols_in_place_of_text_are_a_breakdown(text: str, kind: str) -> None:
    found = find_breakdown(pieces(text))
    assert found is not None
    assert found.kind == kind


@pytest.mark.parametrize(
    "text", [PROSE * 3, "Wait... what?! No -- yes!!!! (Really.)", "", "   \n\n  ", "?!", "3 + 4 = 7, 3 * 4 = 12"]
)
def test_ordinary_text_is_none(text: str) -> None:
    assert find_breakdown(pieces(text)) is None


def test_the_span_holds_the_run_and_nothing_before_it() -> None:
    text = PROSE * 2 + "=" * 9 + PROSE
    found = find_breakdown(pieces(text))
    assert found is not None
    assert "=" * 9 in "".join(pieces(text)[found.start : found.end])
    assert found.start == len(PROSE * 2) // 4


def test_rules_brackets_and_indentation_are_ordinary_in_code() -> None:
    text = (BANNER + CODE) * 4
    assert find_breakdown(pieces(text), "code") is None
    assert find_breakdown(pieces(text)) is not None  # in prose a rule is a run of signs


def test_code_breaks_down_too_when_two_windows_do() -> None:
    found = find_breakdown(pieces(CODE + "&%$!@^~;" * 40), "code")
    assert found is not None
    assert found.kind == "mixed_symbols"
    assert find_breakdown(pieces(CODE + "&%$!@^~;" * 16), "code") is None  # one window only
