"""docs/reliability.md shows the figures of the suite, and nothing was lost. Part of `make test`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attacks import ATTACKS, FIGURES, PAGE, Count, page_with, record

from shardscope.config import ConfigError


@pytest.fixture(scope="module")
def figures() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(FIGURES.read_text(encoding="utf-8"))
    return found


def test_the_table_is_made_from_the_figures(figures: dict[str, dict[str, Any]]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page_with(page, figures) == page, "run `python tests/hostile/attacks.py`"


def test_nothing_was_lost_and_what_was_not_tried_is_said(figures: dict[str, dict[str, Any]]) -> None:
    assert set(figures) <= set(ATTACKS)
    assert PAGE.read_text(encoding="utf-8").count("not run yet") == len(ATTACKS) - len(figures)
    for name, one in figures.items():
        assert (one["attacked"], one["by"]) == ATTACKS[name], name
        assert one["tried"] == one["unharmed"] + one["refused"] >= 8, name
        assert one["lost"] == [], name


def test_an_attempt_is_unharmed_refused_in_a_sentence_or_lost(tmp_path: Any) -> None:
    count = Count()
    for error in (None, ConfigError("one sentence"), ConfigError("two\nlines"), ConfigError(""), KeyError("key")):
        with count.attempt("case"):
            if error:
                raise error
    with count.attempt("case"):
        raise AssertionError("other numbers")
    assert (count.tried, count.unharmed, count.refused, len(count.lost)) == (6, 1, 1, 4)
    record(tmp_path / "figures.json", {"cuts": count}, 2.4)
    record(tmp_path / "figures.json", {"flips": Count(1, 1)}, 1)
    written = json.loads((tmp_path / "figures.json").read_text())
    assert list(written) == ["flips", "cuts"]
    assert written["cuts"]["lost"][-1] == "case: AssertionError: other numbers"
