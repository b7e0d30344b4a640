"""Numbers that are not finite reach neither the weights nor a checkpoint."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from running import run

from shardscope.checkpoint import STATE, list_checkpoints
from shardscope.config import load_recipe
from shardscope.files import read_json
from shardscope.tensors import read_tensors
from shardscope.train import TrainingError, loop, step_monitor, train
from shardscope.train.metrics import read_metrics


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
