"""The answer that a solution ends in: real solutions give back their own, and so do other ways to end one."""

from __future__ import annotations

import pytest
from real_items import MATH_SUBJECTS, real_rows

from shardscope.evals.math_answers import equivalent
from shardscope.evals.math_solutions import boxed, final_answer


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{1} but then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("nothing", None),
        (r"cut off \boxed{\frac{1", None),
        (r"\fbox{5}", "5"),
        (r"\framebox{5}", "5"),
        (r"\boxed 5.", "5."),
        (r"$\boxed 5$ apples", "5"),
        (r"$\boxed\frac12$.", r"\frac12"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"$\boxed{\frac{1}{2}$.", r"\frac{1}{2}"),
        (r"\boxed{\left\{x\right.}", r"\left\{x\right."),
        (r"\boxed{\{1, 2\}} as said", r"\{1, 2\}"),
        (r"\boxed{\text{$5$ cm}}", r"\text{$5$ cm}"),
        (r"$\boxed{3}$, and $x = \boxed{4", "3"),
        (r"\boxedsum{5}", None),
    ],
)
def test_the_last_complete_box_counts_with_its_braces_balanced(text: str, content: str | None) -> None:
    assert boxed(text) == content


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"We find $x=2$, so $\boxed{2}$.", "2"),
        ("The final answer is 17. I hope it is correct.", "17"),
        ("Final Answer: The final answer is $5$. I hope it is correct.", "$5$"),
        ("The answer is 3.5", "3.5"),
        ("The answer is 3.5.", "3.5"),
        ("The answer is\n$$5$$", "$$5$$"),
        ("The answer is: **5**.", "5"),
        ("The answer is therefore 5, as wanted.", "5"),
        ("**Answer:** 5", "5"),
        ("The answer is 5.\nProblem: what?", "5"),
        ("The answers are $2$ and $3$.", "$2$ and $3$"),
        ("16 - 3 = 13\n#### 1,300", "1,300"),
        ("So it is $4$, **5**.", "5"),
        ("so $a$ and then $a = 4$", "a = 4"),
        ("it is $4$, and $x", "4"),
        (r"He pays $\$40$.", r"\$40"),
        (r"It costs \$5 and \$7, so $12$ dollars.", "12"),
        (r"It costs \$12.", r"\$12"),
        ("A costs $5 and B costs $7. Sum: $12.", "$12"),
        ("thus $$x=5$$", "x=5"),
        (r"thus \[x = 5\]", "x = 5"),
        (r"thus \(5\).", "5"),
        ("thinking\n42\n", "42"),
        ("so the total is 1,042 apples.", "1,042"),
        ("Therefore, x = 2y + 1", "2y + 1"),
        ("Therefore, 2 + 3 = 5.", "5."),
        ("Therefore the value of $x$ is 5.", "5"),
        ("Thus the length $AB$ is 5 cm.", "5 cm"),
        ("so $x = 5$, where $y$ is large", "y"),
        ("*Answer:* 5", "5"),
        ("### Answer\n5", "5"),
        ("So there are **5** ways.", "5"),
        (r"$\boxed{5}$. Check: $\boxed{}$", "5"),
        ("<answer>5</answer>", "5"),
        ("east", "east"),
        ("", ""),
        (r"so \boxed{4", ""),
    ],
)
def test_the_final_answer_of_a_solution(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_every_real_solution_of_math_ends_in_its_gold_answer() -> None:
    for row in real_rows("MATH-500/default/test.jsonl", 500):
        assert equivalent(final_answer(row["solution"]), row["answer"])


def test_every_real_solution_of_gsm8k_ends_in_its_gold_answer() -> None:
    for row in real_rows("gsm8k/main/test.jsonl", 2000):
        assert final_answer(row["answer"]) == row["answer"].rpartition("####")[2].strip()


@pytest.mark.parametrize(
    "ending",
    [
        r"So $\boxed{GOLD}$.",
        r"$\boxed GOLD$",
        r"$\fbox{GOLD}$",
        r"$\boxed{\boxed{GOLD}}$",
        "The answer is $GOLD$.",
        "The answer is GOLD.",
        "**Answer:** $GOLD$",
        r"We get $3 = x$ and \[GOLD\]",
        r"so \(GOLD\).",
        "so\n$$GOLD$$",
        "#### GOLD",
        "so **GOLD**",
    ],
)
def test_every_real_gold_answer_is_found_however_a_solution_ends(ending: str) -> None:
    rows = [row for subject in MATH_SUBJECTS for row in real_rows(f"hendrycks_math/{subject}/test.jsonl", 5000)]
    golds = {" ".join((boxed(row["solution"]) or "").split()) for row in rows}
    assert len(golds) > 1500
    found = {gold: final_answer(ending.replace("GOLD", gold)) for gold in golds}
    assert [gold for gold, answer in found.items() if answer != gold and not equivalent(answer, gold)] == []
