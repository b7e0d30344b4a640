"""The benchmark of a run's biography."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardscope.bench import biography
from shardscope.cli import main
from shardscope.config import PRESETS, ShardConfig


@pytest.mark.slow
def test_the_parts_of_a_probe_and_the_share_of_a_training_are_measured_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = ShardConfig(vocab_size=300, n_ctx=64, d_model=16, n_layers=2, n_heads=2, d_head=8, d_mlp=16, window=16)
    monkeypatch.setitem(PRESETS, "shard-pico", small)
    arithmetic = tuple(source for source in biography.SOURCES if source.name == "arithmetic")
    monkeypatch.setattr(biography, "SOURCES", arithmetic)
    out = tmp_path / "biography.json"
    words = ["bench", "biography", "--model", "shard-pico", "--tokens", "128", "--steps", "3", "--runs", "1"]
    assert main([*words, "--device", "cpu", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    seconds = {row["part"]: row["seconds"] for row in report["rows"]}
    step = seconds.pop("a training step")
    assert len(seconds) == 5
    assert report["steps_between_probes_at_one_percent"] >= 100 * sum(seconds.values()) / step
    assert report["probes"][0] == 0, "the first is made in any case"
    assert report["largest_line_bytes"] < 1e6
    assert 0 < report["share"] < 1
    assert "| singular values |" in capsys.readouterr().out


def test_nothing_to_measure_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "biography", "--runs", "0"]) == 1
    assert "--runs 0 measures nothing" in capsys.readouterr().err
