"""The parts of a model that can be blamed for a loop: every head and every MLP, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from shardscope.config import ConfigError, LayerKind, ShardConfig


class XrayError(ConfigError):
    """A text or a setting that has no X-ray; the message says why, and what is allowed."""


@dataclass(frozen=True, order=True)
class Part:
    """A head (`L3H5`), or a layer's MLP (`MLP3`), where `head` is None. Both count from 0."""

    layer: int
    head: int | None = None

    @property
    def name(self) -> str:
        return f"MLP{self.layer}" if self.head is None else f"L{self.layer}H{self.head}"

    @property
    def kind(self) -> Literal["head", "mlp"]:
        return "mlp" if self.head is None else "head"

    def layer_kind(self, config: ShardConfig) -> LayerKind:
        return config.layer_kinds[self.layer]


def parts_of(config: ShardConfig) -> list[Part]:
    """All heads, then all MLPs."""
    heads = [Part(layer, head) for layer in range(config.n_layers) for head in range(config.n_heads)]
    return heads + [Part(layer) for layer in range(config.n_layers)]


def find_parts(config: ShardConfig, names: Iterable[str]) -> list[Part]:
    """The parts of these names. Raises XrayError for a name that no part of this model has."""
    known = {part.name: part for part in parts_of(config)}
    found = []
    for name in names:
        plain = re.sub(r"[\s._-]", "", name).upper()
        if plain not in known:
            raise XrayError(
                f"{name!r} is no part of this model; its heads are L0H0 to "
                f"L{config.n_layers - 1}H{config.n_heads - 1}, and its MLPs MLP0 to MLP{config.n_layers - 1}"
            )
        found.append(known[plain])
    return found
