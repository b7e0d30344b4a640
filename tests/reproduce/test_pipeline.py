"""`shardscope reproduce`, from text to report, on a tiny model: what it measures, and how it goes on after an end."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_reproduction import SAMPLE, TASKS, command, make_recipes

from shardscope import load
from shardscope.checkpoint import list_checkpoints, read_facts
from shardscope.cli import main
from shardscope.evals.harness import ShardLM
from shardscope.evals.suite import evaluate
from shardscope.failures import sample_card
from shardscope.failures.held_out import held_out_ids
from shardscope.failures.text_model import FILE_NAME, TextModel, built_in
from shardscope.files import read_json, write_json
from shardscope.microscope import SCORES, head_scores, read
from shardscope.reproduce.pair import load_pair
from shardscope.reproduce.training import LeftBehind, train_to_end, train_to_pause
from shardscope.reproduce.training import command as training_command
from shardscope.train.metrics import read_metrics
from shardscope.train.run import run_status

# Of the metrics: what two runs of the same have different, and how far a signal came before a pause.
TIMES = {"seconds", "tokens_per_second", "joules", "machine", "made", "stages", "pause", "pauses", "starts", "code"}


@pytest.fixture
def metrics(reproduced: Path) -> dict[str, Any]:
    return read_json(reproduced / "metrics.json")


def last(reproduced: Path, phase: str) -> Path:
    return list_checkpoints(reproduced / phase)[-1]


def test_both_phases_are_trained_to_their_end_and_the_anneal_starts_from_the_last_checkpoint(
    reproduced: Path, metrics: dict[str, Any]
) -> None:
    for phase, steps in (("pretrain", 120), ("anneal", 8)):
        assert run_status(reproduced / phase)["status"] == "finished"
        assert metrics["runs"][phase]["steps"] == steps
        assert metrics["runs"][phase]["weights"] == read_facts(last(reproduced, phase))["weights"]
    ancestors = read_facts(last(reproduced, "anneal"))["ancestors"]
    assert [(one["step"], one["weights"]) for one in ancestors] == [(120, metrics["runs"]["pretrain"]["weights"])]


def test_every_pause_in_the_log_was_followed_by_a_start_where_it_was_saved(metrics: dict[str, Any]) -> None:
    run = metrics["runs"]["pretrain"]
    assert run["starts"] == [0, *(pause["step"] for pause in run["pauses"])]
    if metrics["pause"]["status"] == "paused early":  # a machine may be so busy that the signal comes after the end
        assert run["pauses"] == [{"step": metrics["pause"]["step"], "reason": "SIGTERM"}]
        assert metrics["pause"]["step"] >= metrics["pause"]["asked_at"] == 60


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_pauses_a_long_pretraining_under_torchrun_too(tmp_path: Path, processes: int) -> None:
    recipes = make_recipes(tmp_path)
    text = Path(recipes[0]).read_text()
    Path(recipes[0]).write_text(text.replace("steps = 120", "steps = 100_000_000"))
    run = load_pair(recipes, tmp_path / "out", "cpu").pretrain
    found = train_to_pause(run, 3, processes)
    assert (found["status"], found["reason"], found["asked_at"]) == ("paused early", "SIGTERM", 3)
    assert found["step"] >= 3
    assert train_to_pause(run, 3, processes) == found  # it is past that step, and left as it is


def test_several_processes_are_started_by_torchrun_and_pick_their_own_cards(tmp_path: Path) -> None:
    run = load_pair(make_recipes(tmp_path), tmp_path / "out", "auto").pretrain
    words = training_command(run, 8)
    assert words[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "8"]
    assert words[6:9] == ["-m", "shardscope.recipes.pretrain", str(run.file)]
    assert "--train.device=auto" in words
    assert training_command(run, 1)[1:] == words[6:]


def test_a_run_is_known_by_what_decides_its_losses_and_not_by_where_or_how_it_computes(tmp_path: Path) -> None:
    def what_counts(folder: Path, change: tuple[str, str] = ("", "")) -> dict[str, Any]:
        recipes = make_recipes(tmp_path)
        Path(recipes[0]).write_text(Path(recipes[0]).read_text().replace(*change))
        return load_pair(recipes, folder, "cpu").pretrain.what_counts()

    same = what_counts(tmp_path / "out")
    assert what_counts(tmp_path / "elsewhere") == same
    assert what_counts(tmp_path / "out", ("log_every = 1", "log_every = 7")) == same
    for change in (
        ("batch_size = 4", "batch_size = 8"), ("lr = 1e-2", "lr = 2e-2"), ("weight = 2", "weight = 3"),
        ("d_mlp = 48", "d_mlp = 64"), ("steps = 120", "steps = 121"),
    ):  # fmt: skip
        assert what_counts(tmp_path / "out", change) != same, change


def test_losses_by_source_and_position_add_up_to_the_trainers_own_evaluation(
    reproduced: Path, metrics: dict[str, Any]
) -> None:
    logged = read_metrics(reproduced / "anneal", "eval")[-1]
    parts = metrics["loss"]["after"]["two"]
    assert [part["first"] for part in parts] == [0, 32]
    assert sum(part["tokens"] for part in parts) == logged["two"]["tokens"]
    assert sum(part["bytes"] for part in parts) == logged["two"]["bytes"]
    nats = sum(part["nats"] for part in parts)
    assert nats / math.log(2) / logged["two"]["bytes"] == pytest.approx(logged["two"]["bits_per_byte"], rel=1e-5)
    assert metrics["loss"]["before"].keys() == {"one", "two"}  # also what the anneal no longer reads


def test_heads_are_scored_at_every_regular_checkpoint_of_both_phases(reproduced: Path, metrics: dict[str, Any]) -> None:
    assert list(metrics["heads"]) == [
        "pretrain-00000040", "pretrain-00000080", "pretrain-00000120", "anneal-00000008",
    ]  # fmt: skip
    model = load(last(reproduced, "anneal"), device="cpu")
    expected = head_scores(read(model, torch.tensor(held_out_ids(model)[:192])))
    found = metrics["heads"]["anneal-00000008"]["heads"]
    assert [(head["layer"], head["head"]) for head in found] == [(head.layer, head.head) for head in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for score in SCORES:
            assert ours[score] == pytest.approx(getattr(theirs, score), abs=1e-4)


def test_questions_are_those_of_lm_eval_with_their_standard_errors(reproduced: Path, metrics: dict[str, Any]) -> None:
    assert set(metrics["tasks"]) == {f"{task}/{when}" for task in TASKS.split(",") for when in ("before", "after")}
    lm = ShardLM(load(last(reproduced, "anneal"), device="cpu"), batch_size="auto")
    expected = evaluate(lm, ["shard_arc_easy"], SAMPLE, limit=3)
    found = metrics["tasks"]["shard_arc_easy/after"]["rows"]
    assert [row["metric"] for row in found] == [row["metric"] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], rel=1e-4)
        assert ours["questions"] == theirs["questions"] == 3
    lines = (SAMPLE / "ai2_arc/ARC-Easy/test.jsonl").read_text().splitlines()
    assert metrics["questions"]["shard_arc_easy"]["questions"] == len(lines)


def test_failures_are_counted_over_the_prompts_that_fit(metrics: dict[str, Any]) -> None:
    for found in metrics["suite"].values():
        assert found["prompts"] + found["left_out"] == 8
        assert found["prompts"] == len(found["by_prompt"])
        counted = {failure: count for failure, count in found["failures"].items() if count}
        assert counted == Counter(found["by_prompt"].values())


def test_the_six_prompts_are_sampled_as_the_cards(reproduced: Path, metrics: dict[str, Any]) -> None:
    model = load(last(reproduced, "anneal"), device="cpu")
    expected = [sample.generation.text for sample in sample_card(model, temperature=0.7, top_p=0.9, seed=0)]
    assert [sample["text"] for sample in metrics["samples"]["after"]["samples"]] == expected


def test_a_context_without_room_for_the_facts_says_so_instead_of_a_reach(metrics: dict[str, Any]) -> None:
    for found in metrics["reach"].values():
        assert found["why_not"] or found["reach"] >= 0


def test_the_curves_are_those_of_the_logs(reproduced: Path, metrics: dict[str, Any]) -> None:
    for phase in ("pretrain", "anneal"):
        run, lines = metrics["runs"][phase], read_metrics(reproduced / phase)
        logged = [line for line in lines if line["kind"] == "train"]
        assert run["loss"][-1]["step"] == logged[-1]["step"]
        assert min(line["cross_entropy"] for line in logged) <= run["loss"][-1]["loss"]
        assert [line["step"] for line in run["held_out"]] == [line["step"] for line in lines if line["kind"] == "eval"]


def test_metrics_name_no_folder_of_the_machine(reproduced: Path) -> None:
    assert str(reproduced.parent) not in (reproduced / "metrics.json").read_text()


def test_the_same_command_again_does_nothing_but_the_report(
    reproduced: Path, metrics: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = [str(reproduced.parent / f"tiny-{phase}.toml") for phase in ("pretrain", "anneal")]
    assert main(command(recipes, reproduced, TASKS, "--price-per-hour", "2")) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert len(lines) == len(metrics["stages"])
    assert all(re.fullmatch(r"\[\d+/\d+\] .*: done before, in .*", line) for line in lines)
    again = read_json(reproduced / "metrics.json")
    assert {**again, "machine": {}, "made": ""} == {**metrics, "machine": {}, "made": ""}


def test_other_questions_are_asked_anew_and_nothing_is_trained_again(
    reproduced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = [str(reproduced.parent / f"tiny-{phase}.toml") for phase in ("pretrain", "anneal")]
    shutil.copytree(reproduced, tmp_path / "out")
    stages = tmp_path / "out" / "stages"
    # The copy lies elsewhere, and is known all the same.
    assert main([*command(recipes, tmp_path / "out", "shard_arith_choice"), "--limit", "2"]) == 0
    done = [line for line in capsys.readouterr().out.splitlines() if ": done in" in line]
    assert [re.sub(r"\[.*?\] |: done.*", "", line) for line in done] == [
        "questions of shard_arith_choice",
        "shard_arith_choice before the anneal",
        "shard_arith_choice after the anneal",
    ]
    assert (stages / "tasks" / "shard_arith_choice" / "after.json").exists()


def test_labels_are_made_anew_where_the_runs_model_of_text_has_changed(
    reproduced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = [str(reproduced.parent / f"tiny-{phase}.toml") for phase in ("pretrain", "anneal")]
    shutil.copytree(reproduced, tmp_path / "out")
    shipped = built_in()
    knows_no_word = TextModel(shipped.log_likelihood, shipped.idf, np.zeros_like(shipped.words))
    knows_no_word.save(tmp_path / "out" / "pretrain" / FILE_NAME)
    assert main(command(recipes, tmp_path / "out")) == 0
    done = [line for line in capsys.readouterr().out.splitlines() if ": done in" in line]
    assert [re.sub(r"\[.*?\] |: done.*", "", line) for line in done] == [
        "failures in the prompt suite before the anneal",
        "the card's six prompts before the anneal",
    ]


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "shardscope.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def test_sigterm_in_a_training_is_handed_on_and_the_same_command_goes_on(tmp_path: Path) -> None:
    recipes = make_recipes(tmp_path)
    text = Path(recipes[0]).read_text()
    Path(recipes[0]).write_text(text.replace("steps = 120", "steps = 100_000_000"))
    process = start(command(recipes, tmp_path / "out", ""))
    while not read_metrics(tmp_path / "out" / "pretrain", "train"):
        assert process.poll() is None, process.communicate()
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM; the same command goes on where this one was" in said
    assert run_status(tmp_path / "out" / "pretrain")["status"] == "paused early"
    assert not (tmp_path / "out" / "stages" / "pause.json").exists()


def test_sigterm_while_something_is_measured_says_that_the_same_command_goes_on(
    reproduced: Path, tmp_path: Path
) -> None:
    recipes = [str(reproduced.parent / f"tiny-{phase}.toml") for phase in ("pretrain", "anneal")]
    shutil.copytree(reproduced, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "stages" / "heads")
    process = start(command(recipes, tmp_path / "out"))
    assert process.stdout is not None
    while "scores of the heads" not in process.stdout.readline():
        assert process.poll() is None, process.communicate()
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM; the same command goes on where this one was" in said
    assert "Traceback" not in said


def test_a_killed_reproduction_goes_on_after_the_training_that_it_left_behind(tmp_path: Path) -> None:
    recipes = make_recipes(tmp_path)
    text = Path(recipes[0]).read_text()
    Path(recipes[0]).write_text(text.replace("steps = 120", "steps = 400"))
    process = start(command(recipes, tmp_path / "out", ""))
    while not read_metrics(tmp_path / "out" / "pretrain", "train"):
        assert process.poll() is None, process.communicate()
    process.kill()  # its training goes on, as a process of its own
    process.wait()
    found = train_to_end(load_pair(recipes, tmp_path / "out", "cpu", checkpoints=4).pretrain)
    assert found["steps"] == 400
    steps = [line["step"] for line in read_metrics(tmp_path / "out" / "pretrain", "train")]
    assert steps == list(range(1, 401))  # each of them is in the log once


@pytest.mark.slow
def test_a_reproduction_killed_in_stages_of_every_kind_ends_with_the_same_figures(
    reproduced: Path, metrics: dict[str, Any], tmp_path: Path
) -> None:
    words = command(make_recipes(tmp_path), tmp_path / "out", TASKS, "--price-per-hour", "2")
    for stage in ("tokenizer and token shards", "anneal", "failures in the prompt suite"):
        process = start(words)
        assert process.stdout is not None
        while f"] {stage}" not in process.stdout.readline():
            assert process.poll() is None, process.communicate()
        process.kill()
        process.wait()
    assert main(words) == 0
    found = read_json(tmp_path / "out" / "metrics.json")
    assert dict(figures(found)) == {
        where: pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
        for where, value in figures(metrics)
    }


def figures(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every figure of a file of metrics but times, by its keys."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key not in TIMES:
                yield from figures(part, f"{where}/{key}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from figures(part, f"{where}/{number}")
    else:
        yield where, value


def test_a_training_that_was_left_behind_is_paused_where_it_would_have_been(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = make_recipes(tmp_path)
    text = Path(recipes[0]).read_text()
    Path(recipes[0]).write_text(text.replace("steps = 120", "steps = 100_000_000"))
    process = start(command(recipes, tmp_path / "out", ""))
    while not read_metrics(tmp_path / "out" / "pretrain", "train"):
        assert process.poll() is None, process.communicate()
    process.kill()
    process.wait()
    run = load_pair(recipes, tmp_path / "out", "cpu", checkpoints=4).pretrain
    logged = read_metrics(tmp_path / "out" / "pretrain", "train")[-1]["step"]
    found = train_to_pause(run, logged + 20)
    assert (found["status"], found["reason"]) == ("paused early", "SIGTERM")
    assert found["step"] >= logged + 20
    assert "the training that was left behind goes on there" in capsys.readouterr().out
    starts = [line for line in read_metrics(run.folder, "event") if line["event"] == "start"]
    assert len(starts) == 1


def test_a_process_that_only_has_the_number_of_a_training_is_left_alone(tmp_path: Path) -> None:
    run = load_pair(make_recipes(tmp_path), tmp_path / "out", "cpu", checkpoints=4).pretrain
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write_json(tmp_path / "out" / "pretrain.process.json", {"pid": stranger.pid, "began": 0.0})
    assert LeftBehind.find(run) is None
    for damaged in ({"pid": "x"}, [], {}):
        write_json(tmp_path / "out" / "pretrain.process.json", damaged)
        assert LeftBehind.find(run) is None
    assert stranger.poll() is None
    stranger.communicate(b"\n")


# ---------------------------------------------------------------------------------------------------------- mistakes


def test_an_anneal_of_another_pretraining_is_not_taken_for_this_ones(
    reproduced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = [str(reproduced.parent / f"tiny-{phase}.toml") for phase in ("pretrain", "anneal")]
    out = tmp_path / "out"
    shutil.copytree(reproduced, out)
    record = read_json(out / "stages" / "pretrain.json")
    record["result"]["weights"] = "of another seed"
    write_json(out / "stages" / "pretrain.json", record)
    assert main(command(recipes, out)) == 1
    assert "anneal: holds an anneal of another pretraining; delete it, or give --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--recipes", "ANNEAL", "PRETRAIN"], "--recipes takes a pretraining first, then its anneal"),
        (["--recipes", "PRETRAIN", "PRETRAIN"], "--recipes takes a pretraining first, then its anneal"),
        (["--recipes", "shard-pico-pretain", "ANNEAL"], "did you mean 'shard-pico-pretrain'?"),
        (["--device", "cuda:1", "--processes", "2"], "--processes 2 trains on a card each, --device cuda:1 names one"),
    ],
)
def test_a_mistake_costs_one_sentence_before_anything_is_trained(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = dict(zip(("PRETRAIN", "ANNEAL"), make_recipes(tmp_path), strict=True))
    words = [names.get(word, word) for word in words]
    assert main([*command(list(names.values()), tmp_path / "out"), *words]) == 1
    assert sentence in capsys.readouterr().err
    assert not list_checkpoints(tmp_path / "out" / "pretrain")


def test_a_context_too_short_for_the_cards_prompts_is_refused_before_anything_is_trained(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command([str(recipe_file), str(tmp_path / "anneal.toml")], tmp_path / "out", "")) == 1
    assert "model.n_ctx=32 has no room for the card's prompts" in capsys.readouterr().err
    assert not list_checkpoints(tmp_path / "out" / "pretrain")
