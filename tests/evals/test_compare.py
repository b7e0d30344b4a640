from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shardscope.checkpoint import CheckpointError
from shardscope.cli import main
from shardscope.config import load_recipe
from shardscope.evals.compare import side_by_side
from shardscope.train import train
from shardscope.train.about import describe_run
from shardscope.train.metrics import read_metrics


@pytest.fixture
def three_runs(recipe_file: Path, tmp_path: Path) -> list[Path]:
    """A run and two forks of it."""
    train(load_recipe(recipe_file), progress=False)
    folders = [tmp_path / "run", tmp_path / "early", tmp_path / "late"]
    for folder, step in zip(folders[1:], (15, 20), strict=True):
        flags = {"run_dir": str(folder), "start_from": f"{folders[0]}@{step}"}
        train(load_recipe(tmp_path / "anneal.toml", flags), progress=False)
    return folders


def test_runs_stand_side_by_side_with_the_numbers_of_their_logs(
    three_runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = side_by_side(three_runs)
    rows = {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line.strip()) for line in shown.splitlines())}
    assert rows["run"] == ["run", "early", "late"]
    assert rows["forked from"] == ["–", "run@15", "run@20"]
    assert rows["step"] == ["20 of 20", "8 of 8", "8 of 8"]
    # 4 sequences of 32 tokens a step; a fork counts those of its parent.
    assert rows["tokens"] == [f"{128 * steps:,}" for steps in (20, 15 + 8, 20 + 8)]
    last = [read_metrics(run, "eval")[-1] for run in three_runs]
    assert rows["bits/byte, two"] == [f"{line['two']['bits_per_byte']:.4f}" for line in last]
    assert rows["bits/byte, one"] == [f"{last[0]['one']['bits_per_byte']:.4f}", "–", "–"]
    assert main(["report", *map(str, three_runs)]) == 0
    assert capsys.readouterr().out.strip() == shown.strip()


def test_runs_of_one_name_are_told_apart_by_their_folders(three_runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    namesake = three_runs[1].rename(tmp_path / "other" / "late")
    shown = side_by_side([three_runs[0], three_runs[2], namesake]).splitlines()[0]
    assert shown.split() == ["run", "run", str(three_runs[2]), str(namesake)]


def test_what_a_log_says_does_not_steer_the_terminal(three_runs: list[Path]) -> None:
    with (three_runs[0] / "metrics.jsonl").open("a") as log:
        trouble = {"kind": "event", "step": 20, "event": "trouble", "trouble": "\x1b[31mred\nloss", "since": 3}
        log.write(json.dumps(trouble) + "\n")
    shown = side_by_side(three_runs)
    assert "\x1b" not in shown
    assert "[31mred↵loss at 3" in shown
    assert "\x1b" not in describe_run(three_runs[0])


def test_what_is_no_run_is_named(three_runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match="nowhere: not a run with a checkpoint"):
        side_by_side([three_runs[0], tmp_path / "nowhere"])
    (three_runs[1] / "metrics.jsonl").unlink()
    assert main(["report", *map(str, three_runs)]) == 1
    assert "early: its metrics.jsonl holds no evaluation" in capsys.readouterr().err


def test_a_log_that_was_changed_is_one_sentence(three_runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    log = three_runs[0] / "metrics.jsonl"
    whole = log.read_text()
    for score in ('"bits_per_byte": null', '"bits_per_byte": "low"', '"other": 1.0'):
        log.write_text(re.sub(r'"bits_per_byte": [\d.]+', score, whole))
        for command in (["report", str(three_runs[0])], ["report", *map(str, three_runs)]):
            assert main(command) == 1
            assert re.fullmatch(
                r"error: .*run: its evaluation at step \d+ has no bits_per_byte of .*\n", capsys.readouterr().err
            )
