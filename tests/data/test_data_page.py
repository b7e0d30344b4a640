"""docs/data.md says what is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from shardscope.config import Recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/data.md").read_text(encoding="utf-8")


def test_the_recipe_on_the_page_is_one() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    values = {"name": "page", "phase": "pretrain", "model": {"preset": "shard-nano"}, **tomllib.loads(block)}
    recipe = Recipe.from_dict(values)
    assert [source.name for source in recipe.data.sources] == ["stories", "web", "questions"]
    assert recipe.data.max_document_bytes == 64_000_000


def test_every_recipe_that_the_page_names_exists() -> None:
    for name in re.findall(r"recipes/[\w-]+\.toml", PAGE):
        assert (ROOT / name).exists()
