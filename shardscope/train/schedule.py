"""The learning rate over time, as a factor of its peak: WSD (warm up, stay, decay), and cosine for the ablation.

WSD: Hu et al. 2024, arXiv:2404.06395; the 1 - sqrt fall: Hägele et al. 2024, arXiv:2405.18392.
"""

from __future__ import annotations

import math

from shardscope.config import OptimizerConfig, ScheduleConfig


def lr_factor(step: int, schedule: ScheduleConfig) -> float:
    """The factor for step `step` (from 0) of `schedule.steps`: at most 1, and 0 only after the last step."""
    rise = (step + 1) / max(1.0, schedule.warmup * schedule.steps)
    if schedule.kind == "cosine":
        return min(rise, 0.5 * (1 + math.cos(math.pi * step / schedule.steps)))
    return min(rise, 1.0, _fall(step, schedule))


def momentum(step: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """Muon's momentum at step `step`: from `momentum_start` to `momentum` over the first share of the steps."""
    if not optimizer.momentum_start:
        return optimizer.momentum
    risen = min(1.0, step / max(1.0, optimizer.momentum_warmup * schedule.steps))
    return optimizer.momentum_start + risen * (optimizer.momentum - optimizer.momentum_start)


def phase_of(step: int, schedule: ScheduleConfig) -> str:
    """'warmup', 'stable' or 'decay' (of a cosine: 'warmup' or 'decay')."""
    if step + 1 < schedule.warmup * schedule.steps:
        return "warmup"
    if schedule.kind == "cosine" or step >= decay_start(schedule):
        return "decay"
    return "stable"


def decay_start(schedule: ScheduleConfig) -> int:
    """First step of the fall; equal to `schedule.steps` when a wsd rate never falls."""
    return schedule.steps - round(schedule.decay * schedule.steps)


def _fall(step: int, schedule: ScheduleConfig) -> float:
    start = decay_start(schedule)
    if step < start:
        return 1.0
    done = (step - start) / max(1, schedule.steps - start)
    return 1 - (math.sqrt(done) if schedule.shape == "sqrt" else done)
