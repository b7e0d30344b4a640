"""Evaluations killed at every call of the model and at any moment: the long form of `tests/evals/test_killed.py`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from killing import assert_nothing_was_lost, kill_evaluations, numbers

pytest.importorskip("lm_eval")

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(sys.platform != "linux", reason="forks"),
]


def test_killed_at_every_call_of_the_model(formats: tuple[Path, Path], tmp_path: Path) -> None:
    cases = [f"1:0:{call}" for call in range(2, 13)]
    assert_nothing_was_lost(kill_evaluations(formats[0], tmp_path, cases, timeout=3000))


def test_one_of_two_processes_killed(formats: tuple[Path, Path], tmp_path: Path) -> None:
    cases = [f"2:{rank}:{call}" for rank in (0, 1) for call in (2, 3, 5)]
    assert_nothing_was_lost(kill_evaluations(formats[0], tmp_path, cases, timeout=3000))


def test_killed_at_any_moment(formats: tuple[Path, Path], tmp_path: Path) -> None:
    report = kill_evaluations(formats[0], tmp_path, [f"1:0:~{moment}" for moment in range(1, 400, 20)], timeout=3000)
    for case, found in report["cases"].items():
        assert found["ends"][0][0] in (-signal.SIGKILL, 0), (case, found["ends"])  # a late one may find it finished
        assert found["results"]["answers"] == report["undisturbed"]["answers"], case
        assert numbers(found["results"]) == numbers(report["undisturbed"]), case
