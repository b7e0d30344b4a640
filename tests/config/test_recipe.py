from __future__ import annotations

import math
from datetime import date, datetime, time
from pathlib import Path

import pytest
from minimal import loaded

from shardscope.config import ConfigError, Recipe, load_recipe, recipe_fields

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_file_is_a_recipe(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.phase in path.stem


def test_a_recipe_survives_plain_data(tmp_path: Path) -> None:
    recipe = loaded(tmp_path)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"schedule__stepz": "3"}, r"recipe.toml: unknown key schedule.stepz; did you mean 'steps'\?"),
        ({"schedule__steps": "many"}, "schedule.steps='many' is not allowed; use a whole number"),
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
        ({"seed__x": "1"}, "seed=.* is not allowed; use a whole number"),
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
        ({"seed": "9" * 5000}, "seed='9999.* is not allowed; use a whole number"),
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


# Of every type that TOML has.
VALUES = [
    0, -1, 2, 2**70, 1.5, -0.0, math.nan, True, "", "x", "\0", [], [1], ["x"], [[]], [{}], {}, {"x": 1}, {"preset": 1},
    {"preset": []}, date(1979, 5, 27), datetime(1979, 5, 27, 7, 32), time(7, 32),
]  # fmt: skip


def test_whatever_type_stands_at_a_key_it_is_taken_or_refused_in_a_sentence_that_names_the_key(tmp_path: Path) -> None:
    whole = loaded(tmp_path).to_dict()
    (source,) = whole["data"]["sources"]
    places = [
        *(key for key, *_ in recipe_fields()), *(key for key, value in whole.items() if isinstance(value, dict)),
        "model.preset", *(f"data.sources.{key}" for key in source),
    ]  # fmt: skip
    refused = {}
    for place in places:
        table, _, key = place.rpartition(".")
        for value in VALUES:
            if table == "data.sources":
                values = {**whole, "data": {**whole["data"], "sources": [{**source, key: value}]}}
            else:
                values = {**whole, table: {**whole[table], key: value}} if table else {**whole, key: value}
            try:
                Recipe.from_dict(values)
            except ConfigError as error:
                refused[place, str(value)] = str(error)
            except Exception as error:
                error.add_note(f"{place} = {value!r}")
                raise
    assert len(refused) > len(places) * len(VALUES) / 2
    assert not [sentence for sentence in refused.values() if "\n" in sentence]
    unnamed = {place: sentence for place, sentence in refused.items() if place[0].split(".")[-1] not in sentence}
    assert not unnamed


NUMBERS = [key for key, _, default in recipe_fields() if isinstance(default, float)]


def test_the_numbers_that_are_tried_are_all_there_are() -> None:
    assert {"model.rope_base", "optimizer.lr", "schedule.warmup", "train.max_minutes"} <= set(NUMBERS)


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_that_is_not_finite_is_refused_with_the_name_of_its_field(tmp_path: Path, key: str) -> None:
    for value in ("inf", "-inf", "nan", "1e400", "1e300"):
        with pytest.raises(ConfigError, match=f"{key}=.*"):
            loaded(tmp_path, **{key.replace(".", "__"): value})


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
