"""`shardscope bench learn`: runs of the trainer, told apart by recipe and seed, and a table of what they learnt."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import tomllib
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import pytest
import torch

from shardscope.bench import learn
from shardscope.bench.variants import read_variants
from shardscope.config import PRESETS, ConfigError, load_recipe
from shardscope.train import Outcome
from shardscope.train.metrics import read_metrics

DOCS = Path(__file__).parents[2] / "docs"
RECIPES = DOCS.parent / "recipes"
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


@pytest.mark.parametrize(("compile", "resets"), [("on", 1), ("off", 0)])
def test_each_run_is_compiled_as_if_it_were_the_first(
    compile: str, resets: int, recipes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of models of many shapes would pass the compiler's limit of versions and run uncompiled, slowly."""
    done: list[bool] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: done.append(True))
    monkeypatch.setattr(learn, "train", lambda recipe: Outcome("paused early", "no time", 0, Path(), {}))
    recipe = load_recipe(recipes[0], {"train.compile": compile, "train.device": "cpu"})
    with pytest.raises(ConfigError, match=r"the run was stopped \(no time\)"):
        learn._train(recipe)
    assert len(done) == resets


def test_what_cannot_be_compared_is_one_sentence(recipes: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two recipes are called plain, by which their runs are told apart"):
        learn.run(arguments(recipes[0], recipes[0], "--device", "cpu"))
    with pytest.raises(ConfigError, match="--set 'lr': write KEY=VALUE"):
        learn.run(arguments(recipes[0], "--set", "lr", "--device", "cpu"))
    with pytest.raises(ConfigError, match="--evaluations 0 measures nothing; use at least 1"):
        learn.run(arguments(recipes[0], "--evaluations", "0", "--device", "cpu"))
    with pytest.raises(ConfigError, match="--seeds: 3 is named twice, and would learn the same twice"):
        learn.run(arguments(recipes[0], "--seeds", "3", "1", "3", "--device", "cpu"))


def test_a_run_that_was_kept_is_not_made_longer(recipes: list[str], tmp_path: Path) -> None:
    """The longer one would have warmed up for longer, so what goes on from the shorter one is another run."""
    words = [recipes[0], "--evaluations", "1", "--device", "cpu", "--keep", str(tmp_path / "runs"), "--tokens"]
    assert learn.run(arguments(*words, "640")) == 0
    assert learn.run(arguments(*words, "640")) == 0
    with pytest.raises(
        ConfigError, match="plain-seed0: holds a run of 5 steps, and this one has 10; give --keep anoth"
    ):
        learn.run(arguments(*words, "1280"))


def test_a_run_that_does_not_learn_is_named_and_the_others_are_compared_all_the_same(
    recipes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rate, path, choice in (("3", recipes[0], "pause"), ("2e-3", recipes[1], "report")):
        Path(path).write_text(
            Path(path).read_text().replace("[train]", f'[optimizer]\nlr = {rate}\n[train]\non_trouble = "{choice}"')
        )
    words = [*recipes, "--tokens", "7680", "--evaluations", "1", "--device", "cpu", "--out", str(tmp_path / "out.json")]
    assert learn.run(arguments(*words)) == 0
    wild, calm = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert wild["tokens"] == calm["tokens"] == 7680
    assert calm["troubles"] == []
    assert any(" since step " in trouble for trouble in wild["troubles"])
    said = capsys.readouterr().out
    assert all(f"plain, seed 0: {trouble}" in said for trouble in wild["troubles"])
    assert "other, seed 0" not in said


def test_packaged_recipes_and_lists_go_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # without a checkout at hand
    names = [variant.name for variant in read_variants(["shard-pico-pretrain", "ablations/shard-pico"], {}, "cpu")]
    assert names[:2] == ["shard-pico-pretrain", "published"]
    with pytest.raises(ConfigError, match="shard-pico-pretrian: no such recipe"):
        read_variants(["shard-pico-pretrian"], {}, "cpu")


def page() -> str:
    return (DOCS / "learning.md").read_text(encoding="utf-8")


def benchmark(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def finals(report: dict[str, Any], recipe: str) -> list[float]:
    return [one["curve"][-1]["bits_per_byte"]["all"] for one in report["runs"] if one["recipe"] == recipe]


@pytest.mark.parametrize(("name", "speeds"), [("learn-h100", True), ("ablations-nano-h100", False)])
def test_the_tables_in_the_docs_are_those_the_numbers_give(name: str, speeds: bool) -> None:
    shown = page().partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")[0]
    assert shown == learn.table(benchmark(name), speeds)


def test_the_docs_say_what_the_published_architecture_reaches_and_by_how_much_one_step_further_misses() -> None:
    report, text = benchmark("learn-h100"), " ".join(page().split())
    published, further = finals(report, "C"), finals(report, "F")
    assert len(published) == len(further) == 3
    assert max(published) <= 1.055
    assert f"C, reaches {fmean(published):.3f} ± {stdev(published):.4f}" in text
    seconds = median(one["seconds"] for one in report["runs"] if one["recipe"] == "F")
    assert f"F has {fmean(further):.3f} ± {stdev(further):.4f} after {seconds:.0f} seconds" in text
    assert f"the best seed {min(further):.3f}" in text
    assert f"F misses it by {fmean(further) - 1.013:.3f}" in text


def test_muon_needs_less_than_three_quarters_of_the_steps_of_adamw_at_its_best_rate() -> None:
    report = benchmark("ablations-nano-h100")
    names = {one["recipe"] for one in report["runs"]}
    assert all(len(finals(report, name)) == 3 for name in names), "three seeds of each"
    adamw = {name: fmean(finals(report, name)) for name in names if name.startswith("AdamW")}
    best = min(adamw, key=adamw.__getitem__)
    rates = sorted(float(name.rpartition(" ")[2]) for name in adamw)
    assert rates[0] < float(best.rpartition(" ")[2]) < rates[-1], "the best rate lies between others"
    muon = fmean(finals(report, "published, 75 % of the tokens"))
    assert muon < adamw[best]
    assert f"{best.rpartition(' ')[2]}, ends at {adamw[best]:.3f}; Muon is at {muon:.3f}" in " ".join(page().split())


def test_every_variant_of_the_list_was_trained_and_no_other() -> None:
    listed = tomllib.loads((RECIPES / "ablations" / "shard-nano.toml").read_text(encoding="utf-8"))["variants"]
    assert {one["recipe"] for one in benchmark("ablations-nano-h100")["runs"]} == set(listed)


def test_the_recipe_that_goes_one_step_further_is_the_one_that_was_measured_with_no_parameter_more() -> None:
    recipe = load_recipe(RECIPES / "shard-54m-minutes-further-pretrain-local.toml", {})
    assert recipe.model is not None
    assert recipe.model.n_params == PRESETS["shard-54m"].n_params
    own = load_recipe(RECIPES / "shard-54m-minutes-pretrain-local.toml", {})
    (changes,) = {json.dumps(one["changes"]) for one in benchmark("learn-h100")["runs"] if one["recipe"] == "F"}
    measured = load_recipe(RECIPES / "shard-54m-minutes-pretrain-local.toml", json.loads(changes))
    assert replace(measured, name=recipe.name) == recipe != replace(own, name=recipe.name)


def test_the_speeds_in_the_docs_are_those_of_the_benchmarks() -> None:
    text, loop, bare = " ".join(page().split()), benchmark("learn-h100")["loop"], benchmark("train-h100")
    rows = [row for key, found in bare.items() if key.startswith("rows") for row in found]
    for speed in (loop["tokens_per_second"], *(row["tokens_per_second"] for row in rows)):
        assert f"{speed:,.0f}" in text


def test_the_built_in_model_was_retrained_and_is_still_the_better_choice() -> None:
    tries = json.loads((DOCS / "reference" / "shard-nano-retrained.json").read_text(encoding="utf-8"))["tries"]
    logged = read_metrics(DOCS / "reference", "eval", "shard-nano-anneal.metrics.jsonl")
    shipped = logged[-1]["all"]["bits_per_byte"]
    for one in tries.values():
        found = one["anneal"]["held_out_bits_per_byte"]["all"]
        assert f"{found:.4f}" in page()
        assert found > 0.98 * shipped, "a gain of 2 % would have to be shipped"
        assert one["pretrain"]["tokens"] == 7_000 * 65_536
        assert one["anneal"]["tokens"] == 3_000 * 65_536
    assert f"instead of {shipped:.4f}" in " ".join(page().split())


def test_the_pictures_in_the_docs_are_drawn_from_the_benchmarks(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib, which `make test` installs")
    runpy.run_path(str(DOCS.parent / "scripts" / "learning_pictures.py"))["main"](tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    shown = set(re.findall(r"\(images/([^)]*)\)", page()))
    assert drawn == shown
    for name in shown:
        ours, theirs = ((folder / name).read_bytes()[16:24] for folder in (tmp_path, DOCS / "images"))
        assert ours == theirs, "as wide and as high"
