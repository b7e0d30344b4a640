"""What `shardscope bench learn` compares: recipes, and lists of one recipe's variants, as in recipes/ablations/.

recipe = "../shard-pico-pretrain.toml"    # beside the list
[all]                                     # changes of every variant: keys of a recipe
"schedule.decay" = 0.3
[variants."AdamW"]                        # a name, and changes of its own
"optimizer.name" = "adamw"
[variants."three quarters"]
tokens = 0.75                             # share of the tokens of the others
[variants."anneal mix"]                   # the last share of the tokens is an anneal of a recipe of its own
anneal = { recipe = "../shard-pico-anneal.toml", share = 0.3 }
[variants."more of the same"]             # ... with the text of the pretraining
anneal = { recipe = "../shard-pico-anneal.toml", share = 0.3, text = "pretrain" }
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shardscope.config import ConfigError, Recipe, load_recipe, suggest
from shardscope.resources import resource

KEYS = ("recipe", "all", "variants")
ANNEAL_KEYS = ("recipe", "share", "text")


@dataclass(frozen=True)
class Variant:
    """A recipe under a name; `changes` are those of the list and of the command line, for the report.

    `anneal` takes the last `share` of the tokens; `tokens` is the share of the tokens of the others that this one gets.
    """

    name: str
    recipe: Recipe
    changes: dict[str, str] = field(default_factory=dict)
    tokens: float = 1.0
    anneal: Recipe | None = None
    share: float = 0.0

    @property
    def file_name(self) -> str:
        """The name as part of a folder's."""
        return re.sub(r"[^\w.-]+", "-", self.name)


def read_variants(paths: Sequence[str], changes: Mapping[str, str], device: str) -> list[Variant]:
    """Every recipe, and every variant of every list, that `paths` name; `changes` come last and reach all of them.

    What is no file may be the name of a packaged recipe or list, as in shard-pico-pretrain or ablations/shard-pico.
    Raises ConfigError for what is neither, for a recipe that does not begin with nothing learnt, and for a name that
    occurs twice.
    """
    found: list[Variant] = []
    for path in map(_file, paths):
        found += _of_list(path, changes, device) if _is_list(path) else [_of_recipe(path, changes, device)]
    names = [variant.file_name for variant in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two recipes are called {twice}, by which their runs are told apart; rename one")
    for variant in found:
        if variant.recipe.phase != "pretrain":
            raise ConfigError(
                f"{variant.name}: phase={variant.recipe.phase!r}; only a pretraining begins with nothing learnt"
            )
    return _with_common_text(found)


def _with_common_text(variants: list[Variant]) -> list[Variant]:
    """The variants, each evaluated on the held-out text of all: what one of them does not read, it has at weight 0."""
    recipes = [recipe for variant in variants for recipe in (variant.recipe, variant.anneal) if recipe is not None]
    sources = {source.name: source for recipe in reversed(recipes) for source in recipe.data.sources}

    def completed(recipe: Recipe) -> Recipe:
        own = {source.name for source in recipe.data.sources}
        others = [replace(source, weight=0.0) for name, source in sources.items() if name not in own]
        return replace(recipe, data=replace(recipe.data, sources=(*recipe.data.sources, *others)))

    return [
        replace(variant, recipe=completed(variant.recipe), anneal=variant.anneal and completed(variant.anneal))
        for variant in variants
    ]


def _file(word: str) -> Path:
    packaged = resource("recipes") / f"{word}.toml"
    return packaged if not Path(word).exists() and packaged.is_file() else Path(word)


def _is_list(path: Path) -> bool:
    try:
        return "variants" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # load_recipe says what is wrong


def _of_recipe(path: Path, changes: Mapping[str, str], device: str) -> Variant:
    return Variant(path.stem, load_recipe(path, {**changes, "train.device": device}), dict(changes))


def _of_list(path: Path, changes: Mapping[str, str], device: str) -> list[Variant]:
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    _refuse_unknown(values, KEYS, str(path))
    if not isinstance(values.get("recipe"), str):
        raise ConfigError(f'{path}: names no recipe; write recipe = "FILE", beside the list')
    if not isinstance(values["variants"], dict) or not values["variants"]:
        raise ConfigError(f"{path}: holds no variant; write one as in [variants.plain]")
    common = _as_words(values.get("all", {}), f"{path}: all")
    return [
        _variant(path, values["recipe"], name, own, common, changes, device) for name, own in values["variants"].items()
    ]


def _variant(
    path: Path, recipe: str, name: str, own: Any, common: dict[str, str], changes: Mapping[str, str], device: str
) -> Variant:
    where = f"{path}: variants.{name}"
    if not isinstance(own, dict):
        raise ConfigError(f"{where}: {own!r} is not a table of changes")
    own = dict(own)
    tokens, annealed = own.pop("tokens", 1.0), own.pop("anneal", None)
    mine = {**common, **_as_words(own, where), **changes}
    try:
        made = load_recipe(path.parent / recipe, {**mine, "train.device": device})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    variant = Variant(name, made, mine, _share(tokens, f"{where}: tokens"))
    return variant if annealed is None else _with_anneal(variant, path, annealed, where, device)


def _with_anneal(variant: Variant, path: Path, annealed: Any, where: str, device: str) -> Variant:
    if not isinstance(annealed, dict) or not isinstance(annealed.get("recipe"), str):
        raise ConfigError(f'{where}: write anneal = {{ recipe = "FILE", share = 0.3 }}')
    _refuse_unknown(annealed, ANNEAL_KEYS, f"{where}: anneal")
    share = _share(annealed.get("share"), f"{where}: anneal.share")
    text = annealed.get("text", "anneal")
    if share == 1 or text not in ("anneal", "pretrain"):
        raise ConfigError(f"{where}: anneal.share is below 1, and anneal.text is 'anneal' or 'pretrain'")
    recipe = load_recipe(path.parent / annealed["recipe"], {"train.device": device})
    if recipe.phase != "anneal":
        raise ConfigError(f"{where}: {annealed['recipe']} is no anneal, its phase is {recipe.phase!r}")
    if text == "pretrain":
        recipe = replace(recipe, data=variant.recipe.data)
    stable = replace(variant.recipe.schedule, decay=0.0)
    return replace(variant, recipe=replace(variant.recipe, schedule=stable), anneal=recipe, share=share)


def _share(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(f"{what}={value!r} is a share; use a number above 0, at most 1")
    return float(value)


def _as_words(values: Any, where: str) -> dict[str, str]:
    """Changes as `--set` would spell them."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: {values!r} is not a table of changes")
    for key, value in values.items():
        if isinstance(value, dict):
            raise ConfigError(f'{where}: {key} is a table; write "{key}.{next(iter(value), "field")}" = … in quotes')
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def _refuse_unknown(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{suggest(key, known)}")
