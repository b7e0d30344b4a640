from __future__ import annotations

from itertools import pairwise

import pytest
from real_items import real_rows

from shardscope.evals.math_answers import boxed, equivalent, final_answer


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("0.5", r"\frac{1}{2}"),
        (r"\frac12", r"\dfrac{1}{2}"),
        ("1/2", "$0.50$"),
        (r"x = \frac{7}{3}", "7/3"),
        ("1,234", "1234"),
        (r"12\text{ cm}", "12"),
        (r"45^\circ", "45"),
        (r"\$3.50", "3.5"),
        (r"25\%", "25"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt2}{2}"),
        (r"\sqrt[3]{8}", "2"),
        (r"3\frac{1}{2}", "3.5"),
        ("(x+1)^2", "x^2+2x+1"),
        ("2(a+b)", "2b + 2a"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"),
        ("-3, 5", "5, -3"),
        (r"\{1,2\}", r"\{2, 1\}"),
        (r"[2,5)", r"\left[2, 5\right)"),
        (r"\text{Tuesday}", r"\text{tuesday}"),
        (r"\sin x", r"\sin(x)"),
        ("2^{10}", "1024"),
    ],
)
def test_equal_answers_are_equal_however_they_are_written(answer: str, gold: str) -> None:
    assert equivalent(answer, gold)
    assert equivalent(gold, answer)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("", "5"),
        ("", ""),
        ("6", "5"),
        ("0.33", r"\frac{1}{3}"),
        ("(1,2)", "(2,1)"),
        ("(2,5)", "[2,5)"),
        ("x^2", "x^3"),
        ("1,2", "1,2,3"),
        ("1,1,2", "1,2,2"),
        (r"\text{east}", r"\text{west}"),
        ("__import__('os')", "5"),
        ("9^9^9^9^9", "5"),
        ("((((", "5"),
        ("1/0", "5"),
    ],
)
def test_different_or_meaningless_answers_are_not(answer: str, gold: str) -> None:
    assert not equivalent(answer, gold)


def test_the_last_box_counts_with_its_braces_balanced() -> None:
    assert boxed(r"so \boxed{1} but then \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert boxed("nothing") is None
    assert boxed(r"cut off \boxed{\frac{1") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"We find $x=2$, so $\boxed{2}$.", "2"),
        ("The final answer is 17. I hope it is correct.", "17"),
        ("The answer is 3.5", "3.5"),
        ("so $a$ and then $a = 4$", "a = 4"),
        ("thinking\n42\n", "42"),
        ("", ""),
    ],
)
def test_the_final_answer_of_a_solution(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_every_real_math_answer_equals_itself_and_rarely_another() -> None:
    golds = [boxed(row["solution"]) for row in real_rows("MATH-500/default/test.jsonl", 500)]
    assert all(gold is not None and equivalent(gold, gold) for gold in golds)
    assert all(equivalent(final_answer(f"So it is $\\boxed{{{gold}}}$."), gold or "") for gold in golds)
    # Written differently: another fraction sign, dollar signs.
    assert all(equivalent("$ " + (gold or "").replace("\\frac", "\\dfrac") + " $", gold or "") for gold in golds)
    different = [(a, b) for a, b in pairwise(golds) if a and b and equivalent(a, b)]
    assert all(a.replace(" ", "") == b.replace(" ", "") or a in b or b in a for a, b in different), different
