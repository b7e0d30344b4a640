from __future__ import annotations

import io
import sys

import pytest

from shardscope import progress
from shardscope.progress import progress_bar, progress_of_shares


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time, for tqdm and for us, is what the test says."""
    clock = Clock()
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(progress.time, "monotonic", clock)
    monkeypatch.setattr(progress.tqdm, "monitor_interval", 0)
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


def test_a_log_gets_a_line_every_ten_seconds_and_no_carriage_return(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar(desc="training", total=4000, unit="step") as bar:
        for step in range(4000):
            clock.now = step / 100
            bar.update()
            bar.set_postfix_str(f"loss {step}")
    lines = log.getvalue().splitlines(keepends=True)
    assert len(lines) == 3, "at 10, 20 and 30 of 40 seconds"
    assert all(line.startswith("training: ") and line.endswith("\n") and "\r" not in line for line in lines)
    assert log.getvalue().isascii()


def test_what_takes_less_than_ten_seconds_leaves_no_line(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar(desc="training", total=3) as bar:
        bar.update(3)
    assert log.getvalue() == ""


def test_a_terminal_gets_a_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(desc="training", total=3) as bar:
        bar.update(3)
    assert "\rtraining: 100%" in terminal.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_tqdm_disable_is_respected(stream: type[io.StringIO], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = stream()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with progress_bar(desc="training", total=3) as bar:
        clock.now = 100
        bar.update(3)
    assert shown.getvalue() == ""


def test_a_line_in_a_log_is_as_long_as_what_it_says(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    said = "loss 5.182, lr 8.00e-03, 7,760 tokens/s, held-out 2.064 bits/byte"
    with progress_bar(desc="shard-pico-pretrain", total=2, unit="step") as bar:
        bar.set_postfix_str(said, refresh=False)
        clock.now = 11.0
        bar.update()
    assert said in log.getvalue()


def test_work_that_reports_shares_moves_a_bar_of_percents(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_of_shares("xray") as report:
        report(0.0, "finding the onset")
        clock.now = 11.0
        report(0.5, "drawing random sets")
    assert "xray:  50%" in log.getvalue()
    assert "drawing random sets" in log.getvalue()
