"""docs/xray.md says what its command prints, and its code runs as written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import xray_page

from shardscope.cli import main


@pytest.mark.slow
def test_the_page_shows_what_its_command_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = xray_page.TABLE.findall(xray_page.PAGE.read_text(encoding="utf-8"))[0]
    words = [str(tmp_path / "xray.svg") if word.endswith(".svg") else word for word in xray_page.command()]
    monkeypatch.chdir(xray_page.ROOT)
    assert main([*words, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out

    def facts(table: str) -> list[str]:
        """What no rounding moves: the loop and the verdict's word."""
        return re.findall(r"^(loop .*?tokens from token \d+|verdict +\w+)", table, flags=re.MULTILINE)

    assert len(facts(shown)) == 2
    assert facts(printed) == facts(shown)
    assert (tmp_path / "xray.svg").exists()


def test_the_speeds_on_the_page_are_the_benchmarks_and_within_what_was_promised() -> None:
    assert xray_page.SPEEDS.findall(xray_page.PAGE.read_text(encoding="utf-8")) == [xray_page.speeds()]
    seconds = {place: {row["what"]: row["seconds"] for row in xray_page.rows(place)} for place in ("cpu", "h100")}
    assert seconds["cpu"]["onset and ranks"] <= 3
    assert seconds["cpu"]["the whole X-ray"] <= 60
    assert seconds["h100"]["the whole X-ray"] <= 20


def test_the_code_on_the_page_runs_as_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(xray_page.ROOT)
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", xray_page.PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(compile(code, str(xray_page.PAGE), "exec"), names)
    assert re.match(r"\d+ \d+ L\dH\d\n.", capsys.readouterr().out)
