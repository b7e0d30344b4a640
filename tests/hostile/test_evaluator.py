"""Evaluations killed at every call of the model and at any moment: the long form of `tests/evals/test_killed.py`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks import Count
from killing import assert_nothing_was_lost, kill_evaluations

pytest.importorskip("lm_eval")

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(sys.platform != "linux", reason="forks"),
]


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("evaluations_at_calls", [f"1:0:{call}" for call in range(2, 13)]),
        ("evaluations_at_moments", [f"1:0:~{hundredth / 100}" for hundredth in range(1, 100, 5)]),
        ("evaluations_of_two", [f"2:{rank}:{call}" for rank in (0, 1) for call in (2, 3, 4, 5)]),
    ],
)
def test_an_evaluation_that_was_killed_goes_on_to_the_same_results(
    formats: tuple[Path, Path], tmp_path: Path, attack: Callable[[str], Count], name: str, cases: list[str]
) -> None:
    count, report = attack(name), kill_evaluations(formats[0], tmp_path, cases, timeout=3000)
    for case in cases:
        with count.attempt(case):
            assert_nothing_was_lost(report, case)
    assert count.lost == []
    killed = sum(-signal.SIGKILL in [status for status, _ in found["ends"]] for found in report["cases"].values())
    assert killed > len(cases) // 2, "most of them had ended before their moment came"
