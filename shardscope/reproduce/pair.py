"""The two recipes of a reproduction, as they run in its folder, and the checkpoints that are looked at afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shardscope.checkpoint import checkpoint_folder
from shardscope.config import ConfigError, Recipe, ShardConfig, load_recipe
from shardscope.recipes.command import find_recipe
from shardscope.train.run import BOUND, FREE

Phase = Literal["pretrain", "anneal"]
PHASES: tuple[Phase, Phase] = ("pretrain", "anneal")
CHECKPOINTS = 20  # in which heads are scored, of both phases together
# Of all checkpoints that are looked at, the share of the pretraining: the published run's steps, 48,220 and 20,000.
SHARE_OF_PRETRAIN = 0.7


@dataclass(frozen=True)
class Run:
    """One phase: its recipe file, the flags that fit it into the folder, and the recipe that they make together."""

    phase: Phase
    file: Path
    flags: dict[str, str]
    recipe: Recipe

    @property
    def folder(self) -> Path:
        return self.recipe.folder

    @property
    def steps(self) -> int:
        return self.recipe.schedule.steps

    @property
    def last(self) -> Path:
        """The checkpoint that the run ends with."""
        return checkpoint_folder(self.folder, self.steps)

    def what_counts(self) -> dict[str, Any]:
        """The recipe by dotted keys, without what may differ between two starts of one run: where it lies, and how
        it computes."""
        return {key: value for key, value in _flat(self.recipe.to_dict()) if key in BOUND or not key.startswith(FREE)}


@dataclass(frozen=True)
class Pair:
    pretrain: Run
    anneal: Run

    @property
    def model(self) -> ShardConfig:
        assert self.pretrain.recipe.model is not None, "Recipe says that a pretrain has a model"
        return self.pretrain.recipe.model

    @property
    def name(self) -> str:
        return _stem(self.pretrain.recipe)

    def runs(self) -> tuple[Run, Run]:
        return self.pretrain, self.anneal

    def checkpoints(self) -> list[tuple[Run, int]]:
        """Those that both phases save at their regular steps, oldest first."""
        return [
            (run, step)
            for run in self.runs()
            for step in sorted({*range(_every(run), run.steps, _every(run)), run.steps})
        ]


def load_pair(
    words: Sequence[str], out: Path | None = None, device: str = "auto", checkpoints: int = CHECKPOINTS
) -> Pair:
    """The recipes that two words name (files, or packaged recipes), to be run in `out` (None: runs/reproduce/NAME).

    Raises ConfigError for recipes that are not a pretraining and an anneal.
    """
    if checkpoints < 2:
        raise ConfigError(f"--checkpoints {checkpoints}: each phase needs one; use 2 or more")
    files = [find_recipe(word) for word in words]
    given = [load_recipe(file) for file in files]
    for file, recipe, phase in zip(files, given, PHASES, strict=True):
        if recipe.phase != phase:
            raise ConfigError(f"{file}: phase={recipe.phase!r}; --recipes takes a pretraining first, then its anneal")
    out = Path("runs/reproduce") / _stem(given[0]) if out is None else out
    of_pretrain = min(checkpoints - 1, max(1, round(checkpoints * SHARE_OF_PRETRAIN)))
    pretrain = _run("pretrain", files[0], out, device, of_pretrain)
    start = {"start_from": f"{pretrain.folder}@{pretrain.steps}"}
    return Pair(pretrain, _run("anneal", files[1], out, device, checkpoints - of_pretrain, start))


def bytes_of_checkpoint(model: ShardConfig) -> int:
    """About: weights, and the moments of AdamW or the momentum of Muon, in float32."""
    return 12 * model.n_params


def _run(
    phase: Phase, file: Path, out: Path, device: str, checkpoints: int, flags: dict[str, str] | None = None
) -> Run:
    flags = {**(flags or {}), "run_dir": str(out / phase), "train.device": device, "train.keep": "0"}
    every = str(max(1, -(-load_recipe(file).schedule.steps // checkpoints)))
    flags |= {"train.save_every": every, "train.eval_every": every}
    return Run(phase, file, flags, load_recipe(file, flags))


def _stem(recipe: Recipe) -> str:
    return recipe.name.removesuffix("-local").removesuffix("-pretrain")


def _every(run: Run) -> int:
    return run.recipe.train.save_every


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values by dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
