"""TensorBoard and Weights & Biases have the numbers of metrics.jsonl, each step once."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import forget_all_after, losses, run

from shardscope.config import ConfigError


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
