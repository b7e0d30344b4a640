"""Echoes and stray numbers: the rule's examples, and what lies just beside them."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardscope.failures.answers import (
    find_number_echo,
    find_text_echo,
    find_unsupported_number,
    find_wrong,
    implied_answer,
    numbers,
)
from shardscope.failures.prompts import Domain

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


SHEEP = "Question: Ann has 4 bags of 6 marbles and gives a third to Ben. How many are left?\nAnswer:"


def test_a_number_that_people_bring_to_a_word_problem_is_only_suspected() -> None:
    found = find_unsupported_number(SHEEP, " She keeps 2/3 of them, 16.", "16")
    assert found is not None
    assert found.suspect
    bare = find_unsupported_number(SUM, " 23 + 19 is 44", "42")
    assert bare is not None
    assert not bare.suspect


def test_a_false_equation_is_certain_even_after_a_suspicion() -> None:
    text = " It takes 60 minutes: 4 * 6 = 25"
    found = find_unsupported_number(SHEEP, text, "16")
    assert found is not None
    assert (found.kind, found.suspect, text[found.start : found.end]) == ("wrong_arithmetic", False, "25")


@pytest.mark.parametrize("prompt", ["He gives away 1/4 of the marbles.", "Read pages 5-7 of it."])
def test_fractions_and_ranges_ask_for_no_operation(prompt: str) -> None:
    found = find_unsupported_number(prompt, " 28", "3")
    assert found is None or found.suspect


def test_a_number_that_begins_before_the_limit_is_read_to_its_end() -> None:
    """`450 / 3 = 150`, cut off inside its result, once counted as `450 / 3 = 15`."""
    text = " 450 / 3 = 150"
    assert find_unsupported_number("450 / 3 = ?", text, "150", before=len(text) - 1) is None
    assert find_unsupported_number(SUM, " 42 and then 999", "42", before=4) is None


def test_three_hundred_numbers_in_the_prompt_cost_no_more_than_a_few() -> None:
    """Every sum of two of them, and what follows from those, was once written down."""
    prompt = " ".join(str(7 * number + 1) for number in range(300)) + " = ?"
    found = find_unsupported_number(prompt, " 2094 + 2087 = 4181, 123456789", None)
    assert found is not None
    assert found.kind == "digit_salad"


@given(st.lists(st.integers(0, 30), min_size=2, max_size=5), st.integers(0, 2000))
def test_what_two_steps_reach_is_what_writing_every_result_down_reaches(asked: list[int], wanted: int) -> None:
    def steps(a: Fraction, b: Fraction) -> set[Fraction]:
        whole = [x / y for x, y in ((a, b), (b, a)) if y and (x / y).denominator == 1]
        return {a + b, abs(a - b), a * b, *whole}

    given_ = [Fraction(number) for number in asked]
    once = {*given_, *(found for a, b in combinations(given_, 2) for found in steps(a, b))}
    twice = once | {found for a, b in product(once, given_) for found in steps(a, b)}
    found = find_unsupported_number(" ".join(map(str, asked)), f"so = {wanted}", None)
    assert (found is None) == (Fraction(wanted) in twice)


def test_a_loop_of_digits_is_read_and_costs_no_traceback() -> None:
    assert find_number_echo(SUM, "1" * 10_000, "42") is None
    found = find_unsupported_number(SUM, "1" * 10_000, "42")
    assert found is not None
    assert found.kind == "digit_salad"


def test_code_repeats_its_own_lines_and_prose_half_of_its_openings() -> None:
    line = "assert area of box one is less than area of box two"
    assert find_text_echo(line, f"{line}\n", "code") is None  # twelve words
    assert find_text_echo(line, f"{line}\n", "prose") is not None
    assert find_text_echo(line + " and so on it goes for ever", line, "prose") is not None
    assert find_text_echo(line + " and so on it goes for ever", line + " while it rained for days on end") is None


@pytest.mark.parametrize(
    ("prompt", "text", "stray"),
    [
        ("Subtract 145 from 820. The answer is", " 1000.\n", "1000"),  # no list
        ("The product of 8 and 3 is", " the product of 12 and 12.", "12"),
        ("The difference between 84 and 19 is", " 65.", None),
    ],
)
def test_an_operation_asked_for_in_words_is_one_too(prompt: str, text: str, stray: str | None) -> None:
    found = find_unsupported_number(prompt, text, None)
    assert (None if found is None or found.suspect else text[found.start : found.end]) == stray


# ------------------------------------------------------------------------------------------------ wrong answers


@pytest.mark.parametrize(
    "text",
    [
        " 42",
        " 42.",
        " The answer is 42. The answer is 7.",
        " 23 + 19 = 42",
        " 23 + 19\n= 20 + 3 + 19\n= 42",
        " first add 20 and 19, then 3, which gives 42. Then go home.",
        " We carry one.\n#### 42\nQuestion: What is 3 + 4? Answer: 7",
        "\n\n42\n\nQuestion: 1 + 1 = 2",
        " 42 because 40 + 2 is that",
        " **42**",
        " $42$.",
    ],
)
def test_a_right_number_is_taken_however_it_is_given(text: str) -> None:
    assert find_wrong(text, ["42"], "math") is None


@pytest.mark.parametrize(
    "text",
    [
        " 43",
        " -42",
        " 4.2",
        " 420",
        " B",
        "",
        " The answer is 7. The answer is 42.",
        " 23 + 19 = 23",
        " 7\nQuestion: What is 40 + 2? Answer: 42",
        " a matter of taste, and the rest is silence",
    ],
)
def test_any_other_number_and_none_are_wrong(text: str) -> None:
    found = find_wrong(text, ["42"], "math")
    assert found is not None
    assert not found.suspect


@pytest.mark.parametrize(
    ("text", "gold", "wrong"),
    [
        (" -5", "-5", False),
        (" minus 5", "-5", False),
        (" 3 - 8 = −5", "-5", False),
        (" 5", "-5", True),
        (" 1,203.50", "1203.5", False),
        (" eight legs", "eight", False),
        (" the Eighteenth of May", "eight", True),  # whole words
        (" PARIS, of course", "Paris", False),
        (" not known to me", "Paris", True),
        (
            " a city which lies in the north of the country, on a river, and its name is, as all know, Paris",
            "Paris",
            True,
        ),
        (" George\nWashington", "George Washington", False),
    ],
)
def test_signs_separators_and_whole_words_count(text: str, gold: str, wrong: bool) -> None:
    assert (find_wrong(text, [gold]) is not None) == wrong


@pytest.mark.parametrize(
    ("text", "gold", "wrong"),
    [
        (" a+b\n", "a + b", False),
        (" a + b + c\n", "a + b", True),
        (" 0\n", "0", False),
        (" 0.5\n", "0", True),
        (" 10\n", "0", True),
        (" len(values) if values else 0", "len(values)", False),
        (" x[0]", "x", True),
        ("[::-1]", "[::-1]", False),
    ],
)
def test_code_must_stand_first_and_end_where_the_answer_does(text: str, gold: str, wrong: bool) -> None:
    assert (find_wrong(text, [gold], "code") is not None) == wrong


def test_one_right_answer_of_several_is_enough_and_without_any_nothing_is_wrong() -> None:
    assert find_wrong(" 8", ["eight", "8"]) is None
    assert find_wrong(" anything", []) is None


def test_a_text_that_was_cut_off_may_yet_answer() -> None:
    for cut_off in (True, False):
        found = find_wrong(" let us take", ["42"], "math", cut_off=cut_off)
        assert found is not None
        assert found.suspect == cut_off


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Question: What is 23 + 19? Answer:", "42"),
        ("Solve: 17 * 23 = ?", "391"),
        ("To compute 12 plus 7, we can", "19"),
        ("3 - 8 =", "-5"),
        ("-3 + 5 =", "2"),
        ("What is 9 divided by 3?", "3"),
        ("9 / 4 =", None),  # not whole
        ("9 / 0 =", None),
        ("1 + 2 + 3 =", None),
        ("We know that 2 + 3 is the same as", None),
        ("Read pages 5-7", None),
        ("1.5 * 4 =", "6"),
        ("", None),
    ],
)
def test_a_prompt_that_asks_for_a_sum_implies_its_answer(prompt: str, answer: str | None) -> None:
    assert implied_answer(prompt) == answer


@pytest.mark.parametrize("domain", ["prose", "math", "code"])
def test_an_endless_number_costs_no_traceback(domain: Domain) -> None:
    assert find_wrong("1" * 10_000, ["42"], domain) is not None
    assert implied_answer("1" * 5000 + " + " + "2" * 5000 + " =") is not None
