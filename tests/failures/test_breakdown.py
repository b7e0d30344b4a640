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


@pytest.mark.parametrize(
    "text",
    [
        "1. 2. 3. 4. 5. 6. 7. 8. 9.",
        "(a) (b) (c) (d) (e) (f)",
        "1. 1. 2. 3. 4. 5. 6. 7. 8. 9. 10. 10. 11. 13. 14.\n1. 1. 2. 3.",
    ],
)
def test_the_marks_of_a_list_are_no_symbols(text: str) -> None:
    assert find_breakdown(pieces(text), "math") is None
    assert find_breakdown(pieces(text)) is None


def test_dotted_lines_and_blanks_to_fill_in_are_ordinary_outside_code() -> None:
    for text in (f"Chapter one {'.' * 40} 12", f"The sum is {'_' * 12}.", "She left ------ and came back"):
        assert find_breakdown(pieces(text)) is None, text
    assert find_breakdown(pieces(PROSE + "." * 200)) is not None  # longer than any line of print


TEX = r"\begin{align*} x^2 + y^2 &= (x + iy)(x - iy) \\ \alpha_{1} - \alpha_{2} &= 0 \end{align*} "


def test_tex_is_ordinary_in_mathematics() -> None:
    assert find_breakdown(pieces(TEX * 4), "math") is None
    assert find_breakdown(pieces(r"$$ \{ \{ \} , \{ \{ \} \} \} $$ " * 9), "math") is None
    found = find_breakdown(pieces(TEX + "?!%*;:@~#?%!;*:~@" * 8), "math")
    assert found is not None
    assert found.kind == "mixed_symbols"
