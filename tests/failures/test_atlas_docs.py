"""docs/failures.md shows the built-in model's atlas as it ships, and its code runs as written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shardscope.failures.atlas import built_in_atlas
from shardscope.failures.atlas.table import atlas_table

PAGE = Path(__file__).parents[2] / "docs" / "failures.md"
TABLE = re.compile(r"(?<=<!-- atlas -->\n).*?(?=<!-- /atlas -->)", flags=re.DOTALL)


def filled(page: str) -> str:
    """The page with the table that the shipped samples give; `python tests/failures/test_atlas_docs.py` writes it."""
    return TABLE.sub(lambda _: f"```text\n{atlas_table(built_in_atlas())}\n```\n", page)


def test_the_page_shows_the_atlas_that_ships() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == filled(page)


def test_the_code_on_the_page_runs_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    assert re.fullmatch(r"\d+ of 117 greedy samples of prose loop, \d+% to \d+%\n", capsys.readouterr().out)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
