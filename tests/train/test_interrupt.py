from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardscope.recipes.command import run_recipe
from shardscope.train import loop, setup
from shardscope.train.interrupt import Interrupted, Stop
from shardscope.train.metrics import read_metrics


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_nothing_can_be_saved_ends_the_work_on_the_spot(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name) as caught, Stop():
        os.kill(os.getpid(), number)
    assert caught.value.number == number
    assert signal.getsignal(number) is before


def test_a_signal_while_the_run_can_be_saved_is_a_reason_and_the_second_is_nobodys() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Stop() as stop, stop.saving():
        assert stop.reason is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "SIGTERM"
        # Whatever comes next does what it does without us.
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


SLOW = """
import os, signal, sys, time
from shardscope.train.interrupt import Stop
with Stop(grace_seconds=0.2) as stop, stop.saving():
    os.kill(os.getpid(), signal.SIGTERM)
    if sys.argv[1] == "twice":
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
"""


def test_saving_that_takes_too_long_is_given_up_in_one_sentence() -> None:
    done = subprocess.run([sys.executable, "-c", SLOW, "once"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "error: saving took longer than train.grace_seconds=0.2; the last checkpoint is whole\n"


def test_a_second_sigterm_ends_the_process_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", SLOW, "twice"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stage", ["tokenizing", "just before the first step"])
def test_a_signal_before_the_first_step_is_one_sentence_and_the_same_command_goes_on(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    number: signal.Signals, stage: str,
) -> None:  # fmt: skip
    module, name = (setup, "prepare") if stage == "tokenizing" else (loop, "open_loggers")
    original = getattr(module, name)

    def interrupted(*given: Any, **settings: Any) -> Any:
        found = original(*given, **settings)
        os.kill(os.getpid(), number)
        return found

    monkeypatch.setattr(module, name, interrupted)
    assert run_recipe("pretrain", "", [str(recipe_file), "--schedule.steps", "2"]) == 128 + number
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == f"{number.name} while there was nothing to save; the same command starts again where it was"
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".lock"]
    monkeypatch.undo()
    assert run_recipe("pretrain", "", [str(recipe_file), "--schedule.steps", "2"]) == 0
    assert [line["step"] for line in read_metrics(tmp_path / "run", "train")] == [1, 2]
