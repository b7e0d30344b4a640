"""`shardscope bench xray`: a verdict is timed, and one batch beside the same interventions one by one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from shardscope import Shard
from shardscope.bench import xray as bench
from shardscope.checkpoint import save_checkpoint
from shardscope.config import ConfigError
from shardscope.failures.loop_xray import replay
from shardscope.tokenizer import Tokenizer


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args([*words, "--device", "cpu"])


def test_a_verdict_and_its_interventions_are_timed(
    tmp_path: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(replay, "SHORTEST", 16)
    tiny_model.embed.W_E.data.mul_(20)
    stuck = save_checkpoint(tmp_path / "stuck", tiny_model, tokenizer=tiny_tokenizer)
    words = ["--checkpoint", str(stuck), "--prompt", "a", "--runs", "1", "--out", str(tmp_path / "xray.json")]
    assert bench.run(arguments(*words)) == 0
    report = json.loads((tmp_path / "xray.json").read_text())
    assert (report["period"], report["parts"]) == (1, 20)
    rows = {row["what"]: row for row in report["rows"]}
    assert list(rows) == ["onset and ranks", "the whole X-ray", "every part, one batch", "parts one by one"]
    assert rows["every part, one batch"]["interventions"] == 20 <= rows["the whole X-ray"]["interventions"]
    assert all(row["seconds"] > 0 for row in report["rows"])
    printed = capsys.readouterr().out
    assert "| parts one by one |" in printed
    one, batch = (
        rows[what]["seconds"] / rows[what]["interventions"] for what in ("parts one by one", "every part, one batch")
    )
    assert f"An intervention takes {one / batch:.1f} times as long by hand." in printed


def test_a_model_that_does_not_loop_is_one_sentence(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"^the text (of \d+ tokens does not end|ends) in a loop"):
        bench.run(arguments("--checkpoint", str(tiny_checkpoint), "--prompt", "Once"))


@pytest.mark.parametrize("words", [["--runs", "0"], ["--checkpoint", "x", "--model", "shard-pico"]])
def test_nothing_to_measure_is_one_sentence(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"use at least 1|name one"):
        bench.run(arguments(*words))
