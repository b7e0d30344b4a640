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
