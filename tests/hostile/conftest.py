"""These tests take up to an hour: `make hostile`, which is `pytest -m hostile`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attacks import ATTACKS, Count, record

# The explorer's server, its browser and a small run are shared with the tests of its pages.
sys.path.append(str(Path(__file__).parents[1] / "apps"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "hostile" in str(config.getoption("-m")):
        return
    for item in items:
        if item.get_closest_marker("hostile"):
            item.add_marker(pytest.mark.skip(reason="takes long; run it with -m hostile"))


@pytest.fixture
def attack() -> Iterator[Callable[[str], Count]]:
    """Counts the tries of an attack of ATTACKS; see attacks.py for where the figures go."""
    counts: dict[str, Count] = {}

    def count(name: str) -> Count:
        assert name in ATTACKS
        return counts.setdefault(name, Count())

    began, used = time.monotonic(), os.times()
    yield count
    assert all(one.tried == one.unharmed + one.refused + len(one.lost) > 0 for one in counts.values())
    if file := os.environ.get("SHARDSCOPE_FIGURES"):
        # What it takes of a processor, its own and its children's, is the same on a busy machine.
        cpu_seconds = round(sum(os.times()[:4]) - sum(used[:4]))
        for one in counts.values():
            one.measured["cpu_seconds"] = cpu_seconds
        record(Path(file), counts, time.monotonic() - began)
