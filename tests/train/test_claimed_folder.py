"""A folder belongs to one run, with one recipe and one text, and to one process at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import run

from shardscope.config import ConfigError, load_recipe
from shardscope.train.run import claimed_folder


def test_a_folder_keeps_its_recipe(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file, schedule__steps="2")
    with pytest.raises(ConfigError, match=r"holds a run with optimizer.lr=0.01, this recipe says 0.02; give --run_dir"):
        run(recipe_file, schedule__steps="2", optimizer__lr="0.02")
    assert run(recipe_file, schedule__steps="2", train__log_every="2").reason == "every step was already done"


def test_a_run_does_not_go_on_with_other_text(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file, train__max_minutes="0.0001")
    corpus = tmp_path / "one.jsonl"
    corpus.write_text(corpus.read_text().replace("house", "horse"))
    with pytest.raises(ConfigError, match=r"data.sources.one: holds \d+ tokens, .* the run in .* began with"):
        run(recipe_file)


def test_two_processes_do_not_train_in_one_folder(recipe_file: Path) -> None:
    with (
        claimed_folder(load_recipe(recipe_file)),
        pytest.raises(ConfigError, match="another process is training there"),
    ):
        run(recipe_file)
    assert run(recipe_file, schedule__steps="20").status == "finished"


def test_a_run_killed_before_its_recipe_was_written_begins_again(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in (".lock", ".recipe.json.0123abcd.partial"):
        (tmp_path / "run" / name).touch()
    assert run(recipe_file, schedule__steps="2").status == "finished"


def test_a_folder_that_cannot_be_made_is_one_sentence(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/run: cannot be written \(.*\); give --run_dir another folder"):
        run(recipe_file, run_dir=str(tmp_path / "file" / "run"))


def test_a_foreign_folder_is_left_alone(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"is not empty and not a run \(recipe.json is missing\)"):
        run(recipe_file)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]
