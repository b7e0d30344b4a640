from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from shardscope.bench import decode as bench
from shardscope.config import ConfigError


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.slow
def test_the_bench_writes_the_same_tokens_as_transformers_and_says_how_fast(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    words = ["--model", "shard-pico", "--batch", "1", "2", "--new", "12", "--runs", "1", "--device", "cpu", "--sampled"]
    assert bench.run(arguments(*words, "--out", str(tmp_path / "decode.json"))) == 0
    report = json.loads((tmp_path / "decode.json").read_text())
    assert [(row["decoder"], row["batch"]) for row in report["rows"]] == [
        ("transformers", 1),
        ("shardscope", 1),
        ("transformers, prompt lookup", 1),
        ("shardscope, lookup (default)", 1),
        ("transformers, sampled", 1),
        ("shardscope, sampled", 1),
        ("transformers", 2),
        ("shardscope", 2),
        ("transformers, sampled", 2),
        ("shardscope, sampled", 2),
    ]
    assert all(row["tokens_per_second"] > 0 for row in report["rows"])
    assert all(row["same_tokens"] == (None if "sampled" in row["decoder"] else 1) for row in report["rows"])
    assert "--new 12 --sampled --runs 1 --out" in report["command"]
    assert report["memory_bandwidth"] > 1e8
    assert "| shardscope | 2 | 32 + 12 |" in capsys.readouterr().out


def test_more_tokens_than_the_context_are_refused() -> None:
    with pytest.raises(ConfigError, match="--prompt and --new together exceed the model's context"):
        bench.run(arguments("--model", "shard-pico", "--new", "100000", "--device", "cpu"))
