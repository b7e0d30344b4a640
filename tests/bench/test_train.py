from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from shardscope.bench import train as bench
from shardscope.bench.real_loop import loop_rates
from shardscope.config import PRESETS, ConfigError, ShardConfig
from shardscope.model import Shard

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", [path.stem for path in sorted((DOCS / "benchmarks").glob("train-*.json"))])
def test_the_table_in_the_docs_is_the_one_that_the_json_gives(name: str) -> None:
    page = (DOCS / "training.md").read_text(encoding="utf-8")
    report = json.loads((DOCS / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    assert f"<!-- {name} -->\n{bench.table(report)}\n<!-- /{name} -->" in page


def test_stripping_the_hooks_changes_nothing_but_the_hooks() -> None:
    torch.manual_seed(0)
    model, ids = Shard(PRESETS["shard-pico"]).eval(), torch.arange(20)[None]
    with torch.no_grad():
        before = model(ids)
        bench.strip_hooks(model)
        torch.testing.assert_close(model(ids), before)
    assert not any(isinstance(module, bench.HookPoint) for module in model.modules())


def test_a_length_that_does_not_fit_is_refused_in_one_sentence() -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    with pytest.raises(ConfigError, match="--seq-len 4096 does not fit: shard-pico reads 1 to 512 tokens"):
        bench.run(parser.parse_args(["--device", "cpu", "--model", "shard-pico", "--seq-len", "4096"]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "1"], "--steps 1 gives no median and no spread"),
        (["--seq-len", "0"], "--seq-len 0 does not fit"),
        (["--variants", "fp8"], "--variants fp8: cpu does not multiply 8-bit floats"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(flags: list[str], message: str) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    with pytest.raises(ConfigError, match=message):
        bench.run(parser.parse_args(["--device", "cpu", "--model", "shard-pico", *flags]))


def test_the_bench_prints_a_table_and_writes_json_with_transformers_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    words = f"--device cpu --model shard-pico --seq-len 32 --tokens 64 --steps 2 --trace 2 --out {tmp_path / 'b.json'}"
    assert bench.run(parser.parse_args(words.split())) == 0
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["command"].startswith("shardscope bench train --model shard-pico --seq-len 32 --tokens 64 --steps 2")
    names = [row["variant"] for row in report["rows"]]
    assert names == ["Shard", "Shard, the real loop", "transformers' VaultGemma, AdamW"]
    assert all(row["tokens_per_second"] > 0 and row["mfu_matmul"] > 0 for row in report["rows"])
    assert bench.table(report) in capsys.readouterr().out


def test_the_real_loop_is_set_beside_the_bare_step_of_the_same_shape() -> None:
    row = {"spread": None, "mfu_datasheet": None, "mfu_matmul": None, "peak_memory_gb": None, "compile_seconds": 0.0}
    shapes = [("shard-nano", 2048, 500.0), ("shard-nano", 2048, 495.0), ("shard-nano", 512, 400.0)]
    rows: list[dict[str, Any]] = [
        {**row, "model": model, "seq_len": seq_len, "tokens_per_second": rate, "tokens_per_step": 4096, "variant": name}
        for (model, seq_len, rate), name in zip(shapes, ["Shard", *2 * ["Shard, the real loop"]], strict=True)
    ]
    text = bench.table({"rows": rows, "traces": []})
    assert "The real loop of shard-nano at T=2048: 99.0% of the bare step's speed." in text
    assert text.count("The real loop of") == 1


def test_the_real_loop_times_every_ten_steps_of_the_trainer_but_the_first_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = ShardConfig(vocab_size=300, n_ctx=32, d_model=16, n_layers=1, n_heads=1, d_head=16, d_mlp=16, window=8)
    rates, compiling = loop_rates(bench.recipe_of(bench.VARIANTS["loop"], model, 32, 64), 25, torch.device("cpu"))
    assert len(rates) == 3
    assert all(rate > 0 for rate in rates)
    assert compiling >= 0
    assert not list(tmp_path.iterdir())


def test_a_made_up_language_has_one_successor_for_a_token_nine_times_in_ten() -> None:
    tokens = bench.language(50, 8, 500, seed=1).tokens
    follows = torch.zeros(50, 50)
    follows.index_put_((tokens[:, :-1].flatten(), tokens[:, 1:].flatten()), torch.ones(8 * 500), accumulate=True)
    share = follows.max(dim=1).values.sum() / follows.sum()
    assert 0.87 < share < 0.95
