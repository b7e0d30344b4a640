from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import shardscope
from shardscope.checkpoint import list_checkpoints, read_tensors
from shardscope.cli import main
from shardscope.config import load_recipe
from shardscope.files import read_json
from shardscope.tokenizer import Tokenizer
from shardscope.train import Outcome, train
from shardscope.train.about import describe_run
from shardscope.train.lineage import Fork, code_version, family_tree, forks_before, weights_digest


def run(path: Path, **overrides: str) -> Outcome:
    return train(load_recipe(path, {key.replace("__", "."): value for key, value in overrides.items()}), progress=False)


def facts(checkpoint: Path) -> dict[str, Any]:
    return read_json(checkpoint / "state.json")


def test_a_checkpoint_records_its_parent_its_hashes_its_place_in_the_data_its_rate_and_its_code(
    recipe_file: Path, tmp_path: Path
) -> None:
    run(recipe_file)
    first, second, third = list_checkpoints(tmp_path / "run")
    for parent, checkpoint in ((first, second), (second, third)):
        found = facts(checkpoint)
        weights = read_tensors(parent / "model.safetensors")
        assert found["parent"] == {
            "checkpoint": str(parent), "step": int(parent.name[5:]), "weights": weights_digest(weights),
        }  # fmt: skip
        assert found["weights"] == weights_digest(read_tensors(checkpoint / "model.safetensors"))
        assert found["tokenizer"] == Tokenizer.load(checkpoint / "tokenizer.json").fingerprint
        assert sum(found["data_position"].values()) == 4 * found["step"]  # sequences
        assert found["learning_rate"] == 1e-2
        assert found["ancestors"] == []
        assert f"shardscope {shardscope.__version__}, torch {torch.__version__}" in found["code"]


def test_the_parent_is_the_same_whether_a_run_was_stopped_or_not(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file)
    before = facts(list_checkpoints(tmp_path / "run")[-1])["parent"]
    shutil.rmtree(list_checkpoints(tmp_path / "run")[-1])
    run(recipe_file)
    assert facts(list_checkpoints(tmp_path / "run")[-1])["parent"] == before


def test_a_fork_records_the_runs_before_it(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file)
    outcome = run(tmp_path / "anneal.toml", start_from=f"{tmp_path / 'run'}@15")
    source = tmp_path / "run" / "checkpoints" / "step-00000015"
    expected = {
        "checkpoint": str(source), "step": 15, "weights": weights_digest(read_tensors(source / "model.safetensors")),
    }  # fmt: skip
    assert facts(outcome.checkpoint)["ancestors"] == [{"run": "tiny", **expected}]
    assert facts(outcome.checkpoint)["parent"] == expected


def test_equal_weights_have_equal_digests_and_others_have_others() -> None:
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    assert weights_digest(weights) == weights_digest(dict(reversed(weights.items())))
    assert weights_digest(weights) == weights_digest({**weights, "a": weights["a"].T.contiguous().T})
    assert weights_digest({"steps": torch.tensor(3.0)}) != weights_digest({"steps": torch.tensor(4.0)})
    others = (
        {**weights, "a": weights["a"].view(3, 2)},
        {"c": weights["a"], "b": weights["b"]},
        {**weights, "b": torch.ones(2, dtype=torch.float16)},
        {**weights, "a": weights["a"] + 1e-6},
    )
    assert len({weights_digest(each) for each in (weights, *others)}) == 5


def test_a_checkout_says_its_commit() -> None:
    root = Path(shardscope.__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a checkout")
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    found = re.search(r", commit (\w+)(-dirty)?$", code_version())
    assert found is not None
    assert head.startswith(found[1])


@pytest.fixture
def family(recipe_file: Path, tmp_path: Path) -> Path:
    """A run, two forks of it, one fork of a fork, and a stranger, all in one folder."""
    runs = tmp_path / "runs"
    run(recipe_file, run_dir=str(runs / "pretrain"), train__keep="0")
    run(tmp_path / "anneal.toml", run_dir=str(runs / "early"), start_from=f"{runs / 'pretrain'}@10")
    run(tmp_path / "anneal.toml", run_dir=str(runs / "late"), start_from=str(runs / "pretrain"))
    last = list_checkpoints(runs / "early")[-1]
    run(tmp_path / "anneal.toml", run_dir=str(runs / "again"), start_from=str(last), schedule__steps="2")
    run(recipe_file, run_dir=str(runs / "stranger"), schedule__steps="2")
    return runs


def test_info_shows_the_family_of_a_run(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = """
pretrain: step 20 of 20, finished
  early, from step 10: step 8 of 8, finished  <- this run
    again, from step 8: step 2 of 2, finished
  late, from step 20: step 8 of 8, finished
"""
    assert family_tree(family / "early") == tree.strip()
    for other in ("pretrain", "again", "late"):
        shown = family_tree(family / other)
        assert shown.replace("  <- this run", "") == tree.replace("  <- this run", "").strip()
        assert re.search(rf"^ *{other}[:,].*  <- this run$", shown, re.MULTILINE)
    assert family_tree(family / "stranger") == ""
    for path in (family / "early", list_checkpoints(family / "early")[-1]):
        assert main(["info", str(path)]) == 0
        shown = capsys.readouterr().out
        assert re.search(r"^learning rate +0.00", shown, re.MULTILINE)
        assert re.search(r"^data position +32 of two \(sequences\)$", shown, re.MULTILINE)
        assert re.search(r"^parent +.*/step-00000010, weights [0-9a-f]{12}$", shown, re.MULTILINE)
        assert all(line in shown for line in tree.strip().splitlines())
    assert main(["info", str(family / "stranger")]) == 0
    assert "<- this run" not in capsys.readouterr().out


def test_an_ancestor_that_was_deleted_keeps_its_place(family: Path) -> None:
    shutil.rmtree(family / "pretrain")
    shown = family_tree(family / "late").splitlines()
    assert shown[0] == "pretrain: no longer here"
    assert shown[1:] == [
        "  early, from step 10: step 8 of 8, finished",
        "    again, from step 8: step 2 of 2, finished",
        "  late, from step 20: step 8 of 8, finished  <- this run",
    ]


def test_a_family_with_a_damaged_member_shows_the_others(family: Path) -> None:
    for checkpoint in list_checkpoints(family / "again"):
        (checkpoint / "state.json").write_text('{"ancestors": [{"checkpoint": 3}, 7], "step": "x"}')
    (family / "notes.txt").write_text("a file among the runs")
    assert family_tree(family / "late").splitlines()[0] == "pretrain: step 20 of 20, finished"
    assert "late, from step 20" in family_tree(family / "late")


@pytest.mark.parametrize(("choice", "said"), [("drop", "left out"), ("count", "trained on")])
def test_info_says_what_of_the_training_text_was_held_out_too(
    recipe_file: Path, tmp_path: Path, choice: str, said: str
) -> None:
    repeated = (tmp_path / "two.jsonl").read_text().splitlines()[:3]
    (tmp_path / "held.jsonl").write_text("\n".join(repeated).upper().replace('"TEXT"', '"text"'))
    benchmark = f'[{{name = "held", path = "{tmp_path / "held.jsonl"}", text = "text"}}]'
    run(recipe_file, data__overlap=choice, data__benchmarks=benchmark, schedule__steps="2")
    shown = describe_run(tmp_path / "run")
    assert re.search(
        rf"^overlap +two: 3 of \d+ training .* \(3 all of it, .*; of .*held 3\); {said}$", shown, re.MULTILINE
    )
    # What a stranger wrote there is no reason to say nothing else.
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text(re.sub(r'"overlap": ?\{.*?\}\}', '"overlap":{"two":{"documents":"\\\\u001b"}}', log.read_text()))
    assert "overlap" not in describe_run(tmp_path / "run")


def test_a_family_that_was_moved_finds_itself_again(family: Path, tmp_path: Path) -> None:
    before = family_tree(family / "again")
    elsewhere = family.rename(tmp_path / "elsewhere")
    assert family_tree(elsewhere / "again") == before
    # Renamed, it is known by its weights; with the checkpoint of the fork deleted, by its name.
    (elsewhere / "pretrain").rename(elsewhere / "base")
    assert family_tree(elsewhere / "again") == before.replace("pretrain:", "base:")
    (elsewhere / "base").rename(elsewhere / "pretrain")
    for checkpoint in list_checkpoints(elsewhere / "pretrain")[:-1]:
        shutil.rmtree(checkpoint)
    assert family_tree(elsewhere / "again") == before
    # What is merely called like it is not taken for it.
    shutil.rmtree(elsewhere / "early")
    shutil.copytree(elsewhere / "stranger", elsewhere / "early")
    assert "  early, from step 10: no longer here" in family_tree(elsewhere / "again").splitlines()


def test_a_fork_goes_on_when_its_parent_is_gone(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file)
    paused = run(tmp_path / "anneal.toml", schedule__steps="6", train__max_minutes="1e-9")
    assert paused.status == "paused early"
    before = facts(paused.checkpoint)["ancestors"]
    (tmp_path / "run").rename(tmp_path / "moved")
    whole = run(tmp_path / "anneal.toml", schedule__steps="6")
    assert whole.status == "finished"
    assert facts(whole.checkpoint)["ancestors"] == before


def test_the_forks_before_a_run_are_known_before_it_has_saved_anything(family: Path) -> None:
    runs = {name: family / name for name in ("pretrain", "early", "again")}
    forks = [Fork(runs["pretrain"], 10), Fork(runs["early"], 8)]
    assert forks_before(runs["again"]) == forks
    assert [str(fork) for fork in forks] == ["pretrain@10", "early@8"]
    assert forks_before(runs["pretrain"], str(list_checkpoints(runs["pretrain"])[0])) == []  # it was resumed
    started_from = str(list_checkpoints(runs["early"])[-1])
    shutil.rmtree(runs["again"] / "checkpoints")
    assert forks_before(runs["again"], started_from) == forks
    assert forks_before(runs["again"]) == []
    assert forks_before(runs["again"], "exported") == [Fork(Path("exported"), None)]
    assert str(Fork(Path("exported"), None)) == "exported"
