"""What an atlas samples: prompts, temperatures, seeds and a length. Rates of other settings are not comparable."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import dacite

from shardscope.config import ConfigError
from shardscope.failures.prompts import SuitePrompt, load_suite


class AtlasError(ConfigError):
    """An atlas that cannot be made or read; the message says which and why."""


@dataclass(frozen=True, kw_only=True)
class AtlasSettings:
    """Every prompt is continued at every temperature, `seeds` times each; greedily (temperature 0) only once."""

    prompts: tuple[SuitePrompt, ...] = field(default_factory=lambda: tuple(load_suite()))
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
    seeds: int = 2
    seed: int = 0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        names = [prompt.id for prompt in self.prompts]
        _require(bool(names), "prompts is empty; give at least one")
        _require(len(set(names)) == len(names), "two prompts have the same id; change one")
        _require(bool(self.temperatures), "temperatures is empty; give at least one, such as 0 (greedy)")
        for temperature in self.temperatures:
            fits = math.isfinite(temperature) and temperature >= 0
            _require(fits, f"temperature {temperature:g} must be 0 (greedy) or above, and finite")
        distinct = len(set(self.temperatures)) == len(self.temperatures)
        _require(distinct, "a temperature is given twice; name each once")
        _require(self.seeds >= 1, f"seeds={self.seeds} must be at least 1")
        _require(0 <= self.seed < 2**62, f"seed={self.seed} must lie between 0 and 2^62 - 1")
        _require(self.max_new_tokens >= 1, f"max_new_tokens={self.max_new_tokens} must be at least 1")

    def rows(self) -> list[tuple[int, float, int]]:
        """Prompt number, temperature and seed of every sample. Seeds are the same at every temperature."""
        return [
            (number, temperature, self.seed + repeat * len(self.prompts) + number)
            for number in range(len(self.prompts))
            for temperature in self.temperatures
            for repeat in range(self.seeds if temperature > 0 else 1)
        ]

    @property
    def digest(self) -> str:
        """Twelve digits that differ where any of the settings does."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are written to settings.json."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {**values, "temperatures": [float(temperature) for temperature in self.temperatures]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AtlasSettings:
        """Raises AtlasError for values that are no settings."""
        try:
            return dacite.from_dict(cls, values, dacite.Config(cast=[tuple, float], strict=True))
        except (dacite.DaciteError, TypeError, ValueError) as error:
            raise AtlasError(f"not the settings of an atlas: {error}") from None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AtlasError(f"atlas: {message}")
