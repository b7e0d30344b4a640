from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shardscope import load
from shardscope.checkpoint import STATE, list_checkpoints
from shardscope.config import ConfigError, load_recipe
from shardscope.data import prepare
from shardscope.files import read_json
from shardscope.tensors import read_tensors
from shardscope.tokenizer import Tokenizer
from shardscope.train import TrainingError, loop, step_monitor, train
from shardscope.train.metrics import read_metrics
from shardscope.train.run import claimed_folder, run_status


def run(path: Path, **overrides: str):
    return train(load_recipe(path, {key.replace("__", "."): value for key, value in overrides.items()}), progress=False)


def losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(folder, "train")}


def start(path: Path, phase: str = "pretrain", *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"shardscope.recipes.{phase}", str(path), *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    while max(losses(folder), default=0) < step:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


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


def test_a_foreign_folder_is_left_alone(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"is not empty and not a run \(recipe.json is missing\)"):
        run(recipe_file)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def poison(monkeypatch: pytest.MonkeyPatch, bad_steps: set[int]) -> None:
    """From some steps on the loss is NaN, and with it every gradient."""
    calls = iter(range(10_000))
    original = loop.Loop._take_step

    def take_step(self: loop.Loop, batch: object) -> bool:
        forward = self.setup.objective.forward
        bad = next(calls) in bad_steps

        def poisoned(window: torch.Tensor):
            loss, found = forward(window)
            return loss * (torch.nan if bad else 1.0), found

        monkeypatch.setattr(self.setup.objective, "forward", poisoned)
        try:
            return original(self, batch)  # type: ignore[arg-type]
        finally:
            monkeypatch.setattr(self.setup.objective, "forward", forward)

    monkeypatch.setattr(loop.Loop, "_take_step", take_step)


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


@pytest.mark.parametrize("what", ["a weight", "a momentum"])
def test_what_is_not_finite_is_not_saved(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    original = loop.Loop._look_at_matrices

    def look_and_break(self: loop.Loop) -> None:
        original(self)
        with torch.no_grad():
            if what == "a weight":
                self.setup.model.embed.W_E[0, 0] = torch.inf
            else:
                self.setup.optimizer.updates[0].momentum[0] = torch.nan

    monkeypatch.setattr(loop.Loop, "_look_at_matrices", look_and_break)
    with pytest.raises(TrainingError, match=r"step 15: .* not finite, so nothing is saved; .*10 is intact; lower opt"):
        run(recipe_file)
    assert list_checkpoints(tmp_path / "run")[-1].name == "step-00000010"


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {5, 6})
    outcome = run(recipe_file)
    assert outcome.status == "finished"
    assert all(tensor.isfinite().all() for tensor in read_tensors(outcome.checkpoint / "model.safetensors").values())
    assert read_json(outcome.checkpoint / STATE)["skipped_steps"] == 2
    skipped = [line["step"] for line in read_metrics(tmp_path / "run", "event") if line["event"] == "skipped step"]
    assert skipped == [6, 7]
    # Any JSON reader reads every line.
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    parsed = [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in lines]
    assert next(line for line in parsed if line["kind"] == "train" and line["step"] == 6)["loss"] is None


def test_too_many_bad_steps_in_a_row_end_the_run_and_name_the_batch(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, set(range(7, 100)))
    with pytest.raises(TrainingError) as caught:
        run(recipe_file, train__max_bad_steps="3")
    message = str(caught.value)
    assert "step 10: loss nan" in message
    assert "3 steps in a row" in message
    assert "step-00000005 is intact" in message
    assert "one.jsonl:" in message
    kept = list_checkpoints(tmp_path / "run")[-1]
    assert kept.name == "step-00000005"
    assert all(tensor.isfinite().all() for tensor in read_tensors(kept / "model.safetensors").values())


def test_the_progress_line_shows_what_a_run_is_watched_for(
    recipe_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_monitor, "datasheet_flops", lambda device: 1e12)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    poison(monkeypatch, {5})
    train(load_recipe(recipe_file), progress=True)
    last = capsys.readouterr().err.replace("\r", "\n").splitlines()[-1]
    expected = r"tiny: 100%.*20/20 \[\d+:\d+<\d+:\d+.*loss \d\.\d{3}, lr 1.00e-02, [\d,]+ tokens/s, MFU \d+%, "
    assert re.search(expected + r"held-out \d\.\d{3} bits/byte, full rank, 1 skipped", last), last


def test_tensorboard_gets_the_numbers_of_metrics_jsonl(recipe_file: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import event_accumulator as accumulator

    run(recipe_file, train__loggers="['tensorboard']")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    shown = {event.step: event.value for event in events.Scalars("train/loss")}
    assert shown == pytest.approx(losses(tmp_path / "run"), rel=1e-6)
    assert "eval/all/bits_per_byte" in events.Tags()["scalars"]


def test_weights_and_biases_gets_the_numbers_of_metrics_jsonl(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(recipe_file, train__loggers="['wandb']")
    shown = wandb_points(tmp_path / "run", "train/loss")
    assert dict(shown) == pytest.approx(losses(tmp_path / "run"), rel=1e-6)
    assert len(shown) == 20


def wandb_points(folder: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of every point that W&B was told, over all its sessions."""
    # Its service writes after a run has been finished; this returns when the service has written all and has ended.
    sys.modules["wandb"].teardown()
    lines = [line for log in folder.glob("wandb/offline-run-*/run-*.wandb") for line in wandb_history(log)]
    return [(line["_step"], line[name]) for line in lines if name in line]


def wandb_history(log: Path) -> Iterator[dict[str, Any]]:
    """What W&B's file holds: blocks of 32 KiB with records of LevelDB's log format, in them W&B's own messages."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = log.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block that holds no header
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record.FromString(parts)
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            parts = b""


def forget_all_after(step: int, folder: Path) -> None:
    """As if the run had been killed when its newest checkpoint was the one of that step."""
    for checkpoint in list_checkpoints(folder):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


def test_after_a_kill_tensorboard_has_each_step_once(recipe_file: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for _ in range(2):
        run(recipe_file, train__loggers="['tensorboard']")
        forget_all_after(10, tmp_path / "run")
    events = [
        event for file in (tmp_path / "run" / "tensorboard").iterdir() for event in EventFileLoader(str(file)).Load()
    ]
    steps = [event.step for event in events for value in event.summary.value if value.tag == "train/loss"]
    assert steps == list(range(1, 21))
    assert [e.step for e in events for value in e.summary.value if value.tag == "eval/all/loss"] == [0, 10, 20]


def test_after_a_kill_weights_and_biases_has_each_step_once(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for _ in range(2):
        run(recipe_file, train__loggers="['wandb']")
        wandb_points(tmp_path / "run", "train/loss")
        forget_all_after(10, tmp_path / "run")
    assert sorted(step for step, _ in wandb_points(tmp_path / "run", "train/loss")) == list(range(1, 21))
    assert sorted(step for step, _ in wandb_points(tmp_path / "run", "eval/all/loss")) == [0, 10, 20]


class RecordingWandb:
    """Stands in for the package, and records what it is asked for."""

    Error = RuntimeError

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.steps: list[int] = []

    def init(self, **settings: Any) -> RecordingWandb:
        self.ids.append(settings["id"])
        return self

    def log(self, scalars: dict[str, float], step: int) -> None:
        if "train/loss" in scalars:
            self.steps.append(step)

    def finish(self) -> None:
        pass


def test_runs_in_two_folders_are_two_runs_of_weights_and_biases_and_a_resumed_one_is_one(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = RecordingWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # type: ignore[arg-type]
    for folder in ("run", "run", "other"):
        run(recipe_file, train__loggers="['wandb']", run_dir=str(tmp_path / folder))
        forget_all_after(10, tmp_path / folder)
    first, again, other = wandb.ids
    assert first == again != other
    assert wandb.steps == 2 * list(range(1, 21))  # of each folder


def test_weights_and_biases_without_a_login_is_one_sentence(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("wandb").teardown()  # it would remember how it was called before
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"No API key configured.*Or set WANDB_MODE=offline"):
        run(recipe_file, train__loggers="['wandb']")


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
