"""A run from its first step to its last: what it learns, saves, logs and shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import losses, run

from shardscope import load
from shardscope.checkpoint import list_checkpoints
from shardscope.train.metrics import read_metrics


def test_training_learns_and_leaves_a_whole_run(recipe_file: Path, tmp_path: Path) -> None:
    outcome = run(recipe_file)
    assert (outcome.status, outcome.step) == ("finished", 20)
    first, *_, last = read_metrics(tmp_path / "run", "eval")
    assert last["all"]["bits_per_byte"] < 0.8 * first["all"]["bits_per_byte"]
    assert {line["step"] for line in read_metrics(tmp_path / "run", "sentinel")} == {10, 20}
    assert [c.name for c in list_checkpoints(tmp_path / "run")] == ["step-00000010", "step-00000015", "step-00000020"]
    model = load(tmp_path / "run")
    assert model.tokenizer is not None
    assert not model.training


def test_micro_batches_add_up_to_the_batch(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file, run_dir=str(tmp_path / "whole"))
    run(recipe_file, run_dir=str(tmp_path / "parts"), train__micro_batch="1")
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert list(parts.values()) == pytest.approx(list(whole.values()), rel=1e-4)


def test_metrics_are_json_lines_with_the_promised_fields(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"event", "train", "eval", "sentinel"}
    train_line = next(line for line in lines if line["kind"] == "train")
    assert {"loss", "cross_entropy", "z", "grad_norm", "lr", "phase", "tokens_per_second"} <= train_line.keys()
