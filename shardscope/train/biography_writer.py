"""Probing while training: at which steps, within which share of the time, and what a probe's line says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from shardscope.config import ConfigError
from shardscope.data import Holdout
from shardscope.model import Shard
from shardscope.train.biography import KIND, is_number
from shardscope.train.metrics import BIOGRAPHY, Metrics, NoMetrics, read_metrics
from shardscope.train.muon import split_parameters
from shardscope.train.probes import (
    LONGEST_TEXT,
    check_lags,
    default_lags,
    loss_by_position,
    measure_heads,
    position_edges,
    repeated_blocks,
)
from shardscope.train.sentinel import singular_values
from shardscope.train.setup import Setup
from shardscope.train.sharding import is_sharded, local, whole_model

log = logging.getLogger("shardscope.train")

LOSS_TOKENS = {"cuda": 65_536}  # that the loss by position is computed on at once; elsewhere 4,096
DIGITS = 5  # of a number that is written

Samples = Callable[[Shard], list[dict[str, Any]]]


class BiographyWriter:
    """Probes the model at the steps that the recipe names and the budget allows, and writes what it found."""

    def __init__(self, setup: Setup, samples: Samples | None) -> None:
        """Raises ConfigError for a lag that the sequences have no room for."""
        self.setup, self.settings = setup, setup.recipe.probe
        self.samples = samples if self.settings.samples else None
        writes = setup.world.main and self.settings.every > 0
        self.file = Metrics(setup.recipe.folder, file=BIOGRAPHY) if writes else NoMetrics()
        self._started = time.perf_counter()
        earlier = read_metrics(setup.recipe.folder, KIND, BIOGRAPHY)
        self._said = False  # that there are no samples
        self._cold = setup.world.device.type == "cuda"  # nothing was measured yet in this process
        self._measuring, self._sampling = _Account(), _Account()
        for line in earlier:
            whole, sampling = line.get("seconds"), line.get("sample_seconds", 0.0)
            if is_number(whole) and is_number(sampling):
                self._measuring.costs.append(max(0.0, whole - sampling))
                self._sampling.costs += [sampling] if sampling else []
        self._prepared: int | None = None  # the step that the next probe is at, if there was a step before it
        self._before: dict[str, Tensor] = {}
        config, seq_len = setup.model.config, setup.recipe.data.seq_len
        check_lags(self.settings.lags, seq_len)
        lags = self.settings.lags or default_lags(config, seq_len)
        n_tokens = min(seq_len, 2 * max(lags, default=0) + 1)
        vocab, bos = setup.tokenizer.vocab_size, setup.tokenizer.bos_id
        self.repeated = [repeated_blocks(lag, n_tokens, vocab, bos) for lag in lags]
        self.edges = position_edges(seq_len, config.window)
        tokens = self.settings.tokens or setup.recipe.train.batch_size * seq_len // 8
        share = max(1, tokens // len(setup.data.holdouts))
        self.holdouts = {
            name: Holdout(name, holdout.shard, setup.tokenizer, seq_len=seq_len, eval_tokens=share)
            for name, holdout in setup.data.holdouts.items()
        }
        longest = min(seq_len, max(2 * config.window, 256), LONGEST_TEXT)
        self.texts = [next(holdout.batches(1)).tokens[0, :longest] for holdout in self.holdouts.values()]

    def prepare(self, step: int) -> None:
        """Before the step that will have been step number `step`: decide on a probe, and remember the matrices."""
        self._prepared, self._before = None, {}
        if self._due(step) and self._affordable(last=step == self.setup.recipe.schedule.steps):
            self._prepared = step
            if self.setup.world.main or self.setup.sharded:
                matrices = split_parameters(self.setup.model)[0]
                self._before = {name: local(matrix).detach().clone() for name, matrix in matrices.items()}

    def wants(self, step: int) -> bool:
        """Whether the model is probed at this step. Every process has to ask, and gets the same answer."""
        # No step of this start of the run led to its first one.
        if step != self.setup.step:
            return step == self._prepared
        return self._due(step) and KIND not in self.setup.looked and (step == 0 or self._affordable(last=False))

    def write(self, step: int) -> None:
        """Probe the model and write the line. Where ranks share the weights, all of them have to call this."""
        setup, began = self.setup, time.perf_counter()
        if not (setup.world.main or setup.sharded):
            return
        updates = self._update_sizes()
        model = whole_model(setup.model, keep=setup.world.main)
        if model is None:
            return
        model.eval()
        began += self._warmed_up(model)
        found = self._measure(model, updates)
        measured = time.perf_counter()
        self._measuring.costs.append(measured - began)
        sampled = 0.0
        if self.samples and self._may_sample(step):
            found["samples"] = self._sampled(model)
            sampled = time.perf_counter() - measured
            self._sampling.costs.append(sampled)
        setup.model.train()
        seconds = time.perf_counter() - began
        self.file.write(KIND, step, seconds=round(seconds, 4), sample_seconds=round(sampled, 4), **found)
        self.file.flush()

    def close(self) -> None:
        self.file.close()

    def _warmed_up(self, model: Shard) -> float:
        """Seconds for measuring once on a GPU where nothing was measured yet: kernels are loaded and libraries set up.

        They are no part of a probe's price (3 s on an H100, where a probe takes 0.7), as compiling is none of a step's.
        """
        began = time.perf_counter()
        if self._cold:
            self._cold = False
            self._measure(model, {})
        return time.perf_counter() - began

    def _measure(self, model: Shard, updates: Mapping[str, float]) -> dict[str, Any]:
        heads = measure_heads(model, self.texts, self.repeated)
        matrices = {
            value.name: [value.smallest, value.largest, value.stable_rank, updates.get(value.name)]
            for value in singular_values(model)
        }
        return {
            "window": model.config.window,
            "kinds": list(model.config.layer_kinds),
            "heads": {name: _rounded(scores.tolist()) for name, scores in heads.items()},
            "matrices": {name: _rounded(numbers) for name, numbers in matrices.items()},
            "positions": self.edges,
            "loss": {name: self.measure_loss(model, holdout) for name, holdout in self.holdouts.items()},
        }

    def _sampled(self, model: Shard) -> list[dict[str, Any]]:
        """No samples where the prompts do not fit the model's context: that is no reason to end a training."""
        assert self.samples is not None
        try:
            return self.samples(model)
        except ConfigError as error:
            if not self._said:
                log.warning("the biography goes without samples: %s", error)
            self._said = True
            return []

    def measure_loss(self, model: Shard, holdout: Holdout) -> dict[str, Any]:
        """Of one source: its mean, and its means by position, in nats a token."""
        batch_size = max(1, LOSS_TOKENS.get(model.device.type, 4_096) // holdout.seq_len)

        def logits(ids: Tensor) -> Tensor:
            with self.setup.objective_module.arithmetic():
                return model.unembed(model.hidden(ids))

        mean, by_bin = loss_by_position(logits, holdout.batches(batch_size), self.edges, model.device)
        return {"mean": _rounded(mean), "by_position": _rounded(by_bin)}

    def _update_sizes(self) -> dict[str, float]:
        """The Frobenius norm of what the last step changed in each matrix; nothing where that is not known."""
        before, self._before = self._before, {}
        if not before:
            return {}
        matrices = split_parameters(self.setup.model)[0]
        squares = torch.stack([(local(matrices[name]).detach() - old).square().sum() for name, old in before.items()])
        if any(map(is_sharded, matrices.values())):  # each rank has seen its own part
            squares = self.setup.world.mean(squares) * self.setup.world.size
        return dict(zip(before, squares.sqrt().tolist(), strict=True))

    def _due(self, step: int) -> bool:
        every = self.settings.every
        return every > 0 and (step % every == 0 or step == self.setup.recipe.schedule.steps)

    def _affordable(self, last: bool) -> bool:
        """Whether measuring fits into the budget, and with it once more at the end, unless this is the last time."""
        fits = self.settings.budget == 1 or self._measuring.fits(self._share(), self._elapsed(), reserve=not last)
        # The first process alone knows what its probes took.
        return self.setup.world.any(self.setup.world.main and fits)

    def _may_sample(self, step: int) -> bool:
        """Samples have an account of their own: the first ones may wait for a compiler, and an untrained model has
        nothing to say."""
        last = step == self.setup.recipe.schedule.steps
        fits = step > 0 and self._sampling.fits(self._share(), self._elapsed(), reserve=not last)
        return self.settings.budget == 1 or fits

    def _share(self) -> float:
        return self.settings.budget / (2 if self.samples else 1)

    def _elapsed(self) -> float:
        return self.setup.seconds + time.perf_counter() - self._started


@dataclass
class _Account:
    """What a part of the probes has taken so far, in seconds."""

    costs: list[float] = field(default_factory=list)

    def fits(self, share: float, elapsed: float, reserve: bool) -> bool:
        """Whether once more, at the last price, stays within the share; with `reserve`, and once after that."""
        price = self.costs[-1] if self.costs else 0.0
        return sum(self.costs) + price * (2 if reserve else 1) <= share * elapsed


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return [_rounded(item) for item in value] if isinstance(value, list) else value
