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
        (
            {"data__sources": "[{name='a', path='b', weight=1e400}]"},
            "data.sources.a: weight=inf; use a number from 0 on",
        ),
        (
            {"data__sources": "[{name='a', path='b', weight=1e308}, {name='c', path='d', weight=1e308}]"},
            r"data.sources.weight=1e\+308 is above 1e\+12",
        ),
        ({"optimizer__betas": "[0.9, nan]"}, r"optimizer.betas=\(0.9, nan\) must lie"),
        ({"optimizer__lr": "1" + "0" * 400}, "optimizer.lr=inf must be finite"),
        ({"seed": str(2**70)}, f"seed={2**70} is above {2**53}"),
        ({"seed": "0x" + "f" * 5000}, f"seed=a number of 20000 bits is above {2**53}"),
        ({"seed": "9" * 5000}, "seed='9999.* is not allowed; use int"),
        ({"schedule__steps": "1" + "0" * 30}, r"schedule.steps=10* is above"),
        ({"train__batch_size": str(2**80)}, "train.batch_size=.* is above"),
        ({"model__n_layers": "0x" + "f" * 5000}, "model.n_layers=a number of 20000 bits is above 1024"),
        ({"seed": "[" * 100_000}, r"seed='\[\[.*…' is not allowed|seed='\[\[.*… is not allowed"),
        ({"data__sources": "[{name='a', path=\"C:\\data\\new\\x'}]"}, r"data.sources=.* is not a list"),
        (
            {"data__sources": '[{name="a", path="C:\\\\data\\new"}]'},
            r"path='C:.*' holds a control character; TOML reads",
        ),
    ],
)
def test_a_wrong_recipe_says_what_was_found_what_is_allowed_and_where(
    tmp_path: Path, overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(tmp_path, **overrides)


NUMBERS = [key for key, _, default in recipe_fields() if isinstance(default, float)]


def test_the_numbers_that_are_tried_are_all_there_are() -> None:
    assert {"model.rope_base", "optimizer.lr", "schedule.warmup", "train.max_minutes"} <= set(NUMBERS)


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_that_is_not_finite_is_refused_with_the_name_of_its_field(tmp_path: Path, key: str) -> None:
    for value in ("inf", "-inf", "nan", "1e400", "1e300"):
        with pytest.raises(ConfigError, match=f"{key}=.*"):
            loaded(tmp_path, **{key.replace(".", "__"): value})


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("2024", "2024"),
        ("2024-05-01", "2024-05-01"),
        ("12:30:00", "12:30:00"),
        ("1e5", "1e5"),
        ("0x10", "0x10"),
        ("true", "true"),
        ("inf", "inf"),
        ("[v2]", "[v2]"),
        ("[2]", "[2]"),
        ("{a=1}", "{a=1}"),
        ("v2 # second try", "v2 # second try"),
        ("'quoted'", "quoted"),
        ('"quoted"', "quoted"),
    ],
)
def test_a_word_for_a_text_is_that_text(tmp_path: Path, word: str, meant: str) -> None:
    recipe = loaded(tmp_path, name=word, run_dir=word, tokenizer__path=word)
    assert (recipe.name, str(recipe.folder), recipe.tokenizer.path) == (meant, meant, meant)


def test_backslashes_of_a_path_are_kept(tmp_path: Path) -> None:
    sources = r'[{name = "a", path = "C:\data\*.txt"}, {name = "b", path = "D:\xenon"}]'
    recipe = loaded(tmp_path, run_dir=r"C:\runs\new", data__sources=sources)
    assert recipe.run_dir == r"C:\runs\new"
    assert [source.path for source in recipe.data.sources] == [r"C:\data\*.txt", r"D:\xenon"]
    with pytest.raises(
        ConfigError, match=r"cannot be read as TOML: .* write a path with backslashes in 'single quotes'"
    ):
        loaded(tmp_path, MINIMAL.replace("builtin:prose", r"C:\data"))


def test_home_and_variables_in_a_path_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    assert loaded(tmp_path, run_dir="~/runs/x").folder == tmp_path / "runs" / "x"
    assert loaded(tmp_path, run_dir="'~/runs/x'").folder == tmp_path / "runs" / "x"
    assert loaded(tmp_path, run_dir="$SCRATCH/x").folder == Path("/scratch/me/x")
    for run_dir, message in (
        ("~nouser/x", "this machine knows no home folder '~nouser'"),
        ("$NOWHERE/x", "needs an environment variable that is not set"),
        ("${NOWHERE}/x", "needs an environment variable that is not set"),
    ):
        with pytest.raises(ConfigError, match=message):
            _ = loaded(tmp_path, run_dir=run_dir).folder


@pytest.mark.parametrize("name", ["../../x", "/etc", "a/b", "..", ".", "a\\b", "a\0b", "a\nb", "x" * 300, "\x1b[2J"])
def test_a_name_cannot_lead_out_of_the_folder_of_runs(tmp_path: Path, name: str) -> None:
    values = loaded(tmp_path).to_dict()
    with pytest.raises(ConfigError, match=r"name=.* names no folder") as caught:
        Recipe.from_dict({**values, "name": name})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("field", ["run_dir", "start_from"])
def test_a_path_with_a_control_character_is_refused(tmp_path: Path, field: str) -> None:
    values = loaded(tmp_path).to_dict()
    for path in ("a\0b", "C:\temp\new"):
        with pytest.raises(ConfigError, match=f"{field}=.* holds a control character"):
            Recipe.from_dict({**values, field: path})


def test_toml_without_end_is_one_sentence(tmp_path: Path) -> None:
    for text in ("x = " + "[" * 100_000, "x = " + "9" * 5000):
        with pytest.raises(ConfigError, match=r"recipe.toml: cannot be read as TOML: ") as caught:
            loaded(tmp_path, text)
        assert len(str(caught.value)) < 400


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
