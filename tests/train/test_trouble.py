"""What a run does about trouble: the loop, a tiny model and rates at which it cannot learn."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from shardscope.checkpoint import list_checkpoints
from shardscope.config import load_recipe
from shardscope.files import read_json
from shardscope.recipes.command import run_recipe
from shardscope.train import Outcome, loop, step_monitor, train
from shardscope.train.about import describe_run
from shardscope.train.health import Health, Trouble
from shardscope.train.metrics import read_metrics
from shardscope.train.run import go_back

# At this rate every step throws the model somewhere else; it never gets below the entropy of single words.
ABSURD = {"optimizer.lr": "3", "schedule.steps": "100", "train.save_every": "40", "train.eval_every": "1000"}


def run(path: Path, progress: bool = False, **overrides: str) -> Outcome:
    return train(
        load_recipe(path, {key.replace("__", "."): value for key, value in overrides.items()}), progress=progress
    )


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder, "event") if line["event"] == name]


def test_a_run_that_learns_reports_nothing(recipe_file: Path, tmp_path: Path) -> None:
    outcome = run(recipe_file, schedule__steps="120")
    assert outcome.troubles == ()
    assert events(tmp_path / "run", "trouble") == []
    assert "trouble" not in describe_run(tmp_path / "run")


def test_a_run_at_an_absurd_rate_says_that_it_does_not_learn(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    flags = [word for key, value in ABSURD.items() for word in (f"--{key}", value)]
    assert run_recipe("pretrain", "", [str(recipe_file), *flags]) == 0
    printed = capsys.readouterr()
    assert "plateau since step" in printed.err.replace("\r", "\n").splitlines()[-1]  # the progress line
    assert "trouble: plateau since step" in printed.out
    assert "where the frequency of each token alone gives" in printed.out
    told = events(tmp_path / "run", "trouble")
    assert "plateau" in [line["trouble"] for line in told]
    assert all(line["since"] < line["step"] for line in told)
    assert "trouble        plateau since step" in describe_run(tmp_path / "run")


def test_trouble_pauses_a_run_that_asks_for_it_and_reporting_lets_it_go_on(recipe_file: Path, tmp_path: Path) -> None:
    absurd = {key.replace(".", "__"): value for key, value in ABSURD.items()}
    paused = run(recipe_file, **absurd, train__on_trouble="pause")
    assert paused.status == "paused early"
    assert " since step " in paused.reason
    assert paused.step < 90
    assert list_checkpoints(tmp_path / "run")[-1] == paused.checkpoint
    assert run(recipe_file, **absurd).status == "finished"


def test_an_anneal_at_a_rate_that_undoes_the_pretraining_says_so(recipe_file: Path, tmp_path: Path) -> None:
    """Its loss jumps in the first steps, when there is no usual one yet, and stays below a plateau."""
    run(recipe_file, schedule__steps="150", train__save_every="150", train__eval_every="150")
    gentle = run(tmp_path / "anneal.toml", schedule__steps="20")
    assert gentle.troubles == ()
    hot = {"run_dir": str(tmp_path / "hot"), "optimizer__lr": "1", "schedule__decay": "0.2"}
    outcome = run(tmp_path / "anneal.toml", **hot, schedule__steps="40", train__eval_every="20")
    assert "rising held-out loss" in [trouble.kind for trouble in outcome.troubles]
    assert "trouble        rising held-out loss since step 0: " in describe_run(tmp_path / "hot")


def test_a_run_that_paused_for_trouble_says_how_it_can_go_on(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [word for key, value in ABSURD.items() for word in (f"--{key}", value)]
    steps = []
    for choice in ("pause", "pause", "rewind"):
        assert run_recipe("pretrain", "", [str(recipe_file), *flags, "--train.on_trouble", choice]) == 0
        said = capsys.readouterr().out
        steps.append(int(re.search(r"paused early at step (\d+)", said)[1]))  # type: ignore[index]
        assert "--train.on_trouble report goes on as it is" in said
    assert steps[1] == steps[0] + 1
    assert "no checkpoint is from before that" in said
    assert run_recipe("pretrain", "", [str(recipe_file), *flags, "--train.on_trouble", "report"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("finished at step 100")
    assert "on_trouble" not in said


def plant(monkeypatch: pytest.MonkeyPatch, *at: int, kind: str = "loss spike") -> None:
    """Trouble that begins at these steps of the run, one after the other, each found two steps later."""
    left = list(at)

    def step(self: Health, step: int, values: Any) -> list[Trouble]:
        if not left or step != left[0] + 2:
            return []
        self.active[kind] = Trouble(kind, left.pop(0), "planted")
        return [self.active[kind]]

    monkeypatch.setattr(step_monitor.Health, "step", step)
    monkeypatch.setattr(step_monitor.Health, "mendable", lambda self, step: self.active.get(kind))


def test_a_run_goes_back_to_before_its_trouble_and_on_at_half_the_rate(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, 13)
    outcome = run(recipe_file, train__on_trouble="rewind")
    assert (outcome.status, outcome.step, outcome.troubles) == ("finished", 20, ())
    lines = read_metrics(tmp_path / "run", "train")
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert [line["lr"] for line in lines[2:]] == [1e-2] * 8 + [5e-3] * 10
    assert [line["resumed_at"] for line in events(tmp_path / "run", "start")] == [0, 10]
    assert "went back      loss spike since step 13: planted; the rate is times 0.5 since" in describe_run(
        tmp_path / "run"
    )
    # The rate stays low when the run is started again.
    assert read_json(outcome.checkpoint / "state.json")["learning_rate"] == 5e-3
    assert run(recipe_file, schedule__steps="30", schedule__warmup="0.1").step == 30
    assert read_metrics(tmp_path / "run", "train")[-1]["lr"] == 5e-3


def test_a_run_that_never_learned_goes_back_to_its_beginning(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, 3, kind="plateau")
    assert run(recipe_file, train__on_trouble="rewind").status == "finished"
    assert {line["lr"] for line in read_metrics(tmp_path / "run", "train")[2:]} == {5e-3}
    assert [line["resumed_at"] for line in events(tmp_path / "run", "start")] == [0]


def test_an_anneal_that_never_learned_begins_again_where_it_forks_and_keeps_what_it_has_where_it_cannot(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = run(recipe_file)
    choices = {"train__on_trouble": "rewind", "train__save_every": "4"}
    plant(monkeypatch, 0, 1, kind="plateau")
    outcome = run(tmp_path / "anneal.toml", **choices)
    assert outcome.status == "finished"
    (start,) = events(tmp_path / "anneal", "start")
    assert (start["resumed_at"], start["rate_scale"]) == (0, 0.25)
    assert start["started_from"] == str(parent.checkpoint)

    plant(monkeypatch, 0, kind="plateau")
    monkeypatch.setattr(loop, "go_back", lambda *what: (tmp_path / "run").rename(tmp_path / "moved") and go_back(*what))
    outcome = run(tmp_path / "anneal.toml", **choices, run_dir=str(tmp_path / "other"))
    assert (outcome.status, outcome.step) == ("paused early", 2)
    assert "planted; it would have to begin again, and cannot: " in outcome.reason
    assert "run: no such checkpoint or run" in outcome.reason
    assert list_checkpoints(tmp_path / "other") == [outcome.checkpoint]


def test_a_run_with_nothing_before_its_trouble_is_paused(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, 3)
    outcome = run(recipe_file, train__on_trouble="rewind")
    assert (outcome.status, outcome.step) == ("paused early", 5)
    assert outcome.reason == "loss spike since step 3: planted; no checkpoint is from before that"


def test_after_going_back_three_times_a_run_is_paused(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, 7, 8, 9, 7)
    outcome = run(recipe_file, train__on_trouble="rewind")
    assert (outcome.status, outcome.step) == ("paused early", 9)
    assert outcome.reason == "loss spike since step 7: planted; it went back 3 times already"
    assert read_metrics(tmp_path / "run", "train")[-1]["lr"] == 1e-2 / 8


def test_a_kill_while_going_back_leaves_a_run_that_finds_the_same_trouble(recipe_file: Path, tmp_path: Path) -> None:
    """Checkpoints are deleted before the lower rate is written."""
    whole = run(recipe_file)
    states = [
        (path.parent.name, json.loads(path.read_text())["learning_rate"])
        for path in (tmp_path / "run").rglob("state.json")
    ]
    assert go_back(load_recipe(recipe_file), Trouble("loss spike", 12, "planted"))
    assert [c.name for c in list_checkpoints(tmp_path / "run")] == ["step-00000010"]
    (tmp_path / "run" / "rewinds.json").unlink()  # as if the kill came between
    again = run(recipe_file)
    assert (again.status, again.step) == (whole.status, whole.step)
    assert sorted(states) == sorted(
        (path.parent.name, json.loads(path.read_text())["learning_rate"])
        for path in (tmp_path / "run").rglob("state.json")
    )


def test_health_goes_on_over_a_restart_as_if_there_had_been_none(recipe_file: Path, tmp_path: Path) -> None:
    absurd = {key.replace(".", "__"): value for key, value in ABSURD.items()}
    run(recipe_file, **absurd)
    told = [
        (line["event"], line["step"], line["trouble"])
        for line in read_metrics(tmp_path / "run", "event")
        if "trouble" in line
    ]
    assert told
    for checkpoint in list_checkpoints(tmp_path / "run")[1:]:
        shutil.rmtree(checkpoint)
    run(recipe_file, **absurd)
    again = [
        (line["event"], line["step"], line["trouble"])
        for line in read_metrics(tmp_path / "run", "event")
        if "trouble" in line
    ]
    assert again == told
