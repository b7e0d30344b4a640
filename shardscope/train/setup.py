"""Everything a run needs before its first step: folder, tokenizer, data, model, optimizer, and where it stands."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shardscope.checkpoint import (
    OPTIMIZER,
    STATE,
    TOKENIZER,
    CheckpointError,
    TrainingState,
    list_checkpoints,
    load,
    read_facts,
    read_training_state,
)
from shardscope.config import ConfigError, Recipe, ShardConfig, user_path
from shardscope.data import Prepared, prepare, sample_documents
from shardscope.model import Shard
from shardscope.tokenizer import Tokenizer
from shardscope.train.distributed import World
from shardscope.train.graphed import Gradients
from shardscope.train.health import Trouble, token_entropy, troubles_of
from shardscope.train.lineage import ancestors_of, code_version
from shardscope.train.metrics import BIOGRAPHY, read_metrics, rewind
from shardscope.train.muon import ShardOptimizer
from shardscope.train.objective import Objective
from shardscope.train.run import find_stable, newest_checkpoint, prune, times_back
from shardscope.train.sharding import shard_over_ranks

log = logging.getLogger("shardscope.train")


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
    token_entropy: float  # nats of a token whose frequency alone is known
    code: str  # the version of what computes
    # Where the run stands.
    step: int = 0
    tokens_before: int = 0  # trained on before this run began
    skipped: int = 0
    seconds: float = 0.0
    rate_scale: float = 1.0  # what going back has made of the rate
    started_from: str = ""
    parent: dict[str, Any] | None = None  # the checkpoint before the next one: its path, step and weights
    ancestors: list[dict[str, Any]] = field(default_factory=list)  # of this run, the oldest first
    # What its log says.
    complete: bool = False  # all that the recipe asks for was done before
    looked: frozenset[str] = frozenset()  # kinds of lines that the log has of this very step
    logged: frozenset[tuple[str, int]] = frozenset()  # kind and step of all lines, also of those that were dropped
    measured: tuple[dict[str, Any], ...] = ()  # its lines of training steps and of evaluations
    troubles: tuple[Trouble, ...] = ()  # that were not over at this step

    def describe(self) -> dict[str, Any]:
        """For the log: what this start of the run works with."""
        plan = self.data.mixture.plan(self.recipe.schedule.steps)
        return {
            "resumed_at": self.step,
            "steps": self.recipe.schedule.steps,
            "started_from": self.started_from,
            "rate_scale": self.rate_scale,
            "device": str(self.world.device),
            "processes": self.world.size,
            "code": self.code,
            "n_params": self.model.n_params,
            "tokenizer": self.tokenizer.fingerprint,
            "token_entropy": self.token_entropy,
            "malformed": self.data.malformed,
            "overlap": self.data.overlap,
            "sources": {s.name: {"tokens": s.tokens, "share": s.share, "epochs": s.epochs} for s in plan},
        }


@dataclass(frozen=True)
class _Start:
    """A checkpoint to go on from, with all that was read from it."""

    folder: Path
    resumes: bool  # this very run; else it is forked
    model: Shard
    tokenizer: Tokenizer
    state: TrainingState
    ancestors: list[dict[str, Any]]  # of a fork, the oldest first


def set_up(recipe: Recipe, world: World, progress: bool = True) -> Setup:
    """Build or load everything. Raises ConfigError when recipe, checkpoint and data do not fit."""
    start = _opened(recipe)
    resumes = start is not None and start.resumes
    torch.manual_seed(recipe.seed)
    if start is not None:
        model, tokenizer = start.model, start.tokenizer
    else:
        assert recipe.model is not None, "Recipe says that a pretrain has a model"
        require_room(recipe, recipe.model, world.device)
        tokenizer = world.main_first(lambda: tokenizer_for(recipe, progress))
        if tokenizer.vocab_size > recipe.model.vocab_size:
            raise ConfigError(
                f"tokenizer.path: the tokenizer has {tokenizer.vocab_size} entries, model.vocab_size is only "
                f"{recipe.model.vocab_size}; raise it"
            )
        model = Shard(recipe.model, tokenizer, recipe.init)
    if recipe.data.seq_len > model.config.n_ctx:
        raise ConfigError(
            f"data.seq_len={recipe.data.seq_len} is longer than the context of {start and start.folder}, which is "
            f"{model.config.n_ctx}; lower data.seq_len"
        )
    ancestors = start.ancestors if start is not None else []
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
    optimizer = ShardOptimizer(
        model, recipe.optimizer, world.group, objective.compiled, objective.graphs and world.size == 1
    )
    facts: dict[str, Any] = {}
    if start is not None:
        facts = start.state.facts
        _take_over(optimizer, start)
    step = start.state.step if start is not None and resumes else 0
    if resumes:
        _require_same_data(recipe, facts.get("data", {}), data.fingerprints)
        ancestors = facts.get("ancestors", [])
    averaging = objective if sharded else world.wrap(objective)
    return Setup(
        recipe=recipe,
        world=world,
        tokenizer=tokenizer,
        data=data,
        model=model,
        objective_module=objective,
        objective=averaging,
        gradients=Gradients(averaging, model, objective.graphs and world.size == 1, optimizer.gradient_buffers),
        sharded=sharded,
        optimizer=optimizer,
        token_entropy=token_entropy(data),
        code=code_version(),
        step=step,
        tokens_before=facts.get("tokens", 0) - step * recipe.train.batch_size * recipe.data.seq_len,
        skipped=facts.get("skipped_steps", 0) if resumes else 0,
        seconds=facts.get("seconds", 0.0) if resumes else 0.0,
        rate_scale=([1.0] + [back["rate_scale"] for back in times_back(recipe.folder)])[-1],
        started_from=str(start.folder if start else ""),
        parent=_as_parent(start, ancestors),
        ancestors=ancestors,
        **_from_the_log(recipe, step, resumes, world),
    )


def require_even_batch(recipe: Recipe, processes: int) -> None:
    """Raises ConfigError, before anything is tokenized, for a batch that the processes cannot share."""
    if recipe.train.batch_size % processes:
        raise ConfigError(
            f"train.batch_size={recipe.train.batch_size} cannot be divided among {processes} processes; "
            f"use a multiple of {processes}"
        )


def require_room(recipe: Recipe, config: ShardConfig, device: torch.device) -> None:
    """Raises ConfigError for a model or a batch that alone is more than the memory there is."""
    weights, batch = 8 * config.n_params, 8 * recipe.train.batch_size * recipe.data.seq_len
    for what, needed, where, remedy in (
        (
            f"weights and gradients of {config.n_params:,} parameters",
            weights,
            device,
            "model.n_layers or model.d_model",
        ),
        ("the tokens of a batch", batch, torch.device("cpu"), "train.batch_size"),
    ):
        there = _memory(where)
        if there is not None and needed > there:
            raise ConfigError(
                f"{what} take {needed / 2**30:,.1f} GiB, this machine's {where.type} has {there / 2**30:,.1f}; "
                f"lower {remedy}"
            )


def _memory(device: torch.device) -> int | None:
    """Bytes; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _opened(recipe: Recipe) -> _Start | None:
    """The checkpoint that this start goes on from, read; None for a run that begins with nothing.

    A run that is still training deletes its older checkpoints: where one goes away meanwhile, the newest is taken.
    """
    while True:
        resume = newest_checkpoint(recipe.folder)
        folder = resume or (find_stable(recipe.start_from) if recipe.phase == "anneal" else None)
        if folder is None:
            return None
        if resume and resume != (newest := list_checkpoints(recipe.folder)[-1]):
            log.warning("%s: training cannot go on from it, its state is missing; going on from %s", newest, resume)
        try:
            model = load(folder, device="cpu", dtype=torch.float32)
            if model.tokenizer is None:
                raise CheckpointError(f"{folder}: holds no {TOKENIZER}; put the one it was trained with there")
            ancestors = [] if resume else ancestors_of(folder, model.state_dict())
            found = _Start(folder, resume is not None, model, model.tokenizer, _state(folder), ancestors)
        except (ConfigError, OSError):
            if folder.exists():
                raise
        else:
            if folder.exists():
                if not found.state.optimizer:
                    log.warning("%s: holds weights alone; the optimizer begins without momentum", folder)
                return found


def _state(folder: Path) -> TrainingState:
    """The training state; an empty one of a checkpoint of weights alone."""
    if (folder / STATE).exists() and (folder / OPTIMIZER).exists():
        return read_training_state(folder)
    facts = read_facts(folder) if (folder / STATE).exists() else {}
    return TrainingState(step=0, facts=facts)


def _as_parent(start: _Start | None, ancestors: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the next checkpoint records of the one before it."""
    if start is None:
        return None
    if start.resumes:
        weights = start.state.facts.get("weights")
        return {"checkpoint": str(start.folder), "step": start.state.step, "weights": weights}
    return {key: ancestors[-1][key] for key in ("checkpoint", "step", "weights")}


def _from_the_log(recipe: Recipe, step: int, resumes: bool, world: World) -> dict[str, Any]:
    """What the run's log says of where it stands, after the first process has cut it back to there."""
    ended = any(line["step"] == step and line.get("event") == "finished" for line in read_metrics(recipe.folder))
    if resumes and ended and step == recipe.schedule.steps:
        return {"complete": True}
    logged: set[tuple[str, int]] = set()
    if world.main:
        # What a killed run logged after its last checkpoint, or before its first, is logged again.
        logged = rewind(recipe.folder, step if resumes else None)
        rewind(recipe.folder, step if resumes else None, BIOGRAPHY)
        if resumes:
            prune(recipe.folder, recipe.train.keep)
    world.wait()
    lines = read_metrics(recipe.folder)
    return {
        "logged": frozenset(logged),
        "looked": frozenset(
            str(line["kind"]) for line in [*lines, *read_metrics(recipe.folder, file=BIOGRAPHY)] if line["step"] == step
        ),
        "measured": tuple(line for line in lines if line["kind"] in ("train", "eval")),
        "troubles": tuple(trouble for trouble, over in troubles_of(lines) if over is None),
    }


def _require_same_data(recipe: Recipe, before: dict[str, str], now: dict[str, str]) -> None:
    for name, fingerprint in now.items():
        if before.get(name, fingerprint) != fingerprint:
            raise ConfigError(
                f"data.sources.{name}: holds {fingerprint}, the run in {recipe.folder} began with {before[name]}; "
                "put that text back, or give --run_dir another folder"
            )


def _take_over(optimizer: ShardOptimizer, start: _Start) -> None:
    if not start.state.optimizer:
        return
    try:
        optimizer.load_state_dict(start.state.optimizer)
    except ValueError as error:
        raise ConfigError(f"{start.folder}: {error}; set optimizer.name to the one it was trained with") from None


def tokenizer_for(recipe: Recipe, progress: bool) -> Tokenizer:
    """The recipe's tokenizer: an existing one, or one trained on its data and kept in the run's folder."""
    assert recipe.model is not None, "Recipe says that a pretrain has a model"
    if recipe.tokenizer.path:
        return Tokenizer.load(user_path(recipe.tokenizer.path, "tokenizer.path"))
    own = recipe.folder / TOKENIZER
    # Nothing was trained with it yet, so one that cannot be read is made again.
    with suppress(ConfigError, OSError):
        return Tokenizer.load(own)
    if progress:
        print(f"training a tokenizer of {recipe.model.vocab_size} entries on the data …", flush=True)
    texts = sample_documents(recipe.data, recipe.tokenizer.documents)
    Tokenizer.train(texts, recipe.model.vocab_size).save(own)
    return Tokenizer.load(own)
