"""What the reference run would take, said before anything is downloaded, and instead of it where there is no GPU."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_reproduction import make_recipes

from shardscope import ShardConfig
from shardscope.cli import main
from shardscope.config import load_recipe
from shardscope.reproduce.offer import HUB, LOCAL, SMALLER, default_recipes, needs
from shardscope.reproduce.pair import load_pair
from shardscope.resources import resource
from shardscope.train.flops import flops_per_token

CARDS_CORPORA = {
    "open-web-math/open-web-math", "HuggingFaceFW/fineweb-edu", "AI-MO/NuminaMath-CoT", "meta-math/MetaMathQA",
    "common-pile/arxiv_papers", "HuggingFaceTB/cosmopedia", "allenai/ai2_arc",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("SHARDSCOPE_DATA", raising=False)


@pytest.mark.parametrize("words", [HUB, ("shard-54m-pretrain", "shard-54m-anneal")], ids=" ".join)
def test_the_recipes_name_the_cards_corpora_on_the_hub(words: tuple[str, str]) -> None:
    pretrain, anneal = (load_recipe(resource("recipes") / f"{word}.toml") for word in words)
    assert pretrain.model == ShardConfig.preset("shard-54m")
    assert {source.path.split(":")[1] for source in pretrain.data.sources} == {"HuggingFaceFW/fineweb-edu"}
    assert {source.path.split(":")[1] for source in anneal.data.sources} == CARDS_CORPORA
    assert sum(source.weight for source in anneal.data.sources) == pytest.approx(1)
    for recipe in (pretrain, anneal):
        assert recipe.data.overlap == "drop"
        assert {"arc-easy", "arc-challenge", "gsm8k"} <= {benchmark.name for benchmark in recipe.data.benchmarks}


@pytest.mark.parametrize("words", [HUB, *SMALLER], ids=" ".join)
def test_no_source_is_read_more_than_eight_times_in_both_phases(words: tuple[str, str]) -> None:
    found = needs(load_pair(words, Path("runs")))
    read: dict[str, float] = {}
    for planned in (found.pretrain, found.anneal):
        for source in planned.sources:
            assert source.passes is not None, "each names about how many tokens it holds"
            read[source.name] = read.get(source.name, 0.0) + source.passes
    assert max(read.values()) <= 8.5  # sizes are estimates


def test_without_a_gpu_it_says_what_it_would_take_and_offers_smaller_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert main(["reproduce"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("No GPU was found. The reference run (reference-pretrain, reference-anneal: 54,538,752 ")
    assert "12 min on one H100" in said
    for pair in SMALLER:
        assert f"shardscope reproduce --recipes {pair[0]} {pair[1]}" in said


def test_a_name_that_is_no_task_is_no_reason_for_an_offer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--device", "cpu", "--tasks", "shard_gsm9k"]) == 1
    said = capsys.readouterr()
    assert said.err == "error: --tasks shard_gsm9k: no such task; did you mean 'shard_gsm8k'?\n"
    assert said.out == ""


def test_the_needs_of_a_pair_are_those_of_both_phases() -> None:
    pair = load_pair(("shard-pico-pretrain", "shard-pico-anneal"), Path("runs"), checkpoints=20)
    found = needs(pair)
    a_token = flops_per_token(ShardConfig.preset("shard-pico"), 512)
    assert found.flops == pytest.approx((210 + 80) * 8 * 512 * a_token)
    assert [run.phase for run, _ in pair.checkpoints()] == ["pretrain"] * 14 + ["anneal"] * 6
    assert found.disk == 12 * 20 * pair.model.n_params


def test_a_dry_run_prints_both_plans_and_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes = make_recipes(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["reproduce", "--recipes", *recipes, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("learning rate (Muon's") == 2
    assert said.count("FLOPs\nabout") == 2  # of the anneal, too, whose start is not there yet
    assert "together: " in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_text_is_read_where_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_recipes() == HUB
    monkeypatch.setenv("SHARDSCOPE_DATA", "text")
    assert default_recipes() == LOCAL


@pytest.mark.parametrize("phase", ["pretrain", "anneal"])
def test_both_forms_of_the_reference_run_differ_in_their_text_alone(phase: str) -> None:
    hub, local = (load_recipe(resource("recipes") / f"reference-{phase}{form}.toml") for form in ("", "-local"))
    assert replace(local, name=hub.name, start_from=hub.start_from, data=hub.data) == hub
    assert hub.data.seq_len == local.data.seq_len
