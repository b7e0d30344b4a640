"""One training run: a model, its data, and how it learns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from shardscope.config.data import DataConfig, TokenizerConfig
from shardscope.config.errors import require, shown
from shardscope.config.fields import choice, require_usable_numbers
from shardscope.config.model import ShardConfig
from shardscope.config.paths import require_no_control_characters, user_path
from shardscope.config.plain_data import build
from shardscope.config.training import InitConfig, OptimizerConfig, ProbeConfig, ScheduleConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run: pretrain from nothing, or anneal from a checkpoint of the stable phase."""

    name: str = choice(help="name of the run")
    phase: Literal["pretrain", "anneal"] = choice(help="pretrain starts from nothing, anneal from a checkpoint")
    run_dir: str = choice("", help="folder of the run; empty: runs/NAME")
    start_from: str = choice("", help="anneal: the checkpoint or run to start from")
    seed: int = choice(0, help="decides the initial weights and the order of the data")
    model: ShardConfig | None = choice(
        None, help="the architecture (a preset and changes to it); an anneal takes its checkpoint's"
    )
    init: InitConfig = choice(InitConfig, help="the weights a pretraining begins with")
    tokenizer: TokenizerConfig = choice(TokenizerConfig, help="the vocabulary")
    data: DataConfig = choice(help="the mixture of sources")
    optimizer: OptimizerConfig = choice(OptimizerConfig, help="the optimizer")
    schedule: ScheduleConfig = choice(ScheduleConfig, help="the learning rate over time")
    train: TrainConfig = choice(TrainConfig, help="the loop")
    probe: ProbeConfig = choice(ProbeConfig, help="the biography of heads and matrices")

    def __post_init__(self) -> None:
        require(bool(self.name), "name is empty; name the run")
        require(
            re.fullmatch(r"[^/\\\x00-\x1f\x7f]{1,100}", self.name) is not None and self.name.strip(".") != "",
            f"name={shown(self.name)} names no folder; use up to 100 characters, none of them / or \\ "
            "(run_dir says where the folder lies)",
        )
        for field_name in ("run_dir", "start_from"):
            require_no_control_characters(field_name, getattr(self, field_name))
        require(self.seed >= 0, f"seed={shown(self.seed)} is negative; use 0 or more")
        require_usable_numbers(self, "")
        if self.phase == "pretrain":
            require(self.model is not None, "a pretrain recipe needs [model], as in preset = 'shard-nano'")
            require(not self.start_from, "start_from belongs to an anneal; a pretrain starts from nothing")
        else:
            require(bool(self.start_from), "an anneal needs start_from: the checkpoint or run folder it continues")
            require(self.model is None, "an anneal takes its checkpoint's architecture; remove [model]")
        if self.model is not None:
            require(
                self.data.seq_len <= self.model.n_ctx,
                f"data.seq_len={self.data.seq_len} is longer than model.n_ctx={self.model.n_ctx}",
            )

    @property
    def folder(self) -> Path:
        """Where the run lies. Raises ConfigError for a `run_dir` that means nothing on this machine."""
        return user_path(self.run_dir or f"runs/{self.name}", "run_dir")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """From plain data (a TOML file, a run's recipe.json). Raises ConfigError that names the key."""
        values = dict(values)
        if isinstance(values.get("model"), Mapping):
            values["model"] = ShardConfig.from_dict(values["model"])
        recipe: Recipe = build(cls, values, where="")
        return recipe
