"""Echoes and stray numbers: the rule's examples, and what lies just beside them."""

from __future__ import annotations

import pytest

from shardscope.failures.answers import find_number_echo, find_text_echo, find_unsupported_number, numbers

SUM = "Question: What is 23 + 19? Answer:"


@pytest.mark.parametrize(
    ("text", "echoed"),
    [
        (" 23", "23"),
        (" The answer is 23. Answer: 23", "23"),
        (" 23 + 19 = 19", "19"),  # the number after "=" counts
        (" 5, no: #### 23", "23"),
        (" 42", None),
        (" 23 + 19 = 42", None),  # the operands may be written down
        (" 41", None),  # wrong, but no number of the prompt
        (" I do not know", None),
    ],
)
def test_an_operand_given_as_the_answer_is_an_echo(text: str, echoed: str | None) -> None:
    found = find_number_echo(SUM, text, "42")
    assert (None if found is None else text[found.start : found.end]) == echoed


def test_an_operand_that_is_the_right_answer_is_no_echo() -> None:
    assert find_number_echo("What is 7 + 0?", " 7", "7") is None


@pytest.mark.parametrize(
    ("prompt", "text", "echoed"),
    [
        (
            "Once upon a time, in a small village,",
            " there was nothing. Once upon a time in a small village it was.",
            "Once upon a time in a small village",
        ),
        ("Once upon a time, in a small village,", " in a small village, she", None),  # four words
        ("The capital of France is", " covered by the Crown of France", None),
        # Six words, but not half of the shorter text.
        (" ".join("abcdefghijklmnopqrstuvwxyz"), " ".join("abcdef" + "0123456789"), None),
        ("", "a b c d e f g h", None),
    ],
)
def test_a_long_run_of_the_prompts_words_is_an_echo(prompt: str, text: str, echoed: str | None) -> None:
    found = find_text_echo(prompt, text)
    assert (None if found is None else text[found.start : found.end]) == echoed


@pytest.mark.parametrize(
    ("prompt", "text", "stray", "kind"),
    [
        ("To compute 12 plus 7, we can", " now use the first 6 as a reversible input", "6", "unsupported"),
        ("To compute 12 plus 7, we can", " add 7 to 12 to get 19, or 84, or 5", None, None),  # one operation away
        (SUM, " 23", None, None),
        (SUM, " 23 + 19 = 43", "43", "wrong_arithmetic"),
        (SUM, " 23 + 19 = 42", None, None),
        (SUM, " 99182", "99182", "digit_salad"),
        (SUM, " 23 + 19 = 42, 42 + 23 = 65", None, None),  # shown work may use a result once more
        (SUM, " that is 65", "65", "unsupported"),  # but not without showing it
        (SUM, " 1. add them: 42\n2. done", None, None),  # list markers are no numbers
        (SUM, " 23 + 19 = 23", "23", "wrong_arithmetic"),  # a number of the prompt, in an equation that does not hold
        (SUM, " 4 + 15 + 23 = 42 = 19 + 23", None, None),  # a chain of sums is not its last two terms
        (SUM, " 23 + 19 = 38 + 4, 42", None, None),
        (SUM, " 23 / 19 = 1.21", "1.21", "unsupported"),  # rounded, not wrong
        (SUM, " 23 / 19 = 1.3", "1.3", "wrong_arithmetic"),
        (SUM, " twice 23 is 46", "46", "unsupported"),
        ("What is 1,200 + 3.5?", " 1203.5", None, None),
    ],
)
def test_a_number_from_nowhere_is_found_and_named(prompt: str, text: str, stray: str | None, kind: str | None) -> None:
    gold = {"To": "19", "Qu": "42", "Wh": "1203.5"}[prompt[:2]]
    found = find_unsupported_number(prompt, text, gold)
    assert (None if found is None else text[found.start : found.end]) == stray
    assert (None if found is None else found.kind) == kind


def test_numbers_are_read_with_separators_and_fractions() -> None:
    assert [float(number) for number in numbers("1,234.5 and -7, 12,34")] == [1234.5, 7, 12, 34]
