"""The opposite test: what the found parts write in the loop, written into runs that do not loop, should bring the loop.

A clean run is a window of text that people wrote. From its last token on, the parts write what they wrote in the
loop's last copy, phase by phase; the rest of the model sees the clean text and what it writes itself.

Axes: row, pos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from shardscope.failures.intervals import Interval, bootstrap, wilson
from shardscope.failures.loop_xray.interventions import UNTOUCHED, Interventions, activations
from shardscope.failures.loop_xray.onset import Onset
from shardscope.failures.loop_xray.parts import Part
from shardscope.failures.loop_xray.replay import FEWEST_PERIODS, is_rotation
from shardscope.failures.loop_xray.rows import read_tokens, write_tokens
from shardscope.failures.loops import MIN_COPIES_OF_ONE_TOKEN, MIN_TOKENS, find_loop
from shardscope.generation import Decoder, Generation, Packed
from shardscope.model import Shard

CLEAN_RUNS, CLEAN_TOKENS = 8, 32


@dataclass(frozen=True, kw_only=True)
class Patching:
    """The found set patched into clean runs, and random parts of the same kinds beside it.

    `runs` that do not end in this loop by themselves; `brought`: those whose greedy text does with the patch. `effect`:
    mean change of the log-odds of the loop's tokens over its first period, in nats, bootstrapped over all runs.
    """

    runs: int
    brought: int
    rate: float
    interval: Interval
    effect: float
    effect_interval: Interval
    random_brought: int
    random_effect: float
    random_effect_interval: Interval


@torch.no_grad()
def patch_clean_runs(
    model: Shard,
    generation: Generation,
    onset: Onset,
    parts: Sequence[Part],
    random: Sequence[Part],
    clean: Int[Tensor, "row pos"],
) -> Patching:
    """Patch `parts`, and `random` ones, from the loop's last copy into the first tokens of each row of `clean`."""
    period = onset.period
    last = onset.first + period * (len(onset.copies) - 1)
    if last == 0:
        last = period  # the first token of all is predicted by nothing
    ids = torch.tensor([[*generation.prompt_ids, *generation.ids]], device=model.device)
    # Entry e predicts the loop's token e, counted from the last copy's first.
    bank = activations(model, ids[:, : last + period - 1], range(last - 1, last + period - 1))
    block = ids[0, last : last + period]
    length = max(FEWEST_PERIODS * period, MIN_TOKENS + period, MIN_COPIES_OF_ONE_TOKEN + 1)
    width = min(CLEAN_TOKENS, clean.shape[1], model.config.n_ctx - length)
    contexts = clean[:CLEAN_RUNS, :width].to(model.device)
    runs = len(contexts)
    sets = [*[list(parts)] * runs, *[list(random)] * runs, *[[]] * runs]
    rows = contexts.repeat(3, 1)
    packed = Packed(model)

    def entry_of(positions: Tensor) -> Tensor:
        return torch.where(positions < width - 1, UNTOUCHED, (positions - (width - 1)) % period)

    interventions = Interventions(model, sets, bank, entry_of)
    forced = torch.cat([rows, block.expand(len(rows), -1)], dim=1)
    decoder = Decoder(model, len(rows), width + length, packed)
    log_odds = read_tokens(decoder, interventions, forced, first=width).log_odds.reshape(3, runs, period)
    changes = (log_odds[:2] - log_odds[2]).mean(axis=2, dtype=np.float64)
    low, high = bootstrap(changes)
    decoder = Decoder(model, len(rows), width + length, packed)
    texts = write_tokens(decoder, Interventions(model, sets, bank, entry_of), rows.tolist(), length)
    brought = np.array([_ends_in(text, block.tolist()) for text in texts]).reshape(3, runs)
    # What loops like this by itself is no clean run.
    clean_runs = ~brought[2]
    left, hits = int(clean_runs.sum()), (brought[:2] & clean_runs).sum(axis=1).tolist()
    return Patching(
        runs=left,
        brought=hits[0],
        rate=hits[0] / max(1, left),
        interval=wilson(hits[0], left),
        effect=float(changes[0].mean()),
        effect_interval=Interval(float(low[0]), float(high[0])),
        random_brought=hits[1],
        random_effect=float(changes[1].mean()),
        random_effect_interval=Interval(float(low[1]), float(high[1])),
    )


def _ends_in(text: Sequence[int], block: Sequence[int]) -> bool:
    loop = find_loop(text)
    return loop is not None and is_rotation(text[loop.end - loop.period : loop.end], block)
