"""The shortest recipe that loads, for tests that change a field of it."""

from __future__ import annotations

from pathlib import Path

from shardscope.config import Recipe, load_recipe

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
