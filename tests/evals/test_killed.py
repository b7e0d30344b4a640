"""An evaluation that is killed in the middle goes on from its cache, and ends as if nothing had been."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from killing import assert_nothing_was_lost, kill_evaluations


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_killed_in_the_middle_of_a_task_it_goes_on_to_the_same_results(
    formats: tuple[Path, Path], tmp_path: Path
) -> None:
    report = kill_evaluations(formats[0], tmp_path, ["1:0:3", "2:1:2"])
    for case in report["cases"]:
        assert_nothing_was_lost(report, case)
    alone = report["cases"]["1:0:3"]["results"]
    assert alone["scores"] == report["undisturbed"]["scores"]  # to the last bit
    assert alone["calls"] < report["undisturbed"]["calls"]  # what was known is not asked again
