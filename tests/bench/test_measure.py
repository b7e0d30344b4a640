from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from shardscope.bench import measure
from shardscope.cli import main
from shardscope.cli.bench_command import BENCHES
from shardscope.config import ConfigError

CPU = torch.device("cpu")


def test_the_spread_is_half_the_interquartile_range_over_the_median() -> None:
    seconds = [1.0, 1.1, 0.9, 1.05, 9.0]
    low, high = np.percentile(seconds, [25, 75])
    timing = measure.summary(seconds)
    assert timing.median == statistics.median(seconds) == 1.05
    assert timing.spread == pytest.approx((high - low) / 2 / 1.05, abs=1e-4)
    assert measure.summary([*seconds[:4], 900.0]) == timing, "one disturbed run moves neither"
    assert measure.summary([2.0]).spread is None
    assert [measure.shown_spread(spread) for spread in (0.0123, None)] == ["±1.2%", "–"]


def test_ways_that_are_compared_take_turns() -> None:
    order: list[str] = []
    ways = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = measure.taking_turns(ways, 3, CPU)
    assert order == ["a", "b"] * 3
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_a_time_includes_what_the_device_still_does(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("waited"))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: order.append("waited"))
    for name in ("cuda", "mps"):
        order.clear()
        measure.seconds_of(lambda: order.append("worked"), torch.device(name))
        assert order == ["waited", "worked", "waited"], name


def test_a_measurement_says_where_and_of_what_it_is() -> None:
    place = measure.machine(CPU)
    assert (place["device"], place["torch"]) == ("cpu", torch.__version__)
    assert place["threads"] == torch.get_num_threads()
    root = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    head = subprocess.run(root, capture_output=True, text=True)
    if head.returncode == 0:
        assert head.stdout.startswith(place["commit"].rstrip("+"))
    json.dumps(place)


def test_the_command_that_measured_is_written_as_it_would_be_typed() -> None:
    arguments = argparse.Namespace(batch=[1, 32], seq_len=None, out="there.json")
    typed = "shardscope bench score --batch 1 32 --out there.json"
    assert measure.command_line("score", arguments, "batch", "seq_len", "out") == typed


def test_a_number_that_measures_nothing_is_named_by_its_flag() -> None:
    with pytest.raises(ConfigError, match="--new-tokens 0 measures nothing; use at least 1"):
        measure.at_least_one(runs=3, new_tokens=0)


@pytest.mark.parametrize("what", [what for what in BENCHES if what not in ("failures", "threads")])
def test_a_device_that_is_not_there_is_one_sentence(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("transformer_lens", "lm_eval"):
        pytest.importorskip(package)
    needed = ["recipes/shard-pico-pretrain.toml"] if what == "learn" else []
    assert main(["bench", what, *needed, "--device", "nope"]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: device='nope' is not a torch device")
    assert len(error.splitlines()) == 1


def test_committed_measurements_have_one_meaning_of_spread_and_say_where_they_are_from() -> None:
    for file in sorted((Path(__file__).parents[2] / "docs" / "benchmarks").glob("*.json")):
        report = json.loads(file.read_text(encoding="utf-8"))
        if file.stem.startswith(("train", "decode", "score")):
            assert {"measured", "device", "name", "threads", "torch"} <= report["machine"].keys(), file.name
            for row in report["rows"]:
                if "seconds" in row:
                    assert row["spread"] == measure.summary(row["seconds"]).spread, file.name
