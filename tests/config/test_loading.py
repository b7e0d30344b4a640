from __future__ import annotations

from pathlib import Path

import pytest
from minimal import MINIMAL, loaded

from shardscope.config import ConfigError, load_recipe, recipe_fields


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


def test_toml_without_end_is_one_sentence(tmp_path: Path) -> None:
    for text in ("x = " + "[" * 100_000, "x = " + "9" * 5000):
        with pytest.raises(ConfigError, match=r"recipe.toml: cannot be read as TOML: ") as caught:
            loaded(tmp_path, text)
        assert len(str(caught.value)) < 400


def test_a_missing_recipe_names_its_neighbour(tmp_path: Path) -> None:
    loaded(tmp_path)
    with pytest.raises(ConfigError, match="/dev/zero: cannot be read as TOML: a recipe has at most 1,048,576 bytes"):
        load_recipe("/dev/zero")
    (tmp_path / "keys.toml").write_text("\n".join(".".join(["a"] * 50_000) + f".b{n} = 1" for n in range(5)))
    with pytest.raises(ConfigError, match=r"keys\.toml: cannot be read as TOML: a line of it has more than 200 dots"):
        load_recipe(tmp_path / "keys.toml")
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
