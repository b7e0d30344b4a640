from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from shardscope.config import Source, recipe_fields
from shardscope.recipes.command import run_recipe
from shardscope.train.metrics import read_metrics


def test_a_recipe_trains_and_says_where_its_checkpoint_is(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_recipe("pretrain", "Pretrain.", [str(recipe_file)]) == 0
    printed = capsys.readouterr().out
    assert "finished at step 20" in printed
    assert f"checkpoint: {tmp_path}/run/checkpoints/step-00000020" in printed
    assert "held-out all: loss" in printed
    assert run_recipe("anneal", "Anneal.", [str(recipe_file.with_name("anneal.toml"))]) == 0
    assert "finished at step 8" in capsys.readouterr().out


def test_a_flag_overrides_the_file(recipe_file: Path, tmp_path: Path) -> None:
    flags = ["--schedule.steps", "4", "--run_dir", str(tmp_path / "short"), "--optimizer.name", "adamw"]
    assert run_recipe("pretrain", "", [str(recipe_file), *flags]) == 0
    assert [line["step"] for line in read_metrics(tmp_path / "short", "train")] == [1, 2, 3, 4]


def test_help_explains_the_fields_of_a_source(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_recipe("pretrain", "Train.", ["--help"])
    text = capsys.readouterr().out
    for item in dataclasses.fields(Source):
        assert f"  {item.name:<14}{item.metadata['help']}" in text


@pytest.mark.parametrize("phase", ["pretrain", "anneal"])
def test_help_explains_every_field_and_shows_a_command_to_paste(phase: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", f"shardscope.recipes.{phase}", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for key, text, _ in recipe_fields():
        assert f"--{key} " in shown
        assert text.split()[0] in shown
    assert f"python -m shardscope.recipes.{phase} recipes/shard-pico-{phase}.toml" in shown


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--optimizer.lr", "-1"], "optimizer.lr=-1.0 must be above 0"),
        (["--schedule.steps", "many"], "schedule.steps"),
        (["--model.preset", "shard-55m"], "did you mean 'shard-54m'?"),
        (["--train.device", "tpu9"], "tpu9"),
        (["--phase", "anneal"], "start_from"),
        (["--data.seq_len", "64"], "data.seq_len=64 is longer than model.n_ctx=32"),
    ],
)
def test_a_mistake_costs_one_sentence(
    flags: list[str], sentence: str, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_recipe("pretrain", "", [str(recipe_file), *flags]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1


def test_the_wrong_phase_names_the_right_command(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_recipe("anneal", "", [str(recipe_file)]) == 1
    assert "run it with python -m shardscope.recipes.pretrain" in capsys.readouterr().err
