"""The benchmark that shows what choosing the number of threads is worth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardscope.bench import threads
from shardscope.cli import main


@pytest.mark.slow
def test_the_benchmark_measures_idle_and_busy_in_one_run(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each measurement is a process of its own; two ways and two machines show as much as all of them.
    monkeypatch.setattr(threads, "WAYS", {way: threads.WAYS[way] for way in ("chosen", "one")})
    monkeypatch.setattr(threads, "BUSY", {busy: threads.BUSY[busy] for busy in ("no", "at nice 10")})
    out = tmp_path / "threads.json"
    words = ["bench", "threads", "--checkpoint", str(tiny_checkpoint), "--new", "4", "--runs", "1", "--out", str(out)]
    assert main(words) == 0
    rows = json.loads(out.read_text())["rows"]
    cases = [(row["threads"], row["text"], row["busy"]) for row in rows]
    assert len(set(cases)) == len(cases) == 2 * 2 * 2
    for row in rows:
        assert row["tokens_per_second"] > 0
        assert row["busy"] != "no" or row["slower_than_idle"] == 1
    assert "| chosen, greedy, at nice 10 |" in capsys.readouterr().out


def test_a_checkpoint_that_is_not_there_is_said_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "threads", "--checkpoint", "nowhere"]) == 1
    assert capsys.readouterr().err == "error: nowhere: no such checkpoint or run\n"


@pytest.mark.parametrize("what", ["threads", "xray", "decode"])
def test_a_file_that_cannot_be_written_is_said_before_anything_is_measured(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", what, "--out", str(tmp_path)])
    assert "is a folder; name a file in it" in capsys.readouterr().err
