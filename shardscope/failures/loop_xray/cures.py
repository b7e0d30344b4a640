"""Cure: what takes the loop away, and what it costs on text that people wrote.

Each remedy continues the prompt itself, far enough for four periods after the onset, and is scored on held-out text as
the distribution that one would sample from with it.

Axes: row, pos, vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from shardscope.failures.held_out import held_out_ids, loss_of, windows
from shardscope.failures.intervals import Interval, wilson
from shardscope.failures.loop_xray.interventions import ablation_bank, switched_off
from shardscope.failures.loop_xray.onset import Onset, text_of
from shardscope.failures.loop_xray.parts import find_parts
from shardscope.failures.loop_xray.replay import FEWEST_PERIODS, SHORTEST
from shardscope.failures.loops import find_loop
from shardscope.generation import Generation, SamplingConfig, generate
from shardscope.generation.sampling import penalise
from shardscope.model import Shard

Remedy = Literal["none", "repetition penalty", "temperature", "ablation"]

PENALTIES = (1.1, 1.3)
TEMPERATURES = (0.7, 1.0)
SAMPLES = 8  # seeds of each temperature
HELD_OUT_WINDOWS, HELD_OUT_LENGTH = 8, 256


@dataclass(frozen=True, kw_only=True)
class Cure:
    """One remedy: `setting` is the penalty, the temperature, or 0; `parts` what is ablated.

    `looping` of `texts` still end in a loop, any loop. `loss`: on held-out text, in nats a token; `cost`: the change
    from none. `sample` is the end of the first text.
    """

    remedy: Remedy
    setting: float
    parts: list[str]
    texts: int
    looping: int
    rate: float
    interval: Interval
    loss: float
    cost: float
    sample: str


@torch.no_grad()
def try_cures(
    model: Shard,
    generation: Generation,
    onset: Onset,
    smallest_set: Sequence[str] = (),
    *,
    reference: Int[Tensor, "row pos"] | None = None,
    seed: int = 0,
) -> list[Cure]:
    """Repetition penalties, temperatures and the ablation of `smallest_set`, side by side; the first is no remedy.

    `reference` is the held-out text (None: the built-in one, or random tokens for a model without a tokenizer).
    """
    if reference is None:
        reference = windows(held_out_ids(model), HELD_OUT_WINDOWS, min(HELD_OUT_LENGTH, model.config.n_ctx))
    reference = reference.to(model.device)
    parts = find_parts(model.config, smallest_set)
    bank = ablation_bank(model, reference)
    wanted = onset.onset + (2 + FEWEST_PERIODS) * onset.period + SHORTEST
    count = max(1, min(wanted, model.config.n_ctx - len(generation.prompt_ids)))
    trials: list[tuple[Remedy, float, SamplingConfig]] = [("none", 0.0, SamplingConfig())]
    trials += [("repetition penalty", value, SamplingConfig(repetition_penalty=value)) for value in PENALTIES]
    trials += [("temperature", value, SamplingConfig(temperature=value)) for value in TEMPERATURES]
    if parts:
        trials.append(("ablation", 0.0, SamplingConfig()))
    found: list[Cure] = []
    for remedy, setting, sampling in trials:
        samples = SAMPLES if remedy == "temperature" else 1
        sampling = replace(sampling, max_new_tokens=count, seed=seed)
        with switched_off(model, parts, bank) if remedy == "ablation" else nullcontext():
            texts = generate(model, [list(generation.prompt_ids)] * samples, sampling)
            loss = _loss(model, reference, remedy, setting)
        looping = sum(find_loop(text.ids) is not None for text in texts)
        found.append(
            Cure(
                remedy=remedy,
                setting=setting,
                parts=[part.name for part in parts] if remedy == "ablation" else [],
                texts=samples,
                looping=looping,
                rate=looping / samples,
                interval=wilson(looping, samples),
                loss=loss,
                cost=loss - (found[0].loss if found else loss),
                sample=text_of(model, texts[0].ids[-48:]),
            )
        )
    return found


def _loss(model: Shard, tokens: Int[Tensor, "row pos"], remedy: Remedy, setting: float) -> float:
    """The loss on held-out text of the distribution that one samples from with the remedy."""
    if remedy == "repetition penalty":
        return loss_of(model, tokens, lambda logits, row: penalise(logits, _seen(row, logits.shape[1]), setting))
    if remedy == "temperature":
        return loss_of(model, tokens, lambda logits, row: logits / setting)
    return loss_of(model, tokens)


def _seen(tokens: Int[Tensor, "pos"], vocab: int) -> Bool[Tensor, "pos vocab"]:
    """The tokens up to each position, that one included."""
    return F.one_hot(tokens, vocab).to(torch.int32).cumsum(dim=0) > 0
