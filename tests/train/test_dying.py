"""A short form of `make hostile`: a run that died is started again and ends as one that was never disturbed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from dying import die


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks /proc for names")
def test_nothing_is_lost_by_dying(recipe_file: Path, tmp_path: Path) -> None:
    ways = {
        "kills_at_changes": 4,
        "kills_at_moments": 2,
        "signals": 3,
        "full_disk": 4,
        "read_only": 2,
        "two_trainers": 1,
        "forks_of_a_run_that_deletes": 3,
    }
    found = die(recipe_file, tmp_path / "deaths", ways, seed=1)
    assert {way: each["lost"] for way, each in found.items()} == {way: [] for way in ways}
    assert {way: each["tried"] for way, each in found.items()} == ways
    assert found["full_disk"]["sentences"] + found["read_only"]["sentences"] >= 4
