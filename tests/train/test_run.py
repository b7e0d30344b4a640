from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deleted_meanwhile import at_every_question

from shardscope.checkpoint import STATE, list_checkpoints, read_tensors
from shardscope.config import ConfigError, load_recipe
from shardscope.evals.compare import side_by_side
from shardscope.files import read_json, write_json
from shardscope.tokenizer import Tokenizer
from shardscope.train import Outcome, loop, setup, train
from shardscope.train.about import describe_run
from shardscope.train.distributed import World
from shardscope.train.metrics import read_metrics
from shardscope.train.run import find_stable, newest_checkpoint, prune, run_status


def run(path: Path, **overrides: str) -> Outcome:
    return train(load_recipe(path, {key.replace("__", "."): value for key, value in overrides.items()}), progress=False)


def losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(folder, "train")}


def names(folder: Path) -> list[str]:
    return [checkpoint.name for checkpoint in list_checkpoints(folder)]


def forget_all_after(step: int, folder: Path) -> None:
    for checkpoint in list_checkpoints(folder):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


# ------------------------------------------------------------------------------------ what is lacking


@pytest.mark.parametrize("lost", [["optimizer.safetensors"], ["state.json"], ["optimizer.safetensors", "state.json"]])
def test_a_run_goes_on_beside_old_checkpoints_of_which_only_weights_are_left(
    recipe_file: Path, tmp_path: Path, lost: list[str]
) -> None:
    run(recipe_file)
    forget_all_after(15, tmp_path / "run")
    for name in lost:
        (tmp_path / "run" / "checkpoints" / "step-00000010" / name).unlink()
    assert run(recipe_file).status == "finished"
    assert names(tmp_path / "run") == ["step-00000010", "step-00000015", "step-00000020"]


def test_a_state_that_cannot_be_read_in_an_old_checkpoint_does_not_stop_saving(
    recipe_file: Path, tmp_path: Path
) -> None:
    run(recipe_file)
    (tmp_path / "run" / "checkpoints" / "step-00000010" / STATE).write_text("{")
    prune(tmp_path / "run", 2)
    assert names(tmp_path / "run") == ["step-00000015", "step-00000020"]


def test_where_the_newest_checkpoint_has_only_weights_the_one_before_it_is_gone_on_from(
    recipe_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = losses(tmp_path / "run") if run(recipe_file) else {}
    (tmp_path / "run" / "checkpoints" / "step-00000020" / STATE).unlink()
    assert run(recipe_file).status == "finished"
    assert "step-00000020: training cannot go on from it, its state is missing; going on from" in caplog.text
    assert losses(tmp_path / "run") == whole


@pytest.mark.parametrize("lost", ["state.json", "optimizer.safetensors", "model.safetensors", "config.json"])
def test_a_run_never_begins_anew_over_checkpoints_it_cannot_go_on_from(
    recipe_file: Path, tmp_path: Path, lost: str
) -> None:
    run(recipe_file)
    log = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for checkpoint in list_checkpoints(tmp_path / "run"):
        (checkpoint / lost).unlink()
    with pytest.raises(ConfigError, match=rf"step-00000020: training cannot go on from it, {lost} is missing; put it"):
        run(recipe_file)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == log


def test_an_anneal_of_weights_alone_begins_without_momentum_and_says_so(
    recipe_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(recipe_file)
    for checkpoint in list_checkpoints(tmp_path / "run"):
        (checkpoint / "optimizer.safetensors").unlink()
    assert run(tmp_path / "anneal.toml").status == "finished"
    assert "holds weights alone; the optimizer begins without momentum" in caplog.text


def test_a_checkpoint_more_than_asked_for_goes_at_the_next_start(recipe_file: Path, tmp_path: Path) -> None:
    """As a kill between two deletions leaves it."""
    run(recipe_file, train__keep="0")
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    run(recipe_file, train__keep="2")
    assert names(tmp_path / "run") == ["step-00000015", "step-00000020"]


# -------------------------------------------------------------------------- what binds a run, and what does not


def test_a_run_that_never_saved_anything_does_not_bind(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise ConfigError("planted: the vocabulary is too small")

    monkeypatch.setattr(setup, "prepare", fail)
    with pytest.raises(ConfigError, match="planted"):
        run(recipe_file)
    monkeypatch.undo()
    assert Tokenizer.load(tmp_path / "run" / "tokenizer.json").vocab_size == 300
    outcome = run(recipe_file, model__vocab_size="320", seed="7")
    assert outcome.status == "finished"
    assert Tokenizer.load(outcome.checkpoint / "tokenizer.json").vocab_size == 320


@pytest.mark.parametrize("text", ["", "{", "{}"])
def test_a_tokenizer_that_was_cut_off_by_a_kill_is_made_again(recipe_file: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "recipe.json", load_recipe(recipe_file).to_dict())
    (tmp_path / "run" / "tokenizer.json").write_text(text)
    assert run(recipe_file, schedule__steps="2").status == "finished"


def test_a_finished_stable_phase_can_be_extended_and_ends_as_if_it_had_been_so_long(
    recipe_file: Path, tmp_path: Path
) -> None:
    run(recipe_file, schedule__warmup="0")
    extended = run(recipe_file, schedule__warmup="0", schedule__steps="30")
    whole = run(recipe_file, schedule__warmup="0", schedule__steps="30", run_dir=str(tmp_path / "whole"))
    assert (extended.status, extended.step) == ("finished", 30)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    ours, theirs = (read_tensors(o.checkpoint / "model.safetensors") for o in (extended, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert read_json(tmp_path / "run" / "recipe.json")["schedule"]["steps"] == 30
    assert run_status(tmp_path / "run")["steps"] == 30


@pytest.mark.parametrize(
    ("flags", "steps", "message"),
    [
        ({"schedule__decay": "0.5"}, "40", "step 20 is in its decay"),
        ({"schedule__kind": "cosine"}, "40", "step 20 is in its decay"),
        ({}, "10", "it is at step 20 already"),
        ({}, "1000", "with these steps, step 20 is in the warmup"),
    ],
)
def test_steps_are_added_at_the_peak_of_the_rate_alone(
    recipe_file: Path, flags: dict[str, str], steps: str, message: str
) -> None:
    run(recipe_file, **flags)
    with pytest.raises(ConfigError, match=rf"schedule.steps=20, this recipe says {steps}; .*{message}; give --run_dir"):
        run(recipe_file, **flags, schedule__steps=steps)
    with pytest.raises(ConfigError, match=r"holds a run with optimizer.lr=0.01, this recipe says 0.1"):
        run(recipe_file, **flags, schedule__steps=steps, optimizer__lr="0.1")


# ----------------------------------------------------------------------------------------------- forks


def test_a_fork_starts_from_any_kept_step_of_the_stable_phase(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file, schedule__decay="0.3", train__keep="0")
    source = tmp_path / "run"
    assert find_stable(str(source)).name == "step-00000014"
    for spelling in ("10", "00000010", "1_0"):
        assert find_stable(f"{source}@{spelling}").name == "step-00000010"
    run(tmp_path / "anneal.toml", start_from=f"{source}@10")
    assert read_metrics(tmp_path / "anneal", "event")[0]["started_from"].endswith("step-00000010")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("15", "the checkpoint of step 15 is in its decay; its stable phase has .*@5, .*@10, .*@14"),
        ("7", "the checkpoint of step 7 is not there; its stable phase has .*@5, .*@10, .*@14"),
        ("last", "'last' is not a step; write RUN@STEP, as in .*@1000"),
        ("", "'' is not a step"),
    ],
)
def test_a_fork_of_a_step_that_cannot_be_forked_names_those_that_can(
    recipe_file: Path, tmp_path: Path, step: str, message: str
) -> None:
    run(recipe_file, schedule__decay="0.3", train__keep="0")
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "anneal.toml", start_from=f"{tmp_path / 'run'}@{step}")


def test_a_folder_with_an_at_in_its_name_is_a_folder(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file, run_dir=str(tmp_path / "me@5"))
    assert find_stable(str(tmp_path / "me@5")).name == "step-00000020"
    assert find_stable(f"{tmp_path / 'me@5'}@15").name == "step-00000015"


@pytest.mark.parametrize("moment", ["before it is read", "between two of its files", "after it was read"])
def test_a_fork_of_a_run_that_deletes_its_checkpoint_meanwhile_takes_the_newest(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    run(recipe_file, train__keep="0")
    parent = tmp_path / "run"
    later = tmp_path / "step-00000020"
    shutil.move(parent / "checkpoints" / "step-00000020", later)
    original = setup.load

    def load_while_the_parent_goes_on(folder: Path, **settings: Any) -> Any:
        """The parent saves another checkpoint, and deletes this one."""
        if not later.exists():
            return original(folder, **settings)
        model = original(folder, **settings)
        shutil.move(later, parent / "checkpoints" / "step-00000020")
        shutil.rmtree(folder)
        if moment == "between two of its files":
            raise FileNotFoundError(2, "No such file or directory", str(folder / "model.safetensors"))
        return model if moment == "after it was read" else original(folder, **settings)

    monkeypatch.setattr(setup, "load", load_while_the_parent_goes_on)
    run(tmp_path / "anneal.toml", schedule__steps="1")
    assert read_metrics(tmp_path / "anneal", "event")[0]["started_from"].endswith("step-00000020")


def test_whenever_a_run_deletes_its_checkpoint_a_fork_finds_the_newest(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file, train__keep="2")
    older, newer = list_checkpoints(tmp_path / "run")
    newer = shutil.move(newer, tmp_path / newer.name)
    found = list(at_every_question(older, newer, lambda: find_stable(str(tmp_path / "run"))))
    assert len(found) > 5
    assert {path.name for path in found} == {newer.name}


@pytest.mark.parametrize(
    "ask",
    [lambda run: str(run_status(run)["step"]), describe_run, lambda run: side_by_side([run])],
    ids=["its status", "its description", "runs side by side"],
)
def test_whenever_a_run_deletes_its_checkpoint_what_is_said_of_it_is_true_before_or_after(
    recipe_file: Path, tmp_path: Path, ask: Callable[[Path], str]
) -> None:
    run(recipe_file, train__keep="2")
    folder = tmp_path / "run"
    older, newer = list_checkpoints(folder)
    after = ask(folder)
    newer = shutil.move(newer, tmp_path / newer.name)
    before = ask(folder)
    assert before != after
    found = list(at_every_question(older, newer, lambda: ask(folder)))
    assert len(found) > 5
    assert found[0] == after
    assert set(found) <= {before, after}


# ----------------------------------------------------------------------------------------- paths and batches


@pytest.mark.parametrize("name", ["[v2]", "a b", "ü", "*", "x@y", "2024", r"back\slash", "#1"])
def test_a_run_in_a_folder_of_any_name_is_resumed_and_forked(recipe_file: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    assert run(recipe_file, run_dir=f"{folder}", schedule__warmup="0", schedule__steps="6").step == 6
    forget_all_after(5, folder)
    assert run(recipe_file, run_dir=f"{folder}", schedule__warmup="0", schedule__steps="6").step == 6
    assert len(losses(folder)) == len(read_metrics(folder, "train")) == 6
    assert find_stable(str(folder)) == newest_checkpoint(folder)


def test_a_batch_that_the_processes_cannot_share_is_refused_before_anything_is_written(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(rank=0, size=3, local_rank=0, device=torch.device("cpu"))
    monkeypatch.setattr(loop.World, "join", lambda device: world)
    with pytest.raises(
        ConfigError, match=r"train.batch_size=4 cannot be divided among 3 processes; use a multiple of 3"
    ):
        run(recipe_file)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"model__d_model": "65536", "model__n_layers": "1024"},
            r"weights and gradients of [\d,]+ parameters take [\d,.]+ GiB, this machine's cpu has .*; lower model.n_l",
        ),
        ({"train__batch_size": str(2**50)}, r"the tokens of a batch take .* GiB, .*; lower train.batch_size"),
    ],
)
def test_what_no_memory_could_hold_is_refused_before_anything_is_tokenized(
    recipe_file: Path, tmp_path: Path, overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(recipe_file, **overrides)
    assert not (tmp_path / "cache").exists()
    assert run(recipe_file, schedule__steps="1").status == "finished"  # it bound nothing


def test_a_run_of_more_steps_than_will_ever_be_taken_begins(recipe_file: Path) -> None:
    outcome = run(recipe_file, schedule__steps=str(2**53), schedule__warmup="0", train__max_minutes="0.0001")
    assert outcome.status == "paused early"
