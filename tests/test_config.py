from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shardscope import ShardConfig
from shardscope.config import PRESETS, ConfigError, Recipe, load_recipe, recipe_fields

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
MINIMAL = """
name = "x"
phase = "pretrain"
[model]
preset = "shard-pico"
[data]
seq_len = 128
sources = [{ name = "prose", path = "builtin:prose" }]
"""


def loaded(tmp_path: Path, text: str = MINIMAL, **overrides: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return load_recipe(path, {key.replace("__", "."): value for key, value in overrides.items()})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_file_is_a_recipe(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.phase in path.stem


def test_the_presets_keep_the_ideas_of_the_published_model() -> None:
    for config in PRESETS.values():
        assert config.layer_kinds[0] == "sliding"
        assert config.layer_kinds[-1] == "global"
        assert config.window <= config.n_ctx / 8
        assert config.logit_cap == 30
    assert PRESETS["shard-nano"].vocab_size == PRESETS["shard-54m"].vocab_size == 8192
    assert 6.5e6 < PRESETS["shard-nano"].n_params < 7.5e6
    assert PRESETS["shard-nano"].n_params * 2 < 15e6, "bf16 weights, tokenizer and card have to stay under 16 MB"
    assert 0.9e6 < PRESETS["shard-pico"].n_params < 1.1e6


def test_the_last_layer_is_global_whatever_the_pattern() -> None:
    assert ShardConfig(n_layers=3, layer_pattern="S").layer_kinds == ("sliding", "sliding", "global")
    assert ShardConfig(n_layers=5, layer_pattern="SSG").layer_kinds == (
        "sliding",
        "sliding",
        "global",
        "sliding",
        "global",
    )
    assert ShardConfig(layer_pattern="G").windows == (None,) * 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_pattern": "SSL"}, r"layer_pattern='SSL' has unknown layer kinds \['L'\]; use S \(sliding\) and G"),
        ({"layer_pattern": ""}, "layer_pattern='' has unknown layer kinds"),
        ({"d_head": 7}, "d_head=7 is odd"),
        ({"window": 9000}, "window=9000 is longer than model.n_ctx=8192"),
        ({"n_layers": 0}, "n_layers=0 is not a positive whole number"),
        ({"vocab_size": 70_000}, "vocab_size=70000 is above 65536"),
        ({"n_ctx": 10**12}, "n_ctx=1000000000000 is above 1048576; the table of rotary angles"),
        ({"n_layers": 10**6}, "n_layers=1000000 is above 1024"),
        ({"d_head": 10**30}, "d_head=1000000000000000000000000000000 is above 65536"),
        ({"norm_eps": 0.0}, "norm_eps=0.0 must be above 0"),
    ],
)
def test_a_model_cannot_exist_in_a_wrong_state(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShardConfig(**change)  # type: ignore[arg-type]


def test_a_config_survives_plain_data() -> None:
    config = ShardConfig.preset("shard-nano", window=128)
    assert ShardConfig.from_dict(config.to_dict()) == config
    assert ShardConfig.from_dict({"preset": "shard-nano", "window": 128}) == config


def test_a_recipe_survives_plain_data(tmp_path: Path) -> None:
    recipe = loaded(tmp_path)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"schedule__stepz": "3"}, r"recipe.toml: unknown key schedule.stepz; did you mean 'steps'\?"),
        ({"schedule__steps": "many"}, "schedule.steps='many' is not allowed; use int"),
        ({"schedule__kind": "wds"}, "schedule.kind='wds' is not allowed; use 'wsd' or 'cosine'"),
        ({"schedule__warmup": "0.9", "schedule__decay": "0.5"}, "overlap; their sum may not pass 1"),
        ({"train__micro_batch": "5"}, "micro_batch=5 does not divide train.batch_size=64"),
        ({"data__sources": "[]"}, "data.sources is empty; name at least one source"),
        ({"data__seq_len": "1024"}, "data.seq_len=1024 is longer than model.n_ctx=512"),
        ({"model__preset": "shard-nan"}, r"unknown model preset 'shard-nan'; did you mean 'shard-nano'\?"),
        ({"phase": "anneal"}, "an anneal needs start_from"),
        ({"optimizer__betas": "0.9"}, r"optimizer.betas=0.9 is not a list; write it in brackets, as in \[0.9\]"),
        ({"data__sources": "3"}, "data.sources=3 is not a list"),
        ({"train__loggers": "wandb"}, r"train.loggers='wandb' is not a list; write it in brackets, as in \['wandb'\]"),
        ({"optimizer__lr": "-1"}, "optimizer.lr=-1.0 must be above 0"),
        ({"sede": "1"}, r"unknown key sede; did you mean 'seed'\?"),
        ({"seed__x": "1"}, "seed=.* is not allowed; use int"),
        ({"data__sources": "[{name='a', path='b', wieght=2}]"}, r"data.sources.wieght; did you mean 'weight'\?"),
    ],
)
def test_a_wrong_recipe_says_what_was_found_what_is_allowed_and_where(
    tmp_path: Path, overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(tmp_path, **overrides)


def test_a_missing_recipe_names_its_neighbour(tmp_path: Path) -> None:
    loaded(tmp_path)
    with pytest.raises(ConfigError, match=r"recip.toml: no such recipe; did you mean '.*recipe.toml'\?"):
        load_recipe(tmp_path / "recip.toml")


def test_broken_toml_is_reported_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe.toml: cannot be read as TOML: .*line 2"):
        loaded(tmp_path, "name = 'x'\nphase = = 2")


def test_overrides_are_toml_and_words_are_strings(tmp_path: Path) -> None:
    recipe = loaded(
        tmp_path, schedule__steps="1_000", optimizer__betas="[0.8, 0.9]", name="plain-word", data__mask_documents="true"
    )
    assert (recipe.schedule.steps, recipe.optimizer.betas, recipe.name) == (1000, (0.8, 0.9), "plain-word")
    assert recipe.data.mask_documents is True


def test_every_field_can_be_overridden_and_explains_itself(tmp_path: Path) -> None:
    fields = {key: text for key, text, _ in recipe_fields()}
    assert {"schedule.steps", "model.window", "train.max_minutes", "run_dir", "tokenizer.path"} <= fields.keys()
    assert all(len(text) > 8 for text in fields.values())


def test_a_frozen_config_changes_only_by_making_another() -> None:
    config = ShardConfig.preset("shard-pico")
    with pytest.raises(AttributeError):
        config.window = 3  # type: ignore[misc]
    assert replace(config, window=3).window == 3
