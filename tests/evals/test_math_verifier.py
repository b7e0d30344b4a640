"""math-verify's score beside ours: on real solutions both give every point; where they differ is known."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from real_items import ROOT, real_rows

from shardscope.cli import main
from shardscope.evals import math_verifier
from shardscope.evals.tasks import score_math


@pytest.fixture
def without_math_verify(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    math_verifier._is_installed.cache_clear()
    yield
    math_verifier._is_installed.cache_clear()


def scores(answer: str, gold: str) -> tuple[float, float]:
    """(ours, math-verify's)"""
    pytest.importorskip("math_verify")
    found = score_math({"solution": rf"So it is $\boxed{{{gold}}}$."}, [rf"We find $\boxed{{{answer}}}$."])
    return found["exact_match"], found["math_verify"]


def test_every_real_solution_gets_its_point_by_both() -> None:
    pytest.importorskip("math_verify")
    rows = real_rows("MATH-500/default/test.jsonl", 500)[::5]
    assert len(rows) == 100
    for row in rows:
        assert score_math(row, [row["solution"]]) == {"exact_match": 1.0, "math_verify": 1.0}, row["solution"]
        stated = f"The final answer is ${row['answer']}$. I hope it is correct."  # as in the Minerva prompt
        assert score_math(row, [stated])["exact_match"] == 1.0


@pytest.mark.skipif(not importlib.util.find_spec("lm_eval.tasks.minerva_math"), reason="lm-eval has no such task")
def test_the_score_is_that_of_lm_evals_own_math_task() -> None:
    pytest.importorskip("math_verify")
    from lm_eval.tasks.minerva_math.utils import process_results

    row = {"problem": "", "solution": r"Half of it, so $\boxed{\frac{1}{2}}$.", "answer": r"\frac{1}{2}"}
    for text in (r"$\boxed{0.5}$", "The answer is $1/2$.", "The final answer is 2.", "none", "", r"\boxed{\frac12"):
        assert process_results(row, [text])["math_verify"] == score_math(row, [text])["math_verify"], text


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("0.5", r"\frac{1}{2}", True),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt2}{2}", True),
        ("(x+1)^2", "x^2+2x+1", True),
        (r"\{2, 1\}", r"\{1,2\}", True),
        (r"12\text{ cm}", "12", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}", True),
        (r"[2,5)", r"(2,5)", False),
        ("6", "5", False),
        ("(2,1)", "(1,2)", False),
        (r"\text{east}", r"\text{west}", False),
        ("2^{100}-1", "2^{100}", False),
    ],
)
def test_both_agree_about_what_most_answers_are(answer: str, gold: str, same: bool) -> None:
    assert scores(answer, gold) == (same, same)


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        (r"25\%", "25", True),
        ("1 1/2", r"\frac{3}{2}", True),
        (r"(141)_{\text{twelve}}", "141_{12}", True),
        ("5 < x", r"(5,\infty)", True),
        (r"45\degree", r"45^\circ", True),
        ("101_{2}", "101_3", False),
        (r"\{1,2\}", "(1,2)", False),
        ("X", "x", False),
        ("1,1,2", "1,2,2", False),
    ],
)
def test_ours_is_right_where_the_page_says_that_the_two_differ(answer: str, gold: str, same: bool) -> None:
    assert scores(answer, gold)[0] == same


def test_without_math_verify_its_score_is_left_out_with_one_warning(
    without_math_verify: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert score_math({"solution": r"\boxed{5}"}, ["5"]) == {"exact_match": 1.0}
    said = "math-verify is not installed, so its score of MATH is left out; pip install 'shardscope[eval]' brings it"
    assert [record.message for record in caplog.records] == [said]


def test_the_table_has_a_line_for_each_of_the_scores_there_are(
    formats: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_math_verify: None
) -> None:
    monkeypatch.chdir(ROOT)
    words = [str(formats[0]), "--out", str(tmp_path), "--limit", "1", "--device", "cpu", "--tasks", "shard_math"]
    assert main(["eval", *words]) == 0
    assert [line.split("|")[3].strip() for line in (tmp_path / "table.md").read_text().splitlines()[2:]] == [
        "exact_match"
    ]
