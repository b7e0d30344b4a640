"""The bench measures what it says, and the page in the docs shows what it measured."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from shardscope.bench import attention as room
from shardscope.bench.attention import Job, measure_job, table
from shardscope.config import ConfigError

DOCS = Path(__file__).parents[2] / "docs"


def job(reader: str) -> Job:
    return Job(reader=reader, preset="shard-pico", tokens=150, device="cpu", repeats=1)


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    room.add_arguments(parser)
    return parser.parse_args(words)


def test_both_readers_of_the_bench_see_the_same_weights() -> None:
    pytest.importorskip("transformer_lens")
    ours = measure_job(job("microscope"))
    assert ours["heads"] == 16
    assert 0 < ours["read"] <= ours["first_map"]
    assert ours["rows"].shape == (4, room.COMPARED_ROWS, 150)
    np.testing.assert_allclose(ours["rows"].sum(axis=-1), 1, atol=1e-5)
    for reader in ("TransformerLens", "TransformerLens, patterns only"):
        np.testing.assert_allclose(measure_job(job(reader))["rows"], ours["rows"], atol=1e-5)


@pytest.mark.slow
def test_the_bench_runs_as_a_command_and_keeps_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "attention.json"
    words = ("--model", "shard-pico", "--tokens", "300", "--against", "0", "--runs", "2", "--out", str(file))
    assert room.run(arguments(*words)) == 0
    results = json.loads(file.read_text())
    assert capsys.readouterr().out.strip() == table(results)
    assert results["long"]["tokens"] == 300
    assert results["long"]["repeats"] == len(results["long"]["all_times"]["read"]) == 2
    # At the least the queries and keys that a reading keeps, of which only the first megabytes were there before.
    assert results["long"]["peak_bytes"] > 0


def test_what_takes_long_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PATIENCE", 0.0)
    patient = measure_job(Job(reader="microscope", preset="shard-pico", tokens=20, device="cpu", repeats=3))
    assert patient["repeats"] == len(patient["all_times"]["overview"]) == 1


def test_the_table_in_the_docs_is_the_one_the_numbers_give() -> None:
    files = sorted((DOCS / "benchmarks").glob("attention-*.json"))
    assert files
    page = (DOCS / "microscope.md").read_text(encoding="utf-8")
    for file in files:
        assert table(json.loads(file.read_text(encoding="utf-8"))) in page, file.name


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--tokens", "9000"), "shard-54m reads 1 to 8192 tokens, not 9000"),
        (("--against", "-5"), "reads 1 to 8192 tokens, not -5"),
        (("--runs", "0"), "--runs 0 measures nothing"),
        (("--device", "foo"), "device='foo' is not a torch device"),
    ],
)
def test_a_bench_that_cannot_be_run_is_refused(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        room.run(arguments(*words))
