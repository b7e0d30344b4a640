"""The training loop: batches in, checkpoints and metrics out.

A batch is a pure function of the step, and a checkpoint holds all state there is, so a run that was killed and
started again takes exactly the steps it would have taken.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shardscope.checkpoint import TrainingState, checkpoint_folder, save_checkpoint
from shardscope.config import Recipe
from shardscope.data import Batch, Prefetcher
from shardscope.files import WriteError
from shardscope.model import Shard
from shardscope.progress import progress_bar
from shardscope.train.distributed import World
from shardscope.train.evaluate import Score, evaluate
from shardscope.train.flops import datasheet_flops, flops_per_token
from shardscope.train.interrupt import Stop
from shardscope.train.metrics import Metrics, NoMetrics, open_loggers
from shardscope.train.run import claimed_folder, newest_checkpoint, prune
from shardscope.train.schedule import decay_start, lr_factor, momentum, phase_of
from shardscope.train.sentinel import report, singular_values
from shardscope.train.setup import Setup, set_up
from shardscope.train.sharding import gathered, whole_model

Probe = Callable[[Shard], list[dict[str, Any]]]

# Steps between taking a step and reading its numbers. An accelerator's are read one step late, so that the host never
# waits for the step it has just begun.
LAG = {"cpu": 0}


class TrainingError(RuntimeError):
    """The run cannot go on; the message says at which step, on which batch, and what is intact."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: 'finished' or 'paused early', with the checkpoint to go on from."""

    status: str
    reason: str
    step: int
    checkpoint: Path
    scores: dict[str, Score]
    evaluated: int = 0  # the step at which `scores` were taken


def train(recipe: Recipe, *, probe: Probe | None = None, progress: bool = True) -> Outcome:
    """Train as the recipe says, from its start or from its newest checkpoint; returns how it ended.

    `probe` makes sample records every `train.sample_every` steps. Raises ConfigError for a recipe that does not
    fit its folder, data or checkpoint, and TrainingError after too many non-finite steps in a row.
    """
    # The budget counts from here: tokenizing and compiling are part of what a borrowed machine is paid for.
    stop = Stop(recipe.train.max_minutes, recipe.train.grace_seconds)
    with World.join(recipe.train.device) as world, claimed_folder(recipe) if world.main else nullcontext():
        world.wait()
        setup = set_up(recipe, world, progress=progress and world.main)
        metrics = Metrics(recipe.folder, open_loggers(recipe)) if world.main else NoMetrics()
        try:
            return Loop(setup, metrics, stop, probe, progress and world.main).run()
        except WriteError as error:
            newest = newest_checkpoint(recipe.folder)
            kept = f"the run's newest checkpoint, {newest}, is whole" if newest else "no checkpoint had been saved yet"
            raise WriteError(f"{error}; {kept}") from None
        finally:
            metrics.close()


class Loop:
    def __init__(self, setup: Setup, metrics: Metrics, stop: Stop, probe: Probe | None, progress: bool) -> None:
        self.setup, self.metrics, self.stop, self.probe = setup, metrics, stop, probe
        self.recipe, self.world = setup.recipe, setup.world
        self.step = setup.step
        self.scores: dict[str, Score] = {}
        self.evaluated = -1
        self.readings = Readings(self.recipe, setup, metrics, progress)

    def run(self) -> Outcome:
        settings, schedule = self.recipe.train, self.recipe.schedule
        if self.setup.finished:
            return self._outcome("finished", "every step was already done")
        self.metrics.write("event", self.step, event="start", **self.setup.describe())
        with self.stop, self.readings, self._batches() as batches:
            if self.step == 0:
                self._evaluate()
            for batch in batches:
                if self.world.any(self.stop.reason is not None) or not self._take_step(batch):
                    break
                if self._due(settings.sentinel_every):
                    self._look_at_rank()
                if self._due(settings.eval_every):
                    self._evaluate()
                if self.probe and settings.sample_every and self._due(settings.sample_every):
                    self._sample(self.probe)
                if self.step < schedule.steps and (
                    self.step % settings.save_every == 0 or self.step == decay_start(schedule)
                ):
                    self._save("unfinished", "")
            self.readings.catch_up()
            if self.step == schedule.steps and self.evaluated < self.step:
                self._evaluate()  # a signal ended the last one
            if self.step == schedule.steps and (self.evaluated == self.step or not self.world.main):
                return self._end("finished", "every step is done")
            return self._end("paused early", self.stop.reason or "another process was stopped")

    def _take_step(self, batch: Batch) -> bool:
        """One optimizer step; False if it was abandoned because the run should stop."""
        window = batch.tokens.to(self.world.device, non_blocking=True)
        parts = window.split(self.recipe.train.micro_batch or len(window))
        totals: dict[str, Tensor] = {}
        for number, part in enumerate(parts, start=1):
            if self.world.size == 1 and self.stop.reason is not None:
                self.setup.optimizer.zero_grad()
                return False
            share, last = len(part) / len(window), number == len(parts)
            with nullcontext() if last else self.world.without_averaging(self.setup.objective):
                found = self.setup.gradients(part, share)
            for name, value in found.items():
                totals[name] = totals.get(name, 0) + value * share
        factor = lr_factor(self.step, self.recipe.schedule)
        # Averaged, because every process has to come to the same verdict on the step.
        totals["grad_norm"] = self.setup.optimizer.step(
            factor,
            self.world.mean(totals["loss"]),
            momentum(self.step, self.recipe.optimizer, self.recipe.schedule),
        )
        self.setup.optimizer.zero_grad()
        self.readings.add(self.step, self.recipe.optimizer.lr * factor, totals)
        self.step += 1
        return True

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.recipe.schedule.steps

    def _batches(self) -> Prefetcher:
        mixture, world = self.setup.data.mixture, self.world
        return Prefetcher(
            lambda step: mixture.batch(step, world.rank, world.size),
            self.step,
            self.recipe.schedule.steps,
            pin=world.device.type == "cuda",
        )

    def _evaluate(self) -> None:
        self.readings.catch_up()  # on every rank: they average what they read
        # Where ranks share the weights, none of them can compute alone.
        together = self.setup.sharded
        if not (self.world.main or together):
            return
        self.setup.model.eval()
        scores = evaluate(
            self.setup.model,
            self.setup.data.holdouts,
            batch_size=max(1, (65_536 if self.world.device.type == "cuda" else 4_096) // self.recipe.data.seq_len),
            logits=self.setup.objective_module.logits,
            stop=lambda: self.world.any(self.stop.reason is not None) if together else self.stop.reason is not None,
        )
        self.setup.model.train()
        if scores is not None:
            self.scores, self.evaluated = scores, self.step
            self.metrics.write("eval", self.step, **{name: score.to_dict() for name, score in scores.items()})
            self.readings.held_out = scores["all"].bits_per_byte

    def _look_at_rank(self) -> None:
        if not (self.world.main or self.setup.sharded):
            return
        found = singular_values(self.setup.model)
        lost = [value.name for value in found if value.lost_rank]
        self.readings.sentinel = f"rank loss in {len(lost)}" if lost else "full rank"
        self.metrics.write(
            "sentinel",
            self.step,
            report=report(found),
            lost=lost,
            matrices={value.name: [value.smallest, value.largest] for value in found},
        )

    def _sample(self, probe: Probe) -> None:
        model = whole_model(self.setup.model, keep=self.world.main)
        if model is None:
            return
        model.eval()
        for record in probe(model):
            self.metrics.write("sample", self.step, **record)
        self.setup.model.train()

    def _save(self, status: str, reason: str) -> Path:
        self.readings.catch_up()
        folder = checkpoint_folder(self.recipe.folder, self.step)
        phase = phase_of(max(self.step - 1, 0), self.recipe.schedule)
        if not (self.world.main or self.setup.sharded):
            return folder
        weights = gathered(self.setup.model.state_dict(), keep=self.world.main)
        optimizer = gathered(self.setup.optimizer.state_dict(), keep=self.world.main)
        if self.world.main:
            facts = {
                "steps": self.recipe.schedule.steps,
                "phase": phase,
                "status": status,
                "reason": reason,
                "tokens": self.setup.tokens_before
                + self.step * self.recipe.train.batch_size * self.recipe.data.seq_len,
                "skipped_steps": self.readings.skipped,
                "data": self.setup.data.fingerprints,
                "seconds": round(self.readings.seconds, 1),
            }
            save_checkpoint(
                folder,
                weights,
                config=self.setup.model.config,
                tokenizer=self.setup.tokenizer,
                state=TrainingState(step=self.step, facts=facts, optimizer=optimizer),
                notes={"recipe": self.recipe.name, "step": self.step, "phase": phase, "tokens": facts["tokens"]},
            )
            prune(self.recipe.folder, self.recipe.train.keep)
        return folder

    def _end(self, status: str, reason: str) -> Outcome:
        checkpoint = self._save(status, reason)
        self.metrics.write("event", self.step, event=status, reason=reason)
        return self._outcome(status, reason, checkpoint)

    def _outcome(self, status: str, reason: str, checkpoint: Path | None = None) -> Outcome:
        folder = checkpoint or checkpoint_folder(self.recipe.folder, self.step)
        return Outcome(status, reason, self.step, folder, self.scores, self.evaluated)


class Readings:
    """The numbers of each step: read from the device, logged, shown, and judged."""

    def __init__(self, recipe: Recipe, setup: Setup, metrics: Metrics, progress: bool) -> None:
        self.recipe, self.setup, self.metrics = recipe, setup, metrics
        self.sentinel, self.held_out = "", math.nan
        self.skipped, self.bad_in_a_row = setup.skipped, 0
        self.seconds = setup.seconds
        self._lag = LAG.get(setup.world.device.type, 1)
        self._waiting: deque[tuple[int, float, dict[str, Tensor]]] = deque()
        self._logged_at = (setup.step, time.perf_counter())
        self._flops = flops_per_token(setup.model.config, recipe.data.seq_len)
        self._peak = datasheet_flops(setup.world.device)
        self._bar = progress_bar(
            total=recipe.schedule.steps, initial=setup.step, desc=recipe.name, unit="step", disable=not progress
        )

    def __enter__(self) -> Readings:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def add(self, step: int, lr: float, totals: dict[str, Tensor]) -> None:
        self._waiting.append((step, lr, totals))
        while len(self._waiting) > self._lag:
            self._read(*self._waiting.popleft())

    def catch_up(self) -> None:
        while self._waiting:
            self._read(*self._waiting.popleft())

    def _read(self, step: int, lr: float, totals: dict[str, Tensor]) -> None:
        world = self.setup.world
        together = world.mean(torch.stack([value.float() for value in totals.values()]))
        values = dict(zip(totals, together.tolist(), strict=True))
        self._judge(step, values)
        self._bar.update()
        if (step + 1) % self.recipe.train.log_every == 0 or step + 1 == self.recipe.schedule.steps:
            speed = self._speed(step + 1)
            phase = phase_of(step, self.recipe.schedule)
            self.metrics.write("train", step + 1, **values, lr=lr, phase=phase, skipped=self.skipped, **speed)
            self._bar.set_postfix_str(self._line(values["cross_entropy"], lr, speed))

    def _judge(self, step: int, values: dict[str, float]) -> None:
        """A step with a non-finite loss or gradient left the weights alone; too many in a row end the run."""
        if all(math.isfinite(values[name]) for name in ("loss", "grad_norm")):
            self.bad_in_a_row = 0
            return
        self.skipped += 1
        self.bad_in_a_row += 1
        found = {name: repr(values[name]) for name in ("loss", "grad_norm")}
        self.metrics.write("event", step + 1, event="skipped step", **found)
        if self.bad_in_a_row >= self.recipe.train.max_bad_steps:
            kept = newest_checkpoint(self.recipe.folder)
            raise TrainingError(
                f"step {step + 1}: loss {values['loss']}, gradient norm {values['grad_norm']}; {self.bad_in_a_row} "
                f"steps in a row were not finite (train.max_bad_steps). They changed no weight, and "
                f"{f'the checkpoint {kept} is intact' if kept else 'no checkpoint had been saved yet'}. "
                f"The batch of step {step + 1}: {self._batch_documents(step)}"
            )

    def _batch_documents(self, step: int) -> str:
        rows = self.setup.data.mixture.describe(step)
        shown = "; ".join(f"{source}: {', '.join(origins[:3])}" for source, origins in rows[:8])
        return shown + (f"; and {len(rows) - 8} more sequences" if len(rows) > 8 else "")

    def _speed(self, step: int) -> dict[str, float]:
        before, then = self._logged_at
        now = time.perf_counter()
        self._logged_at = (step, now)
        self.seconds += now - then
        rate = (step - before) * self.recipe.train.batch_size * self.recipe.data.seq_len / (now - then)
        speed = {"tokens_per_second": round(rate, 1)}
        if self._peak:
            speed["mfu"] = round(rate * self._flops / (self._peak * self.setup.world.size), 4)
        return speed

    def _line(self, loss: float, lr: float, speed: dict[str, float]) -> str:
        parts = [f"loss {loss:.3f}", f"lr {lr:.2e}", f"{speed['tokens_per_second']:,.0f} tokens/s"]
        if "mfu" in speed:
            parts.append(f"MFU {speed['mfu']:.0%}")
        if not math.isnan(self.held_out):
            parts.append(f"held-out {self.held_out:.3f} bits/byte")
        if self.sentinel:
            parts.append(self.sentinel)
        if self.skipped:
            parts.append(f"{self.skipped} skipped")
        return ", ".join(parts)
