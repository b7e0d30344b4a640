"""A recipe's plan: exact where it can be, said before anything is read from elsewhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from shardscope.checkpoint import list_checkpoints
from shardscope.config import ShardConfig, load_recipe
from shardscope.data import dealt, prepare, sample_documents
from shardscope.recipes.command import run_recipe
from shardscope.tokenizer import Tokenizer
from shardscope.train import train
from shardscope.train.flops import flops_per_token
from shardscope.train.plan import format_plan, memory_needed, plan

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise AssertionError("something was downloaded")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("datasets.load_dataset", refuse, raising=False)


@pytest.mark.parametrize("name", ["shard-54m-pretrain", "shard-54m-anneal", "shard-nano-pretrain", "shard-nano-anneal"])
def test_the_hub_recipes_are_planned_without_a_network_and_read_nothing_more_than_eight_times(name: str) -> None:
    recipe = load_recipe(ROOT / f"recipes/{name}.toml")
    found = plan(recipe)
    assert sum(source.tokens for source in found.sources) == found.tokens
    assert found.tokens == recipe.schedule.steps * recipe.train.batch_size * recipe.data.seq_len
    for source in found.sources:
        assert source.passes is not None
        assert source.passes <= 8, source
    text = format_plan(found)
    assert text.isascii()
    for source in recipe.data.sources:
        assert source.name in text
    assert recipe.data.overlap == "drop"
    assert {benchmark.split for benchmark in recipe.data.benchmarks} == {"test"}


def test_the_card_of_the_anneal_is_the_published_one() -> None:
    recipe = load_recipe(ROOT / "recipes/shard-54m-anneal.toml")
    weights = {source.name: source.weight for source in recipe.data.sources}
    assert sum(weights.values()) == pytest.approx(1)
    assert [source.path.split(":")[1] for source in recipe.data.sources] == [
        "open-web-math/open-web-math",
        "HuggingFaceFW/fineweb-edu",
        "AI-MO/NuminaMath-CoT",
        "meta-math/MetaMathQA",
        "common-pile/arxiv_papers",
        "HuggingFaceTB/cosmopedia",
        "allenai/ai2_arc",
        "allenai/ai2_arc",
    ]


def test_the_tokens_of_a_plan_are_those_that_the_run_draws(recipe_file: Path) -> None:
    assert dealt([0.5, 0.0, 0.3, 0.2], 1000) == [500, 0, 300, 200]
    recipe = load_recipe(recipe_file)
    assert recipe.model is not None
    found = plan(recipe)
    tokenizer = Tokenizer.train(sample_documents(recipe.data, 100), recipe.model.vocab_size)
    data = prepare(recipe.data, tokenizer, batch_size=4, seed=0, eval_tokens=100, progress=False)
    drawn = {line.name: line.sequences * recipe.data.seq_len for line in data.mixture.plan(recipe.schedule.steps)}
    assert {source.name: source.tokens for source in found.sources} == drawn
    for source in found.sources:  # what was not read yet is a guess, within its order of magnitude
        assert source.size is not None
        assert 0.3 < source.size / len(data.shards[source.name].train) < 3
    assert found.rates[0][0] == 0
    assert found.rates[-1][0] == recipe.schedule.steps - 1
    assert max(rate for _, rate, _ in found.rates) <= recipe.optimizer.lr
    assert found.flops == found.tokens * flops_per_token(recipe.model, recipe.data.seq_len)
    assert found.n_params == recipe.model.n_params


def test_the_memory_of_a_plan_is_near_what_was_measured() -> None:
    rows = json.loads((ROOT / "docs/benchmarks/train-h200.json").read_text(encoding="utf-8"))["rows"]
    measured = [row for row in rows if row["variant"] == "Shard" and row["model"] == "shard-54m"]
    assert measured
    for row in measured:
        tokens = min(row["tokens_per_step"], 131_072)
        assert memory_needed(ShardConfig(), tokens, halves=True) == pytest.approx(row["peak_memory_gb"] * 1e9, rel=0.2)


def test_an_anneal_whose_start_is_not_there_yet_is_planned_all_the_same(tmp_path: Path) -> None:
    recipe = replace(load_recipe(ROOT / "recipes/shard-nano-anneal.toml"), start_from=str(tmp_path / "nowhere"))
    found = plan(recipe)
    assert found.flops is found.hours is found.memory is None
    assert "the checkpoint of start_from is not there yet" in format_plan(found)


def test_dry_run_prints_the_plan_and_makes_nothing(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert run_recipe("pretrain", "", [str(recipe_file), "--dry-run", "--schedule.steps", "1000"]) == 0
    printed = capsys.readouterr().out
    assert "step         0" in printed
    assert "passes" in printed
    assert "FLOPs" in printed
    assert "GB of memory" in printed
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H100 at hand, as torch would describe it, whose matrix products run at 650 TFLOP/s."""
    properties = SimpleNamespace(total_memory=85_000_000_000)
    monkeypatch.setattr("shardscope.train.plan.pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("shardscope.train.plan.matmul_rate", lambda device: 650e12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)


@pytest.mark.parametrize("phase", ["pretrain", "anneal"])
def test_on_an_h100_a_dry_run_says_its_hours_and_its_memory(
    h100: None, phase: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also for the anneal, whose start is not there yet: its model is that of the recipe which trains the start."""
    recipe = load_recipe(ROOT / f"recipes/shard-54m-{phase}.toml")
    assert run_recipe(phase, "", [str(ROOT / f"recipes/shard-54m-{phase}.toml"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    tokens = recipe.schedule.steps * recipe.train.batch_size * recipe.data.seq_len
    hours = tokens * flops_per_token(ShardConfig(), recipe.data.seq_len) / (0.48 * 650e12) / 3600
    shown = f"{hours:,.0f} hours" if hours >= 2 else f"{hours * 60:.0f} minutes"
    assert f"about {shown} on this machine (NVIDIA H100 80GB HBM3)" in said
    memory = memory_needed(ShardConfig(), recipe.train.batch_size * recipe.data.seq_len, halves=True)
    assert f"about {memory / 1e9:.1f} GB of memory of 85 GB" in said
    assert "54,538,752 parameters" in said


def test_the_model_of_an_anneal_is_looked_for_in_the_recipes_beside_its_own(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.toml").write_text("name = ")  # somebody else's
    monkeypatch.chdir(tmp_path)
    for start in (tmp_path / "run", f"{tmp_path / 'run'}@15", "run", "./run@15", "run/checkpoints/step-00000015"):
        assert run_recipe("anneal", "", [str(tmp_path / "anneal.toml"), "--dry-run", "--start_from", str(start)]) == 0
        planned = load_recipe(recipe_file).model
        assert planned is not None
        assert f"{planned.n_params:,} parameters" in capsys.readouterr().out
    assert run_recipe("anneal", "", [str(tmp_path / "anneal.toml"), "--dry-run", "--start_from", "elsewhere"]) == 0
    assert "the checkpoint of start_from is not there yet" in capsys.readouterr().out


def told(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one sentence with which a dry run refuses a recipe."""
    assert run_recipe("anneal", "", [*map(str, words), "--dry-run"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_a_dry_run_refuses_what_the_training_would_refuse(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, anneal = tmp_path / "run", tmp_path / "anneal.toml"
    train(load_recipe(recipe_file), progress=False)  # its checkpoints: 10, 15 and 20
    assert "the checkpoint of step 11 is not there; its stable phase has" in told(
        capsys, anneal, "--start_from", f"{run}@11"
    )
    assert "'x' is not a step; write RUN@STEP" in told(capsys, anneal, "--start_from", f"{run}@x")
    assert "data.seq_len=33 is longer than the context of the model, which is 32" in told(
        capsys, anneal, "--data.seq_len", 33
    )
    train(load_recipe(anneal), progress=False)
    assert "has no checkpoint of the stable phase" in told(capsys, anneal, "--start_from", tmp_path / "anneal")
    assert "neither a checkpoint" in told(capsys, anneal, "--start_from", tmp_path / "cache")
    benchmark = f"[{{name = 'b', path = '{tmp_path / 'twoo.jsonl'}'}}]"
    assert "twoo.jsonl' names no text files; did you mean" in told(capsys, anneal, "--data.benchmarks", benchmark)
    held = f"[{{name = 'two', path = '{tmp_path / 'two.jsonl'}', holdout = '{tmp_path / 'held.jsonl'}'}}]"
    assert "held.jsonl' names no text files" in told(capsys, anneal, "--data.sources", held)


def test_a_dry_run_of_a_pretraining_looks_for_its_tokenizer(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(recipe_file), "--dry-run", "--tokenizer.path", str(tmp_path / "none.json")]
    assert run_recipe("pretrain", "", words) == 1
    assert "none.json" in capsys.readouterr().err


def test_what_a_run_has_not_come_to_yet_is_planned(recipe_file: Path, tmp_path: Path) -> None:
    train(load_recipe(recipe_file), progress=False)
    anneal = load_recipe(tmp_path / "anneal.toml")
    for start in (f"{tmp_path / 'run'}@30", f"{tmp_path / 'elsewhere'}@5"):
        assert plan(replace(anneal, start_from=start)).hours is None
    warming = {"run_dir": str(tmp_path / "warming"), "schedule.warmup": "1", "schedule.decay": "0"}
    train(load_recipe(recipe_file, warming), progress=False)
    for checkpoint in list_checkpoints(tmp_path / "warming")[-1:]:  # its last step is at the peak
        shutil.rmtree(checkpoint)
    assert plan(replace(anneal, start_from=str(tmp_path / "warming"))).hours is None


def test_under_torchrun_one_process_says_what_each_of_them_takes(
    recipe_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(recipe_file)
    alone, among = plan(recipe), plan(recipe, 4)
    assert recipe.model is not None
    assert alone.memory == memory_needed(recipe.model, 4 * recipe.data.seq_len, halves=False)
    assert among.memory == memory_needed(recipe.model, recipe.data.seq_len, halves=False)
    assert among.flops == alone.flops
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank, said in ((0, True), (3, False)):
        monkeypatch.setenv("RANK", str(rank))
        assert run_recipe("pretrain", "", [str(recipe_file), "--dry-run"]) == 0
        assert ("FLOPs" in capsys.readouterr().out) == said
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert run_recipe("pretrain", "", [str(recipe_file), "--dry-run"]) == 1
    assert "train.batch_size=4 cannot be divided among 3 processes; use a multiple of 3" in capsys.readouterr().err
