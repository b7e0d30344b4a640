"""The numbers of each step: read from the device, logged, shown, and judged."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from shardscope.config import Recipe
from shardscope.progress import progress_bar
from shardscope.train.flops import datasheet_flops, flops_per_token
from shardscope.train.health import Health, Trouble
from shardscope.train.metrics import Metrics
from shardscope.train.run import newest_checkpoint
from shardscope.train.schedule import phase_of
from shardscope.train.sentinel import Singular
from shardscope.train.setup import Setup

# Steps between taking a step and reading its numbers. An accelerator's are read one step late, so that the host never
# waits for the step it has just begun.
LAG = {"cpu": 0}


class TrainingError(RuntimeError):
    """The run cannot go on; the message says at which step, on which batch, and what is intact."""


class StepMonitor:
    """Is handed each step's numbers, still on the device. A context manager, for the progress bar's sake."""

    def __init__(self, recipe: Recipe, setup: Setup, metrics: Metrics, progress: bool) -> None:
        self.recipe, self.setup, self.metrics = recipe, setup, metrics
        self.sentinel, self.held_out = "", math.nan
        self.skipped, self.bad_in_a_row = setup.skipped, 0
        self.seconds = setup.seconds
        self.health = Health(recipe, setup.model.config.vocab_size, setup.model.config.logit_cap, setup.token_entropy)
        self.health.resume(setup.measured, setup.troubles)
        self.mendable: Trouble | None = None
        self._lag = LAG.get(setup.world.device.type, 1)
        self._waiting: deque[tuple[int, float, dict[str, Tensor]]] = deque()
        self._logged_at = (setup.step, time.perf_counter())
        self._flops = flops_per_token(setup.model.config, recipe.data.seq_len)
        self._peak = datasheet_flops(setup.world.device)
        self._bar = progress_bar(
            total=recipe.schedule.steps, initial=setup.step, desc=recipe.name, unit="step", disable=not progress
        )

    def __enter__(self) -> StepMonitor:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def add(self, step: int, lr: float, totals: dict[str, Tensor]) -> None:
        """The numbers of step `step` (from 0), at rate `lr`."""
        self._waiting.append((step, lr, totals))
        while len(self._waiting) > self._lag:
            self._read(*self._waiting.popleft())

    def catch_up(self) -> None:
        """Read what is still on the device. Every process has to call this at the same step."""
        while self._waiting:
            self._read(*self._waiting.popleft())

    def look(self, step: int, found: list[Singular], dead: list[str]) -> None:
        """What the matrices of the model say at a step."""
        self._tell(step, lambda: self.health.matrices(step, found, dead))

    def evaluated(self, step: int, bits_per_byte: float) -> None:
        """What the held-out text says at a step, over all sources."""
        self.held_out = bits_per_byte
        self._tell(step, lambda: self.health.evaluation(step, bits_per_byte))

    def _tell(self, step: int, look: Callable[[], list[Trouble]]) -> None:
        """Log the trouble that `look` finds, and that which is over."""
        before = set(self.health.active)
        for trouble in look():
            self.metrics.write(
                "event", step, event="trouble", trouble=trouble.kind, since=trouble.step, evidence=trouble.evidence
            )
        for kind in sorted(before - self.health.active.keys()):
            self.metrics.write("event", step, event="over", trouble=kind)

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
            self._tell(step + 1, lambda: self.health.step(step + 1, values))
            self.mendable = self.mendable or self.health.mendable(step + 1)
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
        parts += [f"{trouble.kind} since step {trouble.step:,}" for trouble in self.health.active.values()]
        return ", ".join(parts)
