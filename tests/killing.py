"""Runs `tests/hostile/evaluations.py`, for its short form in the suite and the long one of `make hostile`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from real_items import ROOT

PROGRAM = Path(__file__).parent / "hostile" / "evaluations.py"


def kill_evaluations(checkpoint: Path, folder: Path, cases: list[str], timeout: int = 280) -> dict[str, Any]:
    env = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(checkpoint), str(folder), *cases],
        capture_output=True, text=True, env=env, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert report["cases"].keys() == set(cases)
    return report


def assert_nothing_was_lost(report: dict[str, Any], case: str) -> None:
    """The killed process died of it, the others said so in a sentence, and the second run gives the same answers."""
    whole, found = report["undisturbed"], report["cases"][case]
    assert whole["calls"] > 10
    rank, strike = case.split(":")[1:]
    for number, (status, said) in enumerate(found["ends"]):
        if number != int(rank):
            assert status == 1, said
            assert said.startswith(f"error: process {number} of 2 has lost another one"), said
        elif status != 0 or not strike.startswith("~"):  # a late moment may find it finished
            assert status == -signal.SIGKILL, said
    assert [status for status, _ in found["again"]] == [0] * len(found["ends"]), found["again"]
    assert found["results"]["answers"] == whole["answers"]
    assert numbers(found["results"]) == pytest.approx(numbers(whole), rel=1e-12)  # means of ranks' shares


def numbers(results: dict[str, Any]) -> dict[str, float]:
    return {
        f"{task} {name}": value
        for task, scores in results["scores"].items()
        for name, value in scores.items()
        if isinstance(value, int | float)
    }
