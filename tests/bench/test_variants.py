"""Lists of variants for `shardscope bench learn`: what each of them changes, and how an anneal takes its share."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import pytest
from tiny_run import ANNEAL, RECIPE, write_corpus

from shardscope.bench import learn
from shardscope.bench.variants import Variant, read_variants
from shardscope.config import ConfigError, Recipe
from shardscope.train.metrics import read_metrics

LISTS = Path(__file__).parents[2] / "recipes" / "ablations"

LIST = """
recipe = "tiny.toml"
[all]
"schedule.decay" = 0.5
[variants.plain]
[variants.adamw]
"optimizer.name" = "adamw"
"optimizer.lr" = 2e-3
[variants."three quarters"]
tokens = 0.75
[variants."its mix"]
anneal = { recipe = "anneal.toml", share = 0.25 }
[variants."the same"]
anneal = { recipe = "anneal.toml", share = 0.25, text = "pretrain" }
"""


@pytest.fixture
def variants(tmp_path: Path) -> Path:
    for number, name in enumerate(("one", "two")):
        write_corpus(tmp_path / f"{name}.jsonl", seed=number)
    (tmp_path / "tiny.toml").write_text(RECIPE.format(folder=tmp_path))
    (tmp_path / "anneal.toml").write_text(ANNEAL.format(folder=tmp_path))
    path = tmp_path / "list.toml"
    path.write_text(LIST)
    return path


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    learn.add_arguments(parser)
    return parser.parse_args(words)


def by_name(found: list[Variant]) -> dict[str, Variant]:
    return {variant.name: variant for variant in found}


def test_a_variant_is_its_recipe_with_the_changes_of_all_its_own_and_the_command_lines(variants: Path) -> None:
    found = by_name(read_variants([str(variants)], {"optimizer.lr": "5e-3"}, "cpu"))
    assert list(found) == ["plain", "adamw", "three quarters", "its mix", "the same"]
    assert {variant.recipe.optimizer.lr for variant in found.values()} == {5e-3}  # the command line comes last
    assert found["adamw"].recipe.optimizer.name == "adamw"
    assert found["plain"].recipe.schedule.decay == 0.5
    assert found["adamw"].changes == {"schedule.decay": "0.5", "optimizer.name": "adamw", "optimizer.lr": "5e-3"}


def test_an_annealed_variant_is_stable_before_and_reads_its_own_mix_or_more_of_the_same(variants: Path) -> None:
    found = by_name(read_variants([str(variants)], {}, "cpu"))
    for name, weights in (("its mix", {"two": 1, "one": 0}), ("the same", {"one": 2, "two": 1})):
        assert found[name].recipe.schedule.decay == 0
        anneal = found[name].anneal
        assert anneal is not None
        # What is not read is evaluated all the same, so that all of them are compared on the same text.
        assert {source.name: source.weight for source in anneal.data.sources} == weights


def test_only_the_variants_that_are_named_are_trained(variants: Path, tmp_path: Path) -> None:
    out = tmp_path / "learn.json"
    words = ["--tokens", "1024", "--evaluations", "1", "--device", "cpu", "--out", str(out)]
    assert learn.run(arguments(str(variants), *words, "--only", "three quarters", "plain")) == 0
    report = json.loads(out.read_text())
    assert [run["recipe"] for run in report["runs"]] == ["three quarters", "plain"]
    assert "--only 'three quarters' plain" in report["command"]
    with pytest.raises(ConfigError, match=r"--only 'adam': no such variant; did you mean .adamw"):
        learn.run(arguments(str(variants), *words, "--only", "adam"))


def test_all_variants_get_the_same_tokens_but_those_that_say_otherwise(variants: Path, tmp_path: Path) -> None:
    out, runs = tmp_path / "learn.json", tmp_path / "runs"
    words = ["--tokens", "2048", "--evaluations", "2", "--device", "cpu", "--keep", str(runs), "--out", str(out)]
    assert learn.run(arguments(str(variants), *words)) == 0
    report = json.loads(out.read_text())
    tokens = {one["recipe"]: one["tokens"] for one in report["runs"]}
    assert tokens == {"plain": 2048, "adamw": 2048, "three quarters": 1536, "its mix": 2048, "the same": 2048}
    (mixed,) = [one for one in report["runs"] if one["recipe"] == "its mix"]
    assert [point["tokens"] for point in mixed["curve"]] == [0, 768, 1536, 1792, 2048]
    logged = read_metrics(runs / "its-mix-seed0-anneal", "eval")[-1]
    assert mixed["curve"][-1]["bits_per_byte"]["two"] == logged["two"]["bits_per_byte"]
    before = read_metrics(runs / "its-mix-seed0", "event")[0]
    after = read_metrics(runs / "its-mix-seed0-anneal", "event")[0]
    assert after["started_from"].startswith(str(runs / "its-mix-seed0" / "checkpoints"))
    assert (before["steps"], after["steps"]) == (12, 4)


def test_the_table_shows_means_over_seeds_and_their_standard_deviation() -> None:
    finals = [1.0, 1.1, 1.6]
    runs = [
        {
            "recipe": "a", "changes": {}, "seed": seed, "tokens": 10, "seconds": 1.0, "tokens_per_second": 10.0,
            "wall_seconds": 1.0,
            "curve": [{"step": 1, "tokens": 10, "seconds": 1.0, "bits_per_byte": {"x": final, "all": final}}],
        }
        for seed, final in enumerate(finals)
    ]  # fmt: skip
    row = learn.table({"runs": runs}).splitlines()[-1]
    assert row.endswith(f"| {statistics.fmean(finals):.3f} | {sum(finals) / 3:.4f} ± {statistics.stdev(finals):.4f} |")


@pytest.mark.parametrize("name", ["shard-pico", "shard-nano"])
def test_the_committed_lists_are_of_what_the_card_chose(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDSCOPE_DATA", "text")
    found = by_name(read_variants([str(LISTS / f"{name}.toml")], {}, "cpu"))
    published = found["published"].recipe
    assert (published.optimizer.name, published.schedule.kind) == ("muon", "wsd")
    assert published.model is not None
    assert set(published.model.layer_kinds) == {"sliding", "global"}
    assert (published.model.logit_cap, published.optimizer.z_loss, published.model.qk_norm) == (30, 1e-4, False)
    rates = {v.recipe.optimizer.lr for v in found.values() if v.recipe.optimizer.name == "adamw"}
    assert len(rates) >= 3  # it was tuned
    assert [v.name for v in found.values() if v.tokens == 0.75] == ["published, 75 % of the tokens"]
    assert found["cosine"].recipe.schedule.kind == "cosine"
    globals_only, no_cap = found["all layers global"].recipe.model, found["no cap"].recipe.model
    assert globals_only is not None
    assert set(globals_only.layer_kinds) == {"global"}
    assert no_cap is not None
    assert no_cap.logit_cap == 1e4
    assert found["no z-loss"].recipe.optimizer.z_loss == 0
    annealed = [found["annealed on its mix"].anneal, found["annealed on more of the same"].anneal]
    mix, same = [recipe.data for recipe in annealed if isinstance(recipe, Recipe)]
    assert same == published.data
    names = {source.name for source in same.sources}
    assert names == {source.name for source in mix.sources}
    read = [{source.name: source.weight for source in data.sources} for data in (mix, same)]
    assert read[0] != read[1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("recipe =", "recipee ="), "unknown key 'recipee'; did you mean 'recipe'"),
        (('recipe = "tiny.toml"', ""), "names no recipe"),
        (("tiny.toml", "small.toml"), "no such recipe"),
        (("0.75", "1.5"), "variants.three quarters: tokens=1.5 is a share"),
        (("share = 0.25 }", "share = true }"), "anneal.share=True is a share"),
        (("share = 0.25 }", "share = 1 }"), "anneal.share is below 1"),
        (("share = 0.25 }", "part = 0.25 }"), "unknown key 'part'"),
        (('{ recipe = "anneal.toml", share = 0.25 }', "0.25"), 'write anneal = { recipe = "FILE", share = 0.3 }'),
        (('{ recipe = "anneal.toml"', '{ recipe = "tiny.toml"'), "tiny.toml is no anneal, its phase is 'pretrain'"),
        (('"optimizer.lr" = 2e-3', '"optimizer.lr" = -1'), "variants.adamw: .*optimizer.lr=-1"),
        (('"optimizer.lr" = 2e-3', "optimizer.lr = 2e-3"), 'optimizer is a table; write "optimizer.lr" ='),
        (("[variants.plain]", "[variants.the-same]"), "two recipes are called the-same"),
        (('recipe = "tiny.toml"', 'recipe = "anneal.toml"'), "only a pretraining begins with nothing learnt"),
    ],
)
def test_a_list_that_says_nothing_to_compare_is_one_sentence(
    change: tuple[str, str], sentence: str, variants: Path
) -> None:
    variants.write_text(LIST.replace(*change, 1))
    with pytest.raises(ConfigError, match=sentence):
        read_variants([str(variants)], {}, "cpu")
