"""An anneal begins where the stable phase of another run had come to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from running import run

from shardscope.checkpoint import STATE, list_checkpoints
from shardscope.config import ConfigError, load_recipe
from shardscope.data import prepare
from shardscope.files import read_json
from shardscope.tokenizer import Tokenizer
from shardscope.train.metrics import read_metrics


def test_a_spent_time_budget_ends_the_stable_phase_so_that_an_anneal_can_start(
    recipe_file: Path, tmp_path: Path
) -> None:
    outcome = run(recipe_file, schedule__steps="100000", schedule__warmup="0", train__max_minutes="0.02")
    assert outcome.status == "paused early"
    assert "0.02 minutes" in outcome.reason
    annealed = run(tmp_path / "anneal.toml")
    assert annealed.status == "finished"
    start_event = read_metrics(tmp_path / "anneal", "event")[0]
    assert start_event["started_from"] == str(outcome.checkpoint)


def test_an_anneal_forks_the_newest_checkpoint_of_the_stable_phase(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file, schedule__decay="0.45")
    assert read_json(list_checkpoints(tmp_path / "run")[-1] / STATE)["phase"] == "decay"
    run(tmp_path / "anneal.toml")
    assert read_metrics(tmp_path / "anneal", "event")[0]["started_from"].endswith("step-00000011")
    before, *_, after = read_metrics(tmp_path / "anneal", "eval")
    assert after["two"]["loss"] < before["two"]["loss"]
    rates = [line["lr"] for line in read_metrics(tmp_path / "anneal", "train")]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1e-2


def test_an_anneal_of_a_run_without_a_stable_phase_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file, schedule__kind="'cosine'")
    with pytest.raises(ConfigError, match="no checkpoint of the stable phase, its newest is at step 20 in decay"):
        run(tmp_path / "anneal.toml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"optimizer__name": "adamw"},
            "the optimizer state lacks .*; set optimizer.name to the one it was trained with",
        ),
        ({"data__seq_len": "64"}, "data.seq_len=64 is longer than the context of .*, which is 32"),
    ],
)
def test_an_anneal_that_does_not_fit_its_checkpoint_is_refused(
    recipe_file: Path, tmp_path: Path, overrides: dict[str, str], message: str
) -> None:
    run(recipe_file, schedule__steps="2", schedule__warmup="0", schedule__decay="0")
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "anneal.toml", **overrides)


def test_an_anneal_reads_its_windows_in_another_order(recipe_file: Path, tmp_path: Path) -> None:
    data, tokenizer = load_recipe(tmp_path / "anneal.toml").data, Tokenizer.train(["the cat"] * 9, 257)
    pretrain, anneal = (
        prepare(data, tokenizer, batch_size=8, seed=0, eval_tokens=100, phase=phase, progress=False).mixture.batch(0)
        for phase in ("pretrain", "anneal")
    )
    assert not torch.equal(pretrain.tokens, anneal.tokens)
