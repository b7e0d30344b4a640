"""Fields that explain themselves, and what holds for every number in one."""

from __future__ import annotations

import math
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any

from shardscope.config.errors import require, shown


def choice(default: Any = MISSING, *, help: str) -> Any:
    """A dataclass field whose `help` is what `--help` prints for it."""
    if isinstance(default, (list, dict)) or callable(default):
        return field(default_factory=default, metadata={"help": help})
    return field(default=default, metadata={"help": help})


# Above these a number is a mistake: no run takes as many steps or sees as many documents, and products of two such
# rates, shares or caps still fit into float32.
_LARGEST_COUNT, _LARGEST_NUMBER = 2**53, 1e12


def require_usable_numbers(config: Any, where: str) -> None:
    """Every number in a dataclass, however deep, is finite and of a size that can be counted to."""
    for item in fields(config):
        value = getattr(config, item.name)
        for part in value if isinstance(value, tuple) else (value,):
            if is_dataclass(part):
                require_usable_numbers(part, f"{where}{item.name}.")
            elif isinstance(part, float):
                require(math.isfinite(part), f"{where}{item.name}={value!r} must be finite")
                require(abs(part) <= _LARGEST_NUMBER, f"{where}{item.name}={value!r} is above {_LARGEST_NUMBER:g}")
            elif isinstance(part, int):
                require(abs(part) <= _LARGEST_COUNT, f"{where}{item.name}={shown(value)} is above {_LARGEST_COUNT}")
