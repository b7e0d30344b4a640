"""The code on the microscope's page runs as written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shardscope import Shard
from shardscope.checkpoint import save_checkpoint

PAGE = Path(__file__).parents[2] / "docs" / "microscope.md"


def test_the_code_on_the_page_runs_as_written(
    trained_model: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "runs" / "shard-pico-anneal", trained_model)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    said = capsys.readouterr().out
    assert re.search(r"(embed|MLP \d|L\dH\d) +[+-]\d\.\d{3}", said)
    assert len(names["best"]) == 3  # type: ignore[arg-type]
