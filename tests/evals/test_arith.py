from __future__ import annotations

from collections import Counter

import pytest

from shardscope.data.arithmetic import CARD_SUMS
from shardscope.evals.arith import carries, digit_accuracy, judge, problems, stated_number


def test_the_suite_is_the_same_for_the_same_seed_and_begins_with_the_cards_sums() -> None:
    rows = problems(100)
    assert rows == problems(100)
    assert rows[3:] != problems(100, seed=2)[3:]
    assert [row["prompt"] for row in rows[:3]] == [
        "To compute 12 plus 7, we can see that the answer is",
        "Question: What is 23 + 19? Answer:",
        "Solve: 17 * 23 = ?\nAnswer:",
    ]
    assert len({row["prompt"] for row in rows}) == 100
    assert (23, 19) in CARD_SUMS  # which the training generator leaves out


def test_every_answer_is_right_and_every_kind_occurs() -> None:
    rows = problems(240)
    for row in rows:
        a, b = (int(word) for word in row["prompt"].replace("?", " ").replace(",", " ").split() if word.isdigit())
        assert int(row["answer"]) == {"+": a + b, "-": a - b, "*": a * b}[row["operation"]]
        assert row["choices"][row["gold"]] == row["answer"]
        assert len(set(row["choices"])) == 4
    assert Counter(row["operation"] for row in rows).keys() == set("+-*")
    assert {row["digits"] for row in rows} == {1, 2, 3}
    assert len({row["format"] for row in rows}) == 4
    assert {0, 1, 2} <= {row["carries"] for row in rows}


@pytest.mark.parametrize(
    ("a", "sign", "b", "count"),
    [(12, "+", 7, 0), (23, "+", 19, 1), (99, "+", 1, 2), (42, "-", 19, 1), (100, "-", 1, 2), (11, "*", 11, 0)],
)
def test_carries_and_borrows_are_counted_by_column(a: int, sign: str, b: int, count: int) -> None:
    assert carries(a, sign, b) == count


@pytest.mark.parametrize(
    ("stated", "answer", "share"),
    [("42", "42", 1), ("41", "42", 0.5), ("142", "42", 2 / 3), ("2", "42", 0.5), (None, "42", 0), ("42.7", "42", 1)],
)
def test_digits_are_compared_from_the_right(stated: str | None, answer: str, share: float) -> None:
    assert digit_accuracy(stated, answer) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" 42", "42"),
        ("\n42\n", "42"),  # the answer on the line below
        ("\n\nAnswer: 42", "42"),
        (" 93 * 20 = <<93*20=1860>>1860\n20 + 1860 = 1880", "1860"),
        (" 20 + 22 = 42. The answer is 42.\nThe answer is 7.", "42"),
        (" 1,860", "1860"),
        (" -19", "-19"),
        (" 12 - 31 = −19", "-19"),
        (" 9-5", "9"),
        (" none\n42", None),
        ("", None),
    ],
)
def test_the_first_line_states_the_answer_and_its_sign_counts(text: str, number: str | None) -> None:
    assert stated_number(text) == number


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" 42", "exact_match"),
        (" 20 + 22 = 42. The answer is 42.", "exact_match"),
        (" 23", "echo"),
        (" 77", "digits"),
        (" ?????", "breakdown"),
        (" who knows", "no_number"),
        ("", "early_end"),
        (" -42", "other"),
        (" 42\n7 = 7\n7 = 7\n7 = 7\n7 = 7\n7 = 7\n7 = 7", "exact_match"),  # a loop after the answer
        (" 4", "other"),  # 23 - 19: one operation away
        (" 437 437 437 437 437 437 437 437 437", "loop"),
    ],
)
def test_each_answer_is_right_or_wrong_in_one_named_way(text: str, kind: str) -> None:
    scores = judge(problems(3)[1], text)
    parts = {name: scores.pop(name) for name in list(scores) if name.startswith("exact_match_")}
    digits = scores.pop("digit_accuracy")
    assert [name for name, value in scores.items() if value] == [kind]
    assert set(parts.values()) == {float(kind == "exact_match")}
    assert set(parts) == {"exact_match_add", "exact_match_2_digit", "exact_match_carry"}  # 23 + 19
    if kind == "exact_match":
        assert digits == 1
