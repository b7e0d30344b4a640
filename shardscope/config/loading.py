"""A recipe out of a TOML file and the words of a command line, and the fields that those words can set."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from shardscope.config.errors import ConfigError, suggest_close
from shardscope.config.recipe import Recipe

MOST_RECIPE = 2**20  # bytes
MOST_DOTS = 200  # in a line


def load_recipe(path: str | Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The recipe in a TOML file, with `overrides` (dotted key to TOML value, as text) put over it.

    Raises ConfigError with the file, the key, what was found and what is allowed.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:  # a pipe is read, too, but not without end
            data = file.read(MOST_RECIPE + 1)
        if len(data) > MOST_RECIPE:
            raise ValueError(f"a recipe has at most {MOST_RECIPE:,} bytes")
        text = data.decode("utf-8")
        # tomllib takes memory that grows with the square of a key's parts.
        if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
            raise ValueError(f"a line of it has more than {MOST_DOTS} dots")
        values = tomllib.loads(text)
    except FileNotFoundError:
        near = [str(p) for p in sorted(path.parent.glob("*.toml"))] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such recipe{suggest_close(str(path), near)}") from None
    except RecursionError:
        raise ConfigError(f"{path}: cannot be read as TOML: it is nested too deeply") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, not TOML, or a number of 5,000 digits
        hint = "; write a path with backslashes in 'single quotes'" if re.search(r"\\|escape|hex", str(error)) else ""
        raise ConfigError(f"{path}: cannot be read as TOML: {error}{hint}") from None
    for key, text in (overrides or {}).items():
        _put(values, key.split("."), _override(key, text))
    try:
        return Recipe.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def recipe_fields(kind: type = Recipe, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """(dotted key, help, default) of every field that a command line can override."""
    hints = get_type_hints(kind)
    for item in fields(kind):
        nested = _nested(hints[item.name])
        if nested is not None:
            yield from recipe_fields(nested, f"{prefix}{item.name}.")
            continue
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        yield prefix + item.name, item.metadata["help"], default


def _toml_value(text: str) -> Any:
    """A command-line word as TOML reads it; a word that is no TOML value is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _override(key: str, text: str) -> Any:
    """A command-line word as the field `key` means it: for a text the word itself, for anything else a TOML value."""
    value = _toml_value(text)
    hint = _hints_by_key().get(key)
    if hint is str or get_origin(hint) is Literal:
        return value if isinstance(value, str) else text  # 2024 and 2024-05-01 may be names
    if get_origin(hint) is tuple and isinstance(value, str) and "\\" in text:
        return _toml_value(text.replace("\\", "\\\\"))  # a list of paths as Windows writes them
    return value


@cache
def _hints_by_key(kind: type = Recipe, prefix: str = "") -> dict[str, Any]:
    """The type of every field by its dotted key."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        nested = _nested(hint)
        found |= {prefix + name: hint} if nested is None else _hints_by_key(nested, f"{prefix}{name}.")
    return found


def _nested(hint: Any) -> type | None:
    """The dataclass that a field holds, if it holds one; not of those in a list."""
    kinds = [h for h in (hint, *get_args(hint)) if isinstance(h, type) and is_dataclass(h)]
    return kinds[0] if kinds and get_origin(hint) is not tuple else None


def _put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{'.'.join(keys)}: {key!r} is a single value, not a table")
    values[keys[-1]] = value
