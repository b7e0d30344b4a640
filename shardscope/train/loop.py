"""The training loop: batches in, checkpoints and metrics out.

A batch is a pure function of the step, and a checkpoint holds all state there is, so a run that was killed and
started again takes exactly the steps it would have taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import DistError

from shardscope.checkpoint import TrainingState, checkpoint_folder, list_checkpoints, save_checkpoint
from shardscope.config import Recipe
from shardscope.data import Batch, Prefetcher
from shardscope.files import WriteError
from shardscope.model import Shard
from shardscope.train.biography_writer import BiographyWriter
from shardscope.train.distributed import World
from shardscope.train.evaluate import Score, evaluate
from shardscope.train.health import Trouble, dead_heads
from shardscope.train.interrupt import Stop
from shardscope.train.lineage import weights_digest
from shardscope.train.metrics import Metrics, NoMetrics, open_loggers
from shardscope.train.run import claimed_folder, go_back, newest_checkpoint, prune, why_not_back
from shardscope.train.schedule import decay_start, lr_factor, momentum, phase_of
from shardscope.train.sentinel import report, singular_values
from shardscope.train.setup import Setup, require_even_batch, set_up
from shardscope.train.sharding import gathered, whole_model
from shardscope.train.step_monitor import StepMonitor, TrainingError

Probe = Callable[[Shard], list[dict[str, Any]]]
Study = Callable[[Path, Iterator[str]], object]


@dataclass(frozen=True)
class Outcome:
    """How a run ended: 'finished' or 'paused early', with the checkpoint to go on from and the trouble it was in."""

    status: str
    reason: str
    step: int
    checkpoint: Path
    scores: dict[str, Score]
    evaluated: int = 0  # the step at which `scores` were taken
    troubles: tuple[Trouble, ...] = ()


def train(recipe: Recipe, *, probe: Probe | None = None, study: Study | None = None, progress: bool = True) -> Outcome:
    """Train as the recipe says, from its start or from its newest checkpoint; returns how it ended.

    `probe` makes sample records, every `train.sample_every` steps for the log and with each probe for the biography.
    `study` is called once the data is there, in the first process, with the run's folder and documents of its training
    text: what it learns from them it may leave in the folder. Raises ConfigError for a recipe that does not fit its
    folder, data or checkpoint, TrainingError after too many non-finite steps in a row, WriteError where no room is
    left, and Interrupted (a KeyboardInterrupt) at a signal before there was anything to save.
    """
    # The budget counts from here: tokenizing and compiling are part of what a borrowed machine is paid for.
    with (
        Stop(recipe.train.max_minutes, recipe.train.grace_seconds) as stop,
        World.join(recipe.train.device) as world,
        _what_is_intact(recipe),
    ):
        require_even_batch(recipe, world.size)
        with claimed_folder(recipe) if world.main else nullcontext():
            world.wait()
            while (outcome := _attempt(recipe, world, stop, probe, study, progress and world.main)) is None:
                pass  # it went back, and goes on from there at a lower rate
            return outcome


def _attempt(
    recipe: Recipe, world: World, stop: Stop, probe: Probe | None, study: Study | None, progress: bool
) -> Outcome | None:
    """One start of a run, to its end; None if it went back to an earlier checkpoint to be started again."""
    setup = set_up(recipe, world, progress)
    if study is not None and world.main:
        study(recipe.folder, setup.data.texts(setup.tokenizer))
    metrics = Metrics(recipe.folder, open_loggers(recipe, setup.logged)) if world.main else NoMetrics()
    try:
        loop = Loop(setup, metrics, stop, probe, progress)
        try:
            return loop.run()
        finally:
            loop.biography.close()
    finally:
        metrics.close()


@contextmanager
def _what_is_intact(recipe: Recipe) -> Iterator[None]:
    """To an error of the disk, the memory, the GPU or another process is added what the run can go on from."""
    try:
        yield
    except (WriteError, OSError, MemoryError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        newest = list_checkpoints(recipe.folder)[-1:]
        intact = f"the run's newest checkpoint, {newest[0]}, is whole" if newest else "no checkpoint had been saved yet"
        if isinstance(error, WriteError):
            raise WriteError(f"{reason}; {intact}") from None
        if isinstance(error, OSError):
            raise TrainingError(f"{error.filename or recipe.folder}: {error.strerror or reason}; {intact}") from error
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in reason:
            raise TrainingError(
                f"no memory is left ({reason}); lower train.micro_batch or the model; {intact}"
            ) from None
        if isinstance(error, torch.AcceleratorError | DistError):
            what = "the GPU failed" if isinstance(error, torch.AcceleratorError) else "another process was lost"
            raise TrainingError(f"{what} ({reason}); {intact}; the same command continues from there") from None
        raise


class Loop:
    def __init__(self, setup: Setup, metrics: Metrics, stop: Stop, probe: Probe | None, progress: bool) -> None:
        self.setup, self.metrics, self.stop, self.probe = setup, metrics, stop, probe
        self.recipe, self.world = setup.recipe, setup.world
        self.step, self.parent = setup.step, setup.parent
        self.scores: dict[str, Score] = {}
        self.evaluated = setup.step if "eval" in setup.looked else -1
        self.monitor = StepMonitor(self.recipe, setup, metrics, progress)
        self.biography = BiographyWriter(setup, probe)

    def run(self) -> Outcome | None:
        """Every step that is left. None if the run went back to an earlier checkpoint, to be started again."""
        if self.setup.complete:
            return self._outcome("finished", "every step was already done")
        self.metrics.write("event", self.step, event="start", **self.setup.describe())
        with self.stop.saving(), self.monitor, self._batches() as batches:
            self._look(but_not=self.setup.looked)
            for batch in batches:
                self.biography.prepare(self.step + 1)
                if self._should_end() or not self._take_step(batch):
                    break
                # Weights first: whatever fails while the model is looked at, they are safe.
                if self._is_time_to_save():
                    self._save("finished" if self.step == self.recipe.schedule.steps else "unfinished")
                self._look()
            self.monitor.catch_up()
            return self._end()

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
        factor = lr_factor(self.step, self.recipe.schedule) * self.setup.rate_scale
        # Averaged, because every process has to come to the same verdict on the step.
        totals["grad_norm"] = self.setup.optimizer.step(
            factor,
            self.world.mean(totals["loss"]),
            momentum(self.step, self.recipe.optimizer, self.recipe.schedule),
        )
        self.setup.optimizer.zero_grad()
        self.monitor.add(self.step, self.recipe.optimizer.lr * factor, totals)
        self.step += 1
        return True

    # ---------------------------------------------------------------------------------- when to do what

    def _look(self, but_not: frozenset[str] = frozenset()) -> None:
        """Whatever looks at the model at this step. `but_not` names what the log has of it already."""
        train = self.recipe.train
        looks = [("sentinel", train.sentinel_every, self._look_at_matrices), ("eval", train.eval_every, self._evaluate)]
        if self.probe is not None:
            looks.append(("sample", train.sample_every, self._sample))
        for kind, every, look in looks:
            untrained = self.step == 0 and kind != "eval"
            if every and self._due(every) and not untrained and kind not in but_not:
                look()
        if self.biography.wants(self.step):
            self.monitor.catch_up()
            self.biography.write(self.step)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.recipe.schedule.steps

    def _is_time_to_save(self) -> bool:
        return self._due(self.recipe.train.save_every) or self.step == decay_start(self.recipe.schedule)

    def _should_end(self) -> bool:
        return self.world.any(self.stop.reason is not None) or self._trouble() is not None

    def _trouble(self) -> Trouble | None:
        """What the run is paused for, or goes back for. The processes have read the same numbers, and agree."""
        return self.monitor.mendable if self.recipe.train.on_trouble != "report" else None

    def _batches(self) -> Prefetcher:
        mixture, world = self.setup.data.mixture, self.world
        return Prefetcher(
            lambda step: mixture.batch(step, world.rank, world.size),
            self.step,
            self.recipe.schedule.steps,
            pin=world.device.type == "cuda",
        )

    # -------------------------------------------------------------------------------- looking at the model

    def _evaluate(self) -> None:
        self.monitor.catch_up()  # on every rank: they average what they read
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
            self.monitor.evaluated(self.step, scores["all"].bits_per_byte)

    def _look_at_matrices(self) -> None:
        self.monitor.catch_up()
        if not (self.world.main or self.setup.sharded):
            return
        found, dead = singular_values(self.setup.model), dead_heads(self.setup.model)
        lost = [value.name for value in found if value.lost_rank]
        self.monitor.sentinel = f"rank loss in {len(lost)}" if lost else "full rank"
        self.metrics.write(
            "sentinel",
            self.step,
            report=report(found),
            lost=lost,
            dead_heads=dead,
            matrices={value.name: [value.smallest, value.largest] for value in found},
        )
        self.monitor.look(self.step, found, dead)

    def _sample(self) -> None:
        self.monitor.catch_up()
        model = whole_model(self.setup.model, keep=self.world.main)
        if model is None or self.probe is None:
            return
        model.eval()
        self.metrics.write_all("sample", self.step, self.probe(model))
        self.setup.model.train()

    # --------------------------------------------------------------------------------- saving and ending

    def _save(self, status: str, reason: str = "") -> Path:
        self.monitor.catch_up()
        folder = checkpoint_folder(self.recipe.folder, self.step)
        if not (self.world.main or self.setup.sharded):
            return folder
        weights = gathered(self.setup.model.state_dict(), keep=self.world.main)
        optimizer = gathered(self.setup.optimizer.state_dict(), keep=self.world.main)
        if self.world.main:
            self._require_finite({**weights, **optimizer})
            self.metrics.flush()  # the log is never behind a checkpoint, even if the machine dies
            facts = self._facts(status, reason, weights)
            save_checkpoint(
                folder,
                weights,
                config=self.setup.model.config,
                tokenizer=self.setup.tokenizer,
                state=TrainingState(step=self.step, facts=facts, optimizer=optimizer),
                notes={
                    "recipe": self.recipe.name,
                    "step": self.step,
                    "phase": facts["phase"],
                    "tokens": facts["tokens"],
                },
            )
            self.parent = {"checkpoint": str(folder), "step": self.step, "weights": facts["weights"]}
            prune(self.recipe.folder, self.recipe.train.keep)
        return folder

    def _facts(self, status: str, reason: str, weights: dict[str, Tensor]) -> dict[str, Any]:
        """What a checkpoint records of the run, for `shardscope info` and for going on."""
        recipe, last = self.recipe, max(self.step - 1, 0)
        return {
            "run": recipe.name,
            "steps": recipe.schedule.steps,
            "phase": phase_of(last, recipe.schedule),
            "status": status,
            "reason": reason,
            "tokens": self.setup.tokens_before + self.step * recipe.train.batch_size * recipe.data.seq_len,
            "skipped_steps": self.monitor.skipped,
            "data": self.setup.data.fingerprints,
            "data_position": {p.name: p.sequences for p in self.setup.data.mixture.plan(self.step)},
            "learning_rate": recipe.optimizer.lr * lr_factor(last, recipe.schedule) * self.setup.rate_scale,
            "seconds": round(self.monitor.seconds, 1),
            "weights": weights_digest(weights),
            "tokenizer": self.setup.tokenizer.fingerprint,
            "parent": self.parent,
            "ancestors": self.setup.ancestors,
            "code": self.setup.code,
        }

    def _require_finite(self, tensors: dict[str, Tensor]) -> None:
        """A checkpoint never holds what no run could go on from."""
        broken = next((name for name, tensor in sorted(tensors.items()) if not tensor.isfinite().all()), None)
        if broken is not None:
            newest = newest_checkpoint(self.recipe.folder)
            raise TrainingError(
                f"step {self.step}: {broken} holds numbers that are not finite, so nothing is saved; "
                f"{f'the checkpoint {newest} is intact' if newest else 'no checkpoint had been saved yet'}; "
                f"lower optimizer.lr={self.recipe.optimizer.lr:g}"
            )

    def _end(self) -> Outcome | None:
        """Say how the run ended, with a checkpoint to go on from; None after going back to an earlier one."""
        trouble = self._trouble()
        if self.step == self.recipe.schedule.steps:  # saved by the loop
            if self.evaluated == self.step or not self.world.main:
                return self._outcome("finished", "every step is done", log=True)
            return self._outcome("paused early", f"{self.stop.reason}, before the last evaluation", log=True)
        if self.stop.reason is None and trouble is not None:
            reason = str(trouble)
            if self.recipe.train.on_trouble == "rewind":
                if self._went_back(trouble):
                    return None
                reason += f"; {why_not_back(self.recipe, trouble)}"
        else:
            reason = self.stop.reason or "another process was stopped"
        self._save("paused early", reason)
        return self._outcome("paused early", reason, log=True)

    def _went_back(self, trouble: Trouble) -> bool:
        """Whether the run can be started again from before the trouble, at a lower rate."""
        done = go_back(self.recipe, trouble) if self.world.main else False
        return self.world.any(done)

    def _outcome(self, status: str, reason: str, log: bool = False) -> Outcome:
        if log:
            self.metrics.write("event", self.step, event=status, reason=reason)
        troubles = tuple(self.monitor.health.active.values())
        folder = checkpoint_folder(self.recipe.folder, self.step)
        return Outcome(status, reason, self.step, folder, self.scores, self.evaluated, troubles)
