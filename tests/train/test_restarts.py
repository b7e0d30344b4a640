"""A run that was stopped or killed, and started again, is the run that never was."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from running import forget_all_after, losses, run, start, wait_for_step

from shardscope.checkpoint import list_checkpoints
from shardscope.config import load_recipe
from shardscope.tensors import read_tensors
from shardscope.train import loop, train
from shardscope.train.metrics import read_metrics
from shardscope.train.run import run_status


def test_resuming_equals_never_stopping_bit_for_bit(recipe_file: Path, tmp_path: Path) -> None:
    whole = run(recipe_file, run_dir=str(tmp_path / "whole"))
    run_half = load_recipe(recipe_file, {"train.max_minutes": "1"})
    stopper = loop.Stop
    try:
        loop.Stop = lambda *_: StopAt(7)  # type: ignore[assignment,misc,return-value]
        paused = train(run_half, progress=False)
    finally:
        loop.Stop = stopper  # type: ignore[misc]
    assert (paused.status, paused.step) == ("paused early", 7)
    resumed = run(recipe_file)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = read_tensors(resumed.checkpoint / name), read_tensors(whole.checkpoint / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


class StopAt(loop.Stop):
    """Asks the run to stop once it was asked about it `steps` times before a step and once within it."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.asked, self.steps = 0, steps

    @property
    def reason(self) -> str | None:
        caller = sys._getframe(1).f_code.co_name
        if caller == "_should_end":
            self.asked += 1
        return "planted" if self.asked > self.steps else None


@pytest.mark.slow
def test_killed_three_times_at_random_the_run_ends_with_the_same_loss(recipe_file: Path, tmp_path: Path) -> None:
    """SIGKILL leaves no time for anything; what was written before has to be enough."""
    steps = ("--schedule.steps", "60")
    whole = start(recipe_file, "pretrain", *steps, "--run_dir", str(tmp_path / "whole"))
    rng = random.Random()
    for kill in range(3):
        process = start(recipe_file, "pretrain", *steps)
        wait_for_step(tmp_path / "run", 15 * kill + rng.randint(6, 18), process)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.wait()
    process = start(recipe_file, "pretrain", *steps)
    assert process.wait() == 0, process.communicate()[1]
    assert whole.wait() == 0, whole.communicate()[1]
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "run")) == 60


def test_sigterm_saves_and_leaves_with_status_0_and_the_state_says_so(recipe_file: Path, tmp_path: Path) -> None:
    process = start(recipe_file, "pretrain", "--schedule.steps", "100000")
    wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0, process.communicate()[1]
    status = run_status(tmp_path / "run")
    assert (status["status"], status["reason"]) == ("paused early", "SIGTERM")
    assert status["step"] == max(losses(tmp_path / "run"))
    info = subprocess.run(
        [sys.executable, "-m", "shardscope.cli", "info", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "paused early (SIGTERM)" in info.stdout


def test_what_a_run_killed_before_its_first_checkpoint_logged_is_logged_once(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file, run_dir=str(tmp_path / "other"))
    (tmp_path / "run").mkdir()
    for name in ("recipe.json", "tokenizer.json"):
        shutil.copy(tmp_path / "other" / name, tmp_path / "run" / name)
    cut_off = (tmp_path / "other" / "metrics.jsonl").read_text()[:1200]
    (tmp_path / "run" / "metrics.jsonl").write_text(cut_off)
    run(recipe_file)
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 21))
    assert [line["event"] for line in lines if line["kind"] == "event"] == ["start", "finished"]


def test_a_signal_in_the_last_evaluation_leaves_it_to_the_next_start(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: None)
    assert run(recipe_file).status == "paused early"
    assert run_status(tmp_path / "run")["status"] == "finished"  # every step is done
    monkeypatch.undo()
    outcome = run(recipe_file)
    assert (outcome.status, outcome.step, outcome.evaluated) == ("finished", 20, 20)
    assert run(recipe_file).reason == "every step was already done"


@pytest.mark.parametrize("fails", ["evaluation", "sampling", "sentinel"])
def test_weights_are_saved_before_anything_that_can_fail(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*_: object, **__: object) -> Any:
        if list_checkpoints(tmp_path / "run")[-1:] and list_checkpoints(tmp_path / "run")[-1].name == "step-00000020":
            raise ZeroDivisionError("planted")
        return original(*_, **__) if fails != "sampling" else []

    name = {"evaluation": "evaluate", "sentinel": "singular_values", "sampling": "evaluate"}[fails]
    original = getattr(loop, name)
    if fails != "sampling":
        monkeypatch.setattr(loop, name, fail)
    recipe = load_recipe(recipe_file, {"train.save_every": "15", "train.sample_every": "10"})
    samples = [{"prompt": "one"}, {"prompt": "two"}]
    with pytest.raises(ZeroDivisionError, match="planted"):
        train(recipe, probe=fail if fails == "sampling" else lambda _: samples, progress=False)
    assert list_checkpoints(tmp_path / "run")[-1].name == "step-00000020"
    monkeypatch.undo()
    assert train(recipe, probe=lambda _: samples, progress=False).status == "finished"
    lines = read_metrics(tmp_path / "run")
    for kind, steps in (("eval", [0, 10, 20]), ("sentinel", [10, 20])):
        assert [line["step"] for line in lines if line["kind"] == kind] == steps
    assert [line["step"] for line in lines if line["kind"] == "sample"][-2:] == [20, 20]


def test_what_a_kill_left_undone_at_its_checkpoint_is_done_once(recipe_file: Path, tmp_path: Path) -> None:
    """The kill comes after a checkpoint, before the model of that step is looked at, or in the midst of it."""
    samples = [{"prompt": "one"}, {"prompt": "two"}]
    recipe = load_recipe(recipe_file, {"train.sample_every": "10"})
    train(recipe, probe=lambda _: samples, progress=False)
    log = tmp_path / "run" / "metrics.jsonl"
    whole = log.read_text().splitlines(keepends=True)
    expected = [(line["kind"], line["step"]) for line in map(json.loads, whole)]
    first = next(n for n, line in enumerate(expected) if line == ("sentinel", 10))
    for lines in range(first, first + 5):
        log.write_text("".join(whole[:lines]) + '{"kind": "tr')
        forget_all_after(10, tmp_path / "run")
        assert train(recipe, probe=lambda _: samples, progress=False).status == "finished"
        found = [(line["kind"], line["step"]) for line in read_metrics(tmp_path / "run")]
        assert sorted(found) == sorted([*expected, ("event", 10)])  # the second start


def test_a_run_killed_between_its_last_checkpoint_and_its_last_line_says_finished(
    recipe_file: Path, tmp_path: Path
) -> None:
    run(recipe_file)
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    assert run(recipe_file).status == "finished"
    assert [line["event"] for line in read_metrics(tmp_path / "run", "event")] == ["start", "start", "finished"]
    assert len(losses(tmp_path / "run")) == len(read_metrics(tmp_path / "run", "train")) == 20
    before = log.read_text()
    assert run(recipe_file).reason == "every step was already done"
    assert log.read_text() == before
