"""The whole X-ray of one looping text: when, who, cause, cure. Each stage can be called alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from shardscope.failures.loop_xray.cause import MAX_SIZE, Cause, Verdict, find_cause
from shardscope.failures.loop_xray.cures import Cure, try_cures
from shardscope.failures.loop_xray.interventions import Ablation
from shardscope.failures.loop_xray.onset import Onset, find_onset
from shardscope.failures.loop_xray.suspects import Suspects, find_suspects
from shardscope.generation import Generation
from shardscope.model import Shard

Progress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True)
class Xray:
    """All that is known of one loop. `seconds`: what each stage took."""

    prompt: str
    text: str
    when: Onset
    who: Suspects
    cause: Cause
    cures: list[Cure]
    seconds: dict[str, float]

    @property
    def onset(self) -> int:
        return self.when.onset

    @property
    def period(self) -> int:
        return self.when.period

    @property
    def verdict(self) -> Verdict:
        return self.cause.verdict

    @property
    def smallest_set(self) -> list[str]:
        """Names such as L3H3 and MLP5; empty if no set was found that breaks the loop."""
        return self.cause.smallest_set

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `json.dump`: the answer first, then every stage."""
        answer = {
            "prompt": self.prompt,
            "text": self.text,
            "onset": self.onset,
            "period": self.period,
            "verdict": self.verdict,
            "reason": self.cause.reason,
            "smallest_set": self.smallest_set,
            "random_control": None if self.cause.random_control is None else asdict(self.cause.random_control),
        }
        stages = {
            "when": asdict(self.when),
            "who": asdict(self.who),
            "cause": asdict(self.cause),
            "cures": [asdict(cure) for cure in self.cures],
        }
        # Tuples become lists, as they will in the file.
        plain: dict[str, Any] = json.loads(json.dumps({**answer, **stages, "seconds": self.seconds}))
        return plain


def xray(
    model: Shard,
    generation: Generation,
    *,
    ablation: Ablation = "mean",
    reference: Int[Tensor, "row pos"] | None = None,
    max_size: int = MAX_SIZE,
    seed: int = 0,
    progress: Progress | None = None,
) -> Xray:
    """Explain the loop in which a text ends: `find_onset`, `find_suspects`, `find_cause`, `try_cures`.

    `ablation`: what stands in for a part that is switched off, its mean over `reference` or what it wrote at random
    places of it. `reference`: token ids [row pos] (None: built-in held-out text, or random tokens for a model without a
    tokenizer). `max_size`: parts of the largest set that is searched. `progress` is called with the share that is done
    and a few words. Raises XrayError for a text that does not loop.
    """
    report = progress or (lambda done, words: None)
    seconds: dict[str, float] = {}
    started = perf_counter()

    def lap(stage: str) -> None:
        nonlocal started
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        now = perf_counter()
        seconds[stage], started = round(now - started, 3), now

    report(0.0, "finding the onset")
    when = find_onset(model, generation)
    lap("when")
    report(0.02, "ranking heads and MLPs")
    who = find_suspects(model, generation, when)
    lap("who")
    cause = find_cause(
        model,
        generation,
        when,
        who,
        ablation=ablation,
        reference=reference,
        max_size=max_size,
        seed=seed,
        progress=lambda done, words: report(0.04 + 0.86 * done, words),
    )
    lap("cause")
    report(0.9, "trying cures")
    cures = try_cures(model, generation, when, cause.smallest_set, reference=reference, seed=seed)
    lap("cures")
    report(1.0, "done")
    return Xray(
        prompt=generation.prompt,
        text=generation.text,
        when=when,
        who=who,
        cause=cause,
        cures=cures,
        seconds=seconds,
    )
