"""Stages are done once, again when what they are made from has changed, and what they cost is added up over kills."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from shardscope.config import ConfigError
from shardscope.files import read_json, write_json
from shardscope.reproduce.ledger import Ledger, Record, Stage, duration, key_of, time_left
from shardscope.reproduce.meter import Meter, power_draw


class Work:
    """Counts how often it was done, and fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.done, self.failures = 0, failures

    def __call__(self) -> dict[str, Any]:
        if self.failures:
            self.failures -= 1
            raise ConfigError("not this time")
        self.done += 1
        return {"times": self.done}


def stage(name: str, work: Work, made_from: dict[str, Any], **more: Any) -> Stage:
    return Stage(name=name, says=name, made_from=lambda: made_from, work=work, **more)


def quiet(text: str) -> None:
    pass


def test_a_stage_is_done_once_and_again_when_what_it_is_made_from_has_changed(tmp_path: Path) -> None:
    ledger, work, made_from = Ledger(tmp_path), Work(), {"weights": "a"}
    for _ in range(2):
        records = ledger.run([stage("one", work, made_from)], quiet)
        assert records["one"].result == {"times": 1}
    made_from["weights"] = "b"
    assert ledger.run([stage("one", work, made_from)], quiet)["one"].result == {"times": 2}
    assert records["one"].key == key_of({"weights": "a"})


def test_what_is_made_from_a_stage_is_done_again_after_it(tmp_path: Path) -> None:
    ledger, first, second, made_from = Ledger(tmp_path), Work(), Work(), {"recipe": 1}
    stages = [
        stage("first", first, made_from),
        Stage(name="second", says="second", made_from=lambda: ledger.result("first"), work=second),
    ]
    ledger.run(stages, quiet)
    ledger.run(stages, quiet)
    assert (first.done, second.done) == (1, 1)
    made_from["recipe"] = 2
    ledger.run(stages, quiet)
    assert (first.done, second.done) == (2, 2)


def test_a_stage_whose_file_was_deleted_is_done_again(tmp_path: Path) -> None:
    ledger, work, left = Ledger(tmp_path / "stages"), Work(), tmp_path / "checkpoint"
    left.touch()
    ledger.run([stage("one", work, {}, still_there=left.exists)], quiet)
    ledger.run([stage("one", work, {}, still_there=left.exists)], quiet)
    left.unlink()
    ledger.run([stage("one", work, {}, still_there=left.exists)], quiet)
    assert work.done == 2


def test_after_a_failure_the_same_stages_go_on_with_the_one_that_failed(tmp_path: Path) -> None:
    ledger, first, second = Ledger(tmp_path), Work(), Work(failures=1)
    stages = [stage("first", first, {}), stage("second", second, {})]
    with pytest.raises(ConfigError, match="not this time"):
        ledger.run(stages, quiet)
    said: list[str] = []
    ledger.run(stages, said.append)
    assert (first.done, second.done) == (1, 1)
    assert said[0].startswith("[1/2] first: done before, in ")
    assert said[1].startswith("[2/2] second; about ")
    assert said[2].startswith("[2/2] second: done in ")


def test_the_seconds_of_a_killed_start_are_counted(tmp_path: Path) -> None:
    account = tmp_path / f"one.{key_of({})[:8]}.running"
    write_json(account, {"seconds": 1000.0, "joules": None})  # what a killed process leaves
    record = Ledger(tmp_path).run([stage("one", Work(), {})], quiet)["one"]
    assert 1000 <= record.seconds < 2000
    assert not account.exists()


def test_the_time_left_learns_from_the_stages_of_a_kind_that_are_done() -> None:
    stages = [stage(f"heads/{number}", Work(), {}, seconds=2.0) for number in range(3)]
    stages.append(stage("anneal", Work(), {}, seconds=100.0))
    assert time_left(stages, stages, {}) == 106
    done = Record(
        name="heads/0", key="", made_from={}, seconds=10.0, joules=None, ended="", code="", result={}
    )  # fmt: skip
    assert time_left(stages[1:], stages, {"heads/0": done}) == 10 + 10 + 100


def test_a_record_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('{"name": "one"}')
    with pytest.raises(ConfigError, match=r"one\.json: not the record of a stage .*delete it to do the stage again"):
        Ledger(tmp_path).run([stage("one", Work(), {})], quiet)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (5 * 3600, "5.0 h"), (4e6, "1,111 h")]
)
def test_durations_read_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# ------------------------------------------------------------------------------------------------------------- energy


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi that says of two GPUs that they draw 100 W and 200.5 W; its arguments go into a file."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\nprintf "100.00\\n200.50\\n"\n')
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return program


def test_the_power_of_the_gpus_is_what_nvidia_smi_says_of_them_together(smi: Path) -> None:
    assert power_draw(["GPU-a", "GPU-b"]) == 300.5
    assert "--id=GPU-a,GPU-b" in (smi.parent / "asked").read_text()


@pytest.mark.parametrize("answer", ["echo '[N/A]'", "echo 'No devices were found'; exit 6", "exit 0", "echo 3; echo 4"])
def test_power_that_nobody_knows_is_none(smi: Path, answer: str) -> None:
    smi.write_text(f"#!/bin/sh\n{answer}\n")
    assert power_draw(["GPU-a"]) is None
    assert power_draw([]) is None


def test_energy_is_power_times_time_and_goes_on_after_a_kill(smi: Path, tmp_path: Path) -> None:
    file = tmp_path / "account"
    write_json(file, {"seconds": 10.0, "joules": 5000.0})
    with Meter(file, ["GPU-a", "GPU-b"], every=0.01).running() as meter:
        began = time.monotonic()
        time.sleep(0.05)
    took = time.monotonic() - began
    assert meter.joules is not None
    assert meter.joules - 5000 <= 300.5 * (meter.seconds - 10)
    assert meter.joules - 5000 >= 300.5 * 0.05
    assert took >= 0.05
    assert read_json(file)["joules"] == meter.joules


def test_without_nvidia_smi_there_are_seconds_and_no_joules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with Meter(tmp_path / "account", ["GPU-a"]).running() as meter:
        pass
    assert meter.joules is None
    assert read_json(tmp_path / "account") == {"seconds": round(meter.seconds, 1), "joules": None}
