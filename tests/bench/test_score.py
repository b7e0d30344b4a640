"""`shardscope bench score`: what it measures is the same work for both."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from real_items import ROOT

from shardscope.bench import score as bench
from shardscope.config import ConfigError


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)


def test_both_score_the_same_items_and_the_table_says_how_fast(
    formats: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    words = [
        "--checkpoint",
        str(formats[0]),
        "--questions",
        "6",
        "--batch",
        "1",
        "4",
        "--runs",
        "1",
        "--device",
        "cpu",
    ]
    assert bench.run(arguments(*words, "--out", str(tmp_path / "score.json"))) == 0
    report = json.loads((tmp_path / "score.json").read_text())
    assert (report["questions"], report["requests"]) == (6, 24)
    assert [(row["scorer"], row["batch"]) for row in report["rows"]] == [
        ("hf", 1),
        ("shard", 1),
        ("hf", 4),
        ("shard", 4),
    ]
    assert all(row["questions_per_second"] > 0 and row["furthest"] < 1e-4 for row in report["rows"])
    assert "| shard | 4 |" in capsys.readouterr().out


def test_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ARC-Easy/test\.jsonl is not there; lay the folder out like .*sample"):
        bench.run(arguments("--data", str(tmp_path), "--device", "cpu"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "runs/nothing-here"], "runs/nothing-here: no such checkpoint or run"),
        (["--runs", "0"], "--runs 0 measures nothing; use at least 1"),
        (["--questions", "0"], "--questions 0 measures nothing"),
        (["--batch", "4", "0"], "--batch 0 measures nothing"),
    ],
)
def test_what_cannot_be_measured_gets_one_sentence(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=message):
        bench.run(arguments(*words, "--device", "cpu"))


def test_a_checkpoint_that_cannot_be_exported_gets_the_exports_sentence(
    formats: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    broken = shutil.copytree(formats[0], tmp_path / "broken")
    (broken / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        bench.run(arguments("--checkpoint", str(broken), "--device", "cpu"))
    assert len(str(caught.value).splitlines()) == 1


def test_the_table_in_the_docs_is_the_one_that_the_json_gives() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    report = json.loads((ROOT / "docs" / "benchmarks" / "score-cpu.json").read_text(encoding="utf-8"))
    rows = "\n".join(bench.table(report).splitlines()[2:])
    assert f"<!-- score-cpu -->\n{rows}\n<!-- /score-cpu -->" in page
