"""Dataclasses out of plain data: a TOML table, a JSON object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import dacite

from shardscope.config.errors import ConfigError, shown, suggest

# What a person calls a type.
_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """`kind` from plain data. An unknown key or a wrong type is an error that names the key."""
    prefix = f"{where}." if where else ""
    _refuse_unknown_keys(kind, values, prefix)
    try:
        return dacite.from_dict(kind, dict(values), dacite.Config(cast=[tuple], type_hooks={float: _float}))
    except dacite.MissingValueError as error:
        raise ConfigError(f"{prefix}{error.field_path} is missing; every {kind.__name__} needs it") from None
    except dacite.WrongTypeError as error:
        allowed = _WORDS.get(error.field_type) or getattr(error.field_type, "__name__", None) or str(error.field_type)
        if get_origin(error.field_type) is Literal:
            allowed = " or ".join(repr(option) for option in get_args(error.field_type))
        raise ConfigError(f"{prefix}{error.field_path}={shown(error.value)} is not allowed; use {allowed}") from None


def _refuse_unknown_keys(kind: type, values: Mapping[str, Any], prefix: str) -> None:
    hints = get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"unknown key {prefix}{key}{suggest(key, hints)}")
        if get_origin(hints[key]) is tuple and not isinstance(value, (list, tuple)):
            found = shown(value)
            raise ConfigError(f"{prefix}{key}={found} is not a list; write it in brackets, as in [{found}]")
        nested = next((h for h in (hints[key], *get_args(hints[key])) if is_dataclass(h)), None)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(nested, type) and isinstance(item, Mapping):
                _refuse_unknown_keys(nested, item, f"{prefix}{key}.")


def _float(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf  # which no field allows
