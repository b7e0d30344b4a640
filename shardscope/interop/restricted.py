"""Reading a pickled checkpoint without running anything from it.

torch's `weights_only` unpickler builds tensors and plain containers and nothing else. A published checkpoint also holds
an instance of its author's `Config` class; every class of that kind, known by its name, becomes a bag of plain values
here. The class itself is never imported. A file that names any other function or class is refused before unpickling
begins: its opcodes are first read for names, and none of them is executed. torch can do this for its zip layout, so
that is the only one that is read.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shardscope.config import ConfigError

_SETTINGS_CLASS = re.compile(r"(?:\w+\.)*\w*(?:Config|Cfg|Args|Namespace)")
_WEIGHTS_KEYS = ("model", "state_dict", "model_state_dict")
_CONFIG_KEYS = ("cfg", "config")


class OriginalError(ConfigError):
    """A checkpoint that cannot be read safely or does not hold a Shard; the message says what was found."""


class Settings:
    """What stands in for a pickled config object: its values, none of its code."""


def read_original(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config values, weights by name) of a file `{"cfg": …, "model": state_dict}`.

    Raises OriginalError when the file names anything but tensors, containers and a config class, or lacks either part.
    """
    path = Path(path)
    contents = _load(path, _settings_classes(path))
    if not isinstance(contents, Mapping):
        raise OriginalError(f"{path}: holds a {type(contents).__name__}, not a table with 'cfg' and 'model'")
    weights = _first(contents, _WEIGHTS_KEYS, path)
    config = _first(contents, _CONFIG_KEYS, path)
    values = vars(config) if isinstance(config, Settings) else config
    if not isinstance(values, Mapping):
        raise OriginalError(f"{path}: its config is a {type(values).__name__}, not a table of values")
    if not isinstance(weights, Mapping) or not weights:
        raise OriginalError(f"{path}: its weights are no table of tensors")
    for name, weight in weights.items():
        if not isinstance(weight, Tensor) or weight.layout != torch.strided or weight.is_meta:
            raise OriginalError(f"{path}: the weight {name!r} is a {type(weight).__name__}, not a plain tensor")
        if weight.is_floating_point() and weight.dtype.itemsize == 1:
            raise OriginalError(f"{path}: the weight {name!r} is {weight.dtype}; 8-bit floats have scales elsewhere")
    return dict(values), {str(name): weight.detach() for name, weight in weights.items()}


def _settings_classes(path: Path) -> list[str]:
    """The config classes that the file names. Raises OriginalError when it names anything else of its own."""
    if not path.is_file():
        raise OriginalError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):  # other layouts cannot be scanned before they are unpickled
        raise OriginalError(
            f"{path}: not in torch.save's zip layout (torch 1.6 and later), or cut off; an older file becomes one with "
            "torch.save(torch.load(OLD, weights_only=True), NEW)"
        )
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception as error:  # whatever a malformed pickle makes the scanner stumble over
        raise OriginalError(f"{path}: not a checkpoint written by torch.save: {_first_line(error)}") from None
    foreign = sorted(name for name in named if not _SETTINGS_CLASS.fullmatch(name))
    if foreign:
        raise OriginalError(
            f"{path}: refused, nothing was run: the file would call {', '.join(foreign)}; "
            "only tensors, plain containers and a Config are read"
        )
    return list(named)


def _load(path: Path, settings: list[str]) -> Any:
    try:
        with torch.serialization.safe_globals([(Settings, name) for name in settings]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the opcodes lead to
        raise OriginalError(f"{path}: refused by the restricted unpickler: {_first_line(error)}") from None


def _first(contents: Mapping[Any, Any], keys: tuple[str, ...], path: Path) -> Any:
    for key in keys:
        if key in contents:
            return contents[key]
    raise OriginalError(f"{path}: has none of the keys {', '.join(keys)}; found {', '.join(map(str, contents))}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
