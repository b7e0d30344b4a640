"""`shardscope bench learn`: runs of the trainer, told apart by recipe and seed, and a table of what they learnt."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from shardscope.bench import learn
from shardscope.config import ConfigError
from shardscope.train.metrics import read_metrics

DOCS = Path(__file__).parents[2] / "docs"
RECIPE = """
name = "tiny"
phase = "pretrain"
[model]
preset = "shard-pico"
d_model = 32
n_layers = 2
n_heads = 2
d_head = 16
d_mlp = 48
vocab_size = 270
[data]
seq_len = 32
sources = [{ name = "prose", path = "TEXT" }]
[tokenizer]
documents = 20
[train]
batch_size = 4
eval_tokens = 500
log_every = 1
"""


@pytest.fixture
def recipes(tmp_path: Path) -> list[str]:
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": f"Story {i} of the {i % 7} lakes. " * 20}) for i in range(200)))
    paths = []
    for name in ("plain", "other"):
        path = tmp_path / f"{name}.toml"
        cache = f'[data]\ncache_dir = "{tmp_path / "cache"}"'
        path.write_text(RECIPE.replace("TEXT", str(text)).replace("[data]", cache))
        paths.append(str(path))
    return paths


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    learn.add_arguments(parser)
    return parser.parse_args(words)


def test_each_recipe_and_seed_is_a_run_of_the_trainer_on_the_tokens_asked_for(
    recipes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture, runs = tmp_path / "learn.json", tmp_path / "learn.png", tmp_path / "runs"
    words = [*recipes, "--tokens", "1280", "--seeds", "0", "1", "--evaluations", "2", "--device", "cpu"]
    words += ["--set", "optimizer.lr=2e-3", "--out", str(out), "--plot", str(picture), "--keep", str(runs)]
    assert learn.run(arguments(*words)) == 0
    report = json.loads(out.read_text())
    assert [(one["recipe"], one["seed"], one["tokens"]) for one in report["runs"]] == [
        (name, seed, 1280) for seed in (0, 1) for name in ("plain", "other")
    ]
    logged = read_metrics(runs / "plain-seed1", "eval")
    assert [point["step"] for point in report["runs"][2]["curve"]] == [line["step"] for line in logged] == [0, 5, 10]
    last = report["runs"][2]["curve"][-1]
    assert last["bits_per_byte"]["all"] == logged[-1]["all"]["bits_per_byte"]
    assert last["tokens"] == 1280
    assert last["seconds"] == pytest.approx(1280 / report["runs"][2]["tokens_per_second"], abs=0.01)
    assert report["runs"][0]["changes"] == {"optimizer.lr": "2e-3"}
    # The same recipe under two names and with one seed learns the same.
    assert report["runs"][0]["curve"][-1]["bits_per_byte"] == report["runs"][1]["curve"][-1]["bits_per_byte"]
    assert learn.table(report) in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_seconds_become_the_steps_that_fit_into_them(recipes: list[str], tmp_path: Path) -> None:
    words = [recipes[0], "--seconds", "0.4", "--evaluations", "1", "--device", "cpu", "--keep", str(tmp_path / "runs")]
    learn.run(arguments(*words, "--out", str(tmp_path / "out.json")))
    (one,) = json.loads((tmp_path / "out.json").read_text())["runs"]
    trial = [line["tokens_per_second"] for line in read_metrics(tmp_path / "runs" / "plain-seed0-trial", "train")]
    assert one["tokens"] == pytest.approx(0.4 * sorted(trial)[len(trial) // 2], rel=0.05, abs=128)


def test_what_cannot_be_compared_is_one_sentence(recipes: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two recipes are called plain, by which their runs are told apart"):
        learn.run(arguments(recipes[0], recipes[0], "--device", "cpu"))
    with pytest.raises(ConfigError, match="--set 'lr': write KEY=VALUE"):
        learn.run(arguments(recipes[0], "--set", "lr", "--device", "cpu"))
    with pytest.raises(ConfigError, match="--evaluations 0 measures nothing; use at least 1"):
        learn.run(arguments(recipes[0], "--evaluations", "0", "--device", "cpu"))


def test_the_table_in_the_docs_is_the_one_the_numbers_give() -> None:
    page = (DOCS / "learning.md").read_text(encoding="utf-8")
    report = json.loads((DOCS / "benchmarks" / "learn-h100.json").read_text(encoding="utf-8"))
    shown = page.partition("<!-- learn-h100 -->\n")[2].partition("\n<!-- /learn-h100 -->")[0]
    assert shown == learn.table(report)
    assert f"{report['loop']['tokens_per_second']:,.0f} tokens/s" in page
