"""Cure: what takes the loop away, and what it costs on text that people wrote.

Each remedy continues the prompt itself, far enough for four periods after the onset, and is scored on held-out text as
the distribution that one would sample from with it. All continuations are rows of one batch.

Axes: row, pos, vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from shardscope.failures.held_out import held_out_ids, losses_of, windows
from shardscope.failures.intervals import Interval, wilson
from shardscope.failures.loop_xray.interventions import Activations, Interventions, ablation_bank
from shardscope.failures.loop_xray.onset import Onset, pieces_of, text_of
from shardscope.failures.loop_xray.parts import Part, find_parts
from shardscope.failures.loop_xray.replay import FEWEST_PERIODS, SHORTEST
from shardscope.failures.loop_xray.rows import call, losses_without, prefill, rows_at_once
from shardscope.failures.loops import find_counter, find_loop
from shardscope.generation import Decoder, Generation, SamplingConfig, StopReason
from shardscope.generation.sampling import Sampler, penalise
from shardscope.model import Shard

Remedy = Literal["none", "repetition penalty", "temperature", "ablation"]

PENALTIES = (1.1, 1.3)
TEMPERATURES = (0.7, 1.0)
SAMPLES = 8  # seeds of each temperature
HELD_OUT_WINDOWS, HELD_OUT_LENGTH = 8, 256


@dataclass(frozen=True, kw_only=True)
class Cure:
    """One remedy: `setting` is the penalty, the temperature, or 0; `parts` what is ablated.

    `looping` of `texts` still end in a loop, any loop, counters included. `loss`: on held-out text, in nats a token;
    `cost`: the change from none. `ids` and `text` are the first continuation, which ended because of `stop_reason`.
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
    ids: list[int]
    text: str
    stop_reason: StopReason


@dataclass(frozen=True)
class _Trial:
    remedy: Remedy
    setting: float
    samples: int
    sampling: SamplingConfig
    parts: tuple[Part, ...] = ()


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

    A part is ablated in the prompt as well. `reference` is the held-out text (None: the built-in one, or random tokens
    for a model without a tokenizer).
    """
    if reference is None:
        reference = windows(held_out_ids(model), HELD_OUT_WINDOWS, min(HELD_OUT_LENGTH, model.config.n_ctx))
    reference = reference.to(model.device)
    bank = ablation_bank(model, reference)
    wanted = onset.onset + (2 + FEWEST_PERIODS) * onset.period + SHORTEST
    count = max(1, min(wanted, model.config.n_ctx - len(generation.prompt_ids)))
    greedy = SamplingConfig(max_new_tokens=count, seed=seed)
    trials = [_Trial("none", 0.0, 1, greedy)]
    trials += [_Trial("repetition penalty", value, 1, replace(greedy, repetition_penalty=value)) for value in PENALTIES]
    trials += [_Trial("temperature", value, SAMPLES, replace(greedy, temperature=value)) for value in TEMPERATURES]
    if smallest_set:
        trials.append(_Trial("ablation", 0.0, 1, greedy, tuple(find_parts(model.config, smallest_set))))
    written = iter(_write(model, generation.prompt_ids, trials, bank))
    changes = [_change(trial) for trial in trials if not trial.parts]
    losses = losses_of(model, reference, changes)
    losses += [losses_without(model, [trial.parts], bank, reference)[0] for trial in trials if trial.parts]
    found = []
    for trial, loss in zip(trials, losses, strict=True):
        texts = [next(written) for _ in range(trial.samples)]
        looping = sum(_loops(model, ids) for ids in texts)
        found.append(
            Cure(
                remedy=trial.remedy,
                setting=trial.setting,
                parts=[part.name for part in trial.parts],
                texts=trial.samples,
                looping=looping,
                rate=looping / trial.samples,
                interval=wilson(looping, trial.samples),
                loss=loss,
                cost=loss - losses[0],
                ids=texts[0],
                text=text_of(model, texts[0]),
                stop_reason="length" if len(texts[0]) == count else "eos",
            )
        )
    return found


def _write(model: Shard, prompt: Sequence[int], trials: Sequence[_Trial], bank: Activations) -> list[list[int]]:
    """What `generate` writes in every trial, sample after sample; the parts of a trial write the mean of `bank`."""
    rows = [(trial, sample) for trial in trials for sample in range(trial.samples)]
    capacity = len(prompt) + trials[0].sampling.max_new_tokens
    at_once = rows_at_once(Decoder(model, 1, capacity))
    written: list[list[int]] = []
    for first in range(0, len(rows), at_once):
        written += _write_rows(model, prompt, rows[first : first + at_once], bank)
    return written


def _write_rows(
    model: Shard, prompt: Sequence[int], rows: Sequence[tuple[_Trial, int]], bank: Activations
) -> list[list[int]]:
    count = rows[0][0].sampling.max_new_tokens
    decoder = Decoder(model, len(rows), len(prompt) + count)
    interventions = Interventions(model, [trial.parts for trial, _ in rows], bank)
    logits = prefill(decoder, interventions, [prompt] * len(rows))
    samplers, first = [], 0
    for trial, its in groupby(rows, key=lambda row: row[0]):
        seeds = [trial.sampling.seed + sample for _, sample in its]
        some = slice(first, first + len(seeds))
        samplers.append((some, Sampler(trial.sampling, [prompt] * len(seeds), seeds, logits[some])))
        first += len(seeds)
    eos = None if model.tokenizer is None else model.tokenizer.eos_id
    written: list[list[int]] = [[] for _ in rows]
    ended: set[int] = set()
    for step in range(1, count + 1):
        ids = [id for some, sampler in samplers for id in sampler(logits[some])[0]]
        ended |= {row for row, id in enumerate(ids) if id == eos}
        for row, id in enumerate(ids):
            if row not in ended:
                written[row].append(id)
        if step == count or len(ended) == len(rows):
            break
        tokens = torch.tensor(ids, device=model.device)[:, None]
        logits = decoder.logits(call(decoder, interventions, tokens, [1] * len(rows)))[:, 0]
    return written


def _loops(model: Shard, ids: Sequence[int]) -> bool:
    return find_loop(ids) is not None or find_counter(ids, pieces_of(model, ids)) is not None


def _change(trial: _Trial) -> Callable[[Tensor, Tensor], Tensor] | None:
    """What the remedy makes of the logits [pos vocab] after tokens [pos], before one samples."""
    if trial.remedy == "repetition penalty":
        return lambda logits, row: penalise(logits, _seen(row, logits.shape[1]), trial.setting)
    if trial.remedy == "temperature":
        return lambda logits, row: logits / trial.setting
    return None


def _seen(tokens: Int[Tensor, "pos"], vocab: int) -> Bool[Tensor, "pos vocab"]:
    """The tokens up to each position, that one included."""
    return F.one_hot(tokens, vocab).to(torch.int8).cummax(dim=0).values > 0
