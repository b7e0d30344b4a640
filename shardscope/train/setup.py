"""Everything a run needs before its first step: folder, tokenizer, data, model, optimizer, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shardscope.checkpoint import STATE, TOKENIZER, TrainingState, load, read_training_state
from shardscope.config import ConfigError, Recipe
from shardscope.data import Prepared, prepare, sample_documents
from shardscope.model import Shard
from shardscope.tokenizer import Tokenizer
from shardscope.train.distributed import World
from shardscope.train.graphed import Gradients
from shardscope.train.metrics import rewind
from shardscope.train.muon import ShardOptimizer
from shardscope.train.objective import Objective
from shardscope.train.run import find_stable, newest_checkpoint
from shardscope.train.sharding import shard_over_ranks


@dataclass(frozen=True, kw_only=True)
class Setup:
    recipe: Recipe
    world: World
    tokenizer: Tokenizer
    data: Prepared
    model: Shard
    objective_module: Objective
    objective: nn.Module  # the same, with gradients averaged over the world
    gradients: Gradients
    sharded: bool  # each rank holds a share of the weights
    optimizer: ShardOptimizer
    step: int = 0
    tokens_before: int = 0  # trained on before this run began
    skipped: int = 0
    seconds: float = 0.0
    finished: bool = False  # all that the recipe asks for was done before
    started_from: str = ""

    def describe(self) -> dict[str, Any]:
        """For the log: what this start of the run works with."""
        plan = self.data.mixture.plan(self.recipe.schedule.steps)
        return {
            "resumed_at": self.step,
            "started_from": self.started_from,
            "device": str(self.world.device),
            "processes": self.world.size,
            "n_params": self.model.n_params,
            "tokenizer": self.tokenizer.fingerprint,
            "malformed": self.data.malformed,
            "sources": {s.name: {"tokens": s.tokens, "share": s.share, "epochs": s.epochs} for s in plan},
        }


def set_up(recipe: Recipe, world: World, progress: bool = True) -> Setup:
    """Build or load everything. Raises ConfigError when recipe, checkpoint and data do not fit."""
    resume = newest_checkpoint(recipe.folder)
    start = resume or (find_stable(recipe.start_from) if recipe.phase == "anneal" else None)
    state = _state(start)
    torch.manual_seed(recipe.seed)
    if start is not None:
        model, tokenizer = _from_checkpoint(start)
    else:
        tokenizer = world.main_first(lambda: _tokenizer(recipe, progress))
        assert recipe.model is not None, "Recipe says that a pretrain has a model"
        if tokenizer.vocab_size > recipe.model.vocab_size:
            raise ConfigError(
                f"tokenizer.path: the tokenizer has {tokenizer.vocab_size} entries, model.vocab_size is only "
                f"{recipe.model.vocab_size}; raise it"
            )
        model = Shard(recipe.model, tokenizer, recipe.init)
    if recipe.data.seq_len > model.config.n_ctx:
        raise ConfigError(
            f"data.seq_len={recipe.data.seq_len} is longer than the context of {start}, which is {model.config.n_ctx}; "
            "lower data.seq_len"
        )
    sharded = world.size > 1 and recipe.train.parallel == "fsdp"
    if not sharded:
        model.to(world.device)
    model.train()
    data = world.main_first(
        lambda: prepare(
            recipe.data,
            tokenizer,
            batch_size=recipe.train.batch_size,
            seed=recipe.seed,
            phase=recipe.phase,
            eval_tokens=recipe.train.eval_tokens,
            progress=progress,
        )
    )
    objective = Objective(model, recipe, tokenizer.bos_id, world.device)
    if sharded:
        shard_over_ranks(objective, world.device)
    # After the sharding, which puts other parameters in the place of the model's.
    optimizer = ShardOptimizer(model, recipe.optimizer, world.group, objective.compiled)
    if state is not None:
        _take_over(optimizer, state, start)
    facts = state.facts if state else {}
    if resume:
        _require_same_data(recipe, facts.get("data", {}), data.fingerprints)
    if world.main:
        # What a killed run logged after its last checkpoint, or before its first, is logged again.
        rewind(recipe.folder, state.step if state and resume else None)
    tokens = recipe.train.batch_size * recipe.data.seq_len
    averaging = objective if sharded else world.wrap(objective)
    return Setup(
        recipe=recipe,
        world=world,
        tokenizer=tokenizer,
        data=data,
        model=model,
        objective_module=objective,
        objective=averaging,
        gradients=Gradients(averaging, model, graphs=objective.graphs and world.size == 1),
        sharded=sharded,
        optimizer=optimizer,
        step=state.step if state and resume else 0,
        tokens_before=facts.get("tokens", 0) - (state.step * tokens if state and resume else 0),
        skipped=facts.get("skipped_steps", 0) if resume else 0,
        seconds=facts.get("seconds", 0.0) if resume else 0.0,
        finished=bool(resume) and facts.get("status") == "finished",
        started_from=str(start or ""),
    )


def _require_same_data(recipe: Recipe, before: dict[str, str], now: dict[str, str]) -> None:
    for name, fingerprint in now.items():
        if before.get(name, fingerprint) != fingerprint:
            raise ConfigError(
                f"data.sources.{name}: holds {fingerprint}, the run in {recipe.folder} began with {before[name]}; "
                "put that text back, or give --run_dir another folder"
            )


def _take_over(optimizer: ShardOptimizer, state: TrainingState, start: Path | None) -> None:
    try:
        optimizer.load_state_dict(state.optimizer)
    except ValueError as error:
        raise ConfigError(f"{start}: {error}; set optimizer.name to the one it was trained with") from None


def _state(start: Path | None) -> TrainingState | None:
    return read_training_state(start) if start is not None and (start / STATE).exists() else None


def _from_checkpoint(start: Path) -> tuple[Shard, Tokenizer]:
    model = load(start, device="cpu", dtype=torch.float32)
    if model.tokenizer is None:
        raise ConfigError(f"{start}: holds no {TOKENIZER}; put the one it was trained with there")
    return model, model.tokenizer


def _tokenizer(recipe: Recipe, progress: bool) -> Tokenizer:
    """The recipe's tokenizer: an existing one, or one trained on its data and kept in the run's folder."""
    assert recipe.model is not None, "Recipe says that a pretrain has a model"
    if recipe.tokenizer.path:
        return Tokenizer.load(recipe.tokenizer.path)
    kept = recipe.folder / TOKENIZER
    if not kept.exists():
        if progress:
            print(f"training a tokenizer of {recipe.model.vocab_size} entries on the data …", flush=True)
        texts = sample_documents(recipe.data, recipe.tokenizer.documents)
        Tokenizer.train(texts, recipe.model.vocab_size).save(kept)
    return Tokenizer.load(kept)
