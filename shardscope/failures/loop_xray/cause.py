"""Cause, by intervention: every part switched off alone, the smallest set that breaks the loop, and random sets beside.

A set breaks the loop if greedy text ends neither in it nor in a variant of it. The sign of an effect is measured: a
part that holds the loop back has a positive one. Sets are compared by the share of starts at which they break the loop,
with Wilson intervals.

Axes: row, pos; `start` counts the places at which greedy decoding takes over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from shardscope.config import LayerKind
from shardscope.failures.held_out import held_out_ids, windows
from shardscope.failures.intervals import Interval, bootstrap, wilson
from shardscope.failures.loop_xray.interventions import Ablation, Activations, ablation_bank
from shardscope.failures.loop_xray.onset import Onset
from shardscope.failures.loop_xray.parts import Part, XrayError, parts_of
from shardscope.failures.loop_xray.patching import Patching, patch_clean_runs
from shardscope.failures.loop_xray.replay import STARTS, Outcome, Replay, breaks
from shardscope.failures.loop_xray.rows import losses_without
from shardscope.failures.loop_xray.suspects import Suspects, copying_heads
from shardscope.generation import Generation
from shardscope.model import Shard

Verdict = Literal["copy", "fallback", "undecided"]
Progress = Callable[[float, str], None]

MAX_SIZE = 8  # parts of the largest set that is tried
REFERENCE_WINDOWS, REFERENCE_LENGTH = 8, 256
GIVEN_COPIES, GIVEN_TOKENS = 4, 128  # of the loop, before greedy decoding takes over; two copies at least
COST_WINDOWS = 2  # of the reference, for choosing among sets of one size
RANDOM_SETS = (8, 48)  # drawn at once, and at most
RUINOUS = 1.0  # nats a token of held-out loss; without so much, the loop is not all that broke
CANDIDATES = 24  # parts that a greedy step tries


@dataclass(frozen=True, kw_only=True)
class PartEffect:
    """One part switched off alone.

    `effect`: mean change of the log-odds of the loop's next token, in nats; below 0 the part carries the loop, above 0
    it holds the loop back. `interval` is bootstrapped over the tokens. `outcome`: what the text then ends in.
    """

    name: str
    kind: Literal["head", "mlp"]
    layer: int
    layer_kind: LayerKind
    effect: float
    interval: Interval
    outcome: Outcome
    broken: bool


@dataclass(frozen=True, kw_only=True)
class SetEffect:
    """Several parts switched off together, from several starts. `rate` and `interval`: of the starts that break."""

    parts: list[str]
    effect: float
    effect_interval: Interval
    starts: int
    broken: int
    rate: float
    interval: Interval
    another_loop: int  # starts that end in another loop instead
    held_out_cost: float  # change of the loss on held-out text, in nats a token


@dataclass(frozen=True, kw_only=True)
class RandomControl:
    """Random sets of the same size and kinds of layer, without the parts in question. Each is one trial."""

    sets: int
    broken: int
    rate: float
    interval: Interval
    effect: float  # mean over the sets
    effect_interval: Interval


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What carries the loop.

    `parts`: each alone. `alone`: those that break it alone, from the first start. `smallest`: the smallest set found
    that breaks the loop from every start, None if none of up to `max_size` parts does. `copying`: the fewest heads, in
    the order of their attention to earlier copies, that do; or as many as were tried. Each has its random control.
    `verdict` and `reason`: see `judge`. `patching`: the set brought into clean runs.
    """

    verdict: Verdict
    reason: str
    parts: list[PartEffect]
    alone: list[str]
    smallest: SetEffect | None
    random_control: RandomControl | None
    copying: SetEffect
    copying_control: RandomControl
    patching: Patching | None
    ablation: Ablation
    max_size: int
    interventions: int

    @property
    def smallest_set(self) -> list[str]:
        return [] if self.smallest is None else self.smallest.parts


@torch.no_grad()
def find_cause(
    model: Shard,
    generation: Generation,
    onset: Onset,
    suspects: Suspects,
    *,
    ablation: Ablation = "mean",
    reference: Int[Tensor, "row pos"] | None = None,
    max_size: int = MAX_SIZE,
    seed: int = 0,
    progress: Progress | None = None,
) -> Cause:
    """Ablate every part, search the smallest set, draw the random ones, and judge.

    `reference`: token ids whose activations stand in for what is ablated (None: built-in held-out text, or random
    tokens for a model without a tokenizer). Raises XrayError.
    """
    if max_size < 1:
        raise XrayError(f"max_size={max_size} leaves no set to search for; use at least 1")
    if reference is None:
        length = min(REFERENCE_LENGTH, model.config.n_ctx)
        reference = windows(held_out_ids(model), REFERENCE_WINDOWS, length)
    lab = _Lab(model, generation, onset, reference.to(model.device), ablation_bank(model, reference, ablation, seed))
    report = progress or _silent
    report(0.0, "switching off every part alone")
    parts = lab.alone()
    report(0.35, "switching off the heads that look back")
    copying = lab.copying(suspects, max_size)
    report(0.45, "searching the smallest set")
    smallest = lab.smallest(parts, copying, max_size)
    report(0.65, "drawing random sets")
    rng = np.random.default_rng(seed)
    copying_effect = lab.set_effect(copying)
    copying_control = lab.control(copying, copying_effect, rng)
    report(0.75, "drawing random sets")
    smallest_effect = None if smallest is None else lab.set_effect(smallest)
    control = None
    if smallest is not None and smallest_effect is not None:
        same = sorted(smallest) == sorted(copying)
        control = copying_control if same else lab.control(smallest, smallest_effect, rng)
    report(0.9, "patching clean runs")
    patching = None
    if smallest is not None:
        patching = patch_clean_runs(model, generation, onset, smallest, lab.like(smallest, rng), reference)
    verdict, reason = judge(smallest_effect, copying_effect, copying_control)
    report(1.0, "judged")
    return Cause(
        verdict=verdict,
        reason=reason,
        parts=parts,
        alone=[part.name for part in parts if part.broken],
        smallest=smallest_effect,
        random_control=control,
        copying=copying_effect,
        copying_control=copying_control,
        patching=patching,
        ablation=ablation,
        max_size=max_size,
        interventions=lab.interventions,
    )


def judge(smallest: SetEffect | None, copying: SetEffect, control: RandomControl) -> tuple[Verdict, str]:
    """copy: the heads that look at earlier copies break the loop, and random sets of heads clearly less often.

    fallback: the loop goes on without them, and what breaks it is not heads alone. undecided: anything else.
    """
    heads = ", ".join(copying.parts)
    broken = f"without {heads} it breaks from {copying.broken} of {copying.starts} starts"
    beside = f"without as many random heads in {control.broken} of {control.sets} cases"
    if copying.interval.low > control.interval.high:
        return "copy", f"the loop is copied: {broken}, {beside}"
    if copying.interval.high < 0.5:
        if smallest is None:
            return "fallback", f"the loop is not copied: {broken}, and no set that was tried breaks it"
        if any(name.startswith("MLP") for name in smallest.parts):
            return "fallback", f"the loop is not copied: {broken}; {', '.join(smallest.parts)} breaks it"
        return "undecided", f"{broken}; {', '.join(smallest.parts)} break it and do not look at earlier copies most"
    return "undecided", f"{broken}, {beside}: the intervals overlap"


def _silent(done: float, words: str) -> None:
    pass


class _Lab:
    """One loop, its replays, and the arithmetic that all questions share."""

    def __init__(
        self, model: Shard, generation: Generation, onset: Onset, reference: Int[Tensor, "row pos"], bank: Activations
    ) -> None:
        self.model, self.reference, self.bank = model, reference, bank
        self.replay = established_replay(model, generation, onset)
        self.whole = self.replay.scores([[]], bank).log_odds[0]
        self.parts = parts_of(model.config)
        self.interventions = 0
        self._costs: dict[frozenset[Part], float] = {}
        self._played: dict[frozenset[Part], tuple[np.ndarray, list[Outcome]]] = {}
        self._first: dict[frozenset[Part], Outcome] = {}  # what becomes of the loop from its first start

    def effects(self, log_odds: np.ndarray) -> tuple[list[float], list[Interval]]:
        changes = (log_odds - self.whole).astype(np.float64)
        low, high = bootstrap(changes)
        return changes.mean(axis=1).tolist(), [Interval(*map(float, ends)) for ends in zip(low, high, strict=True)]

    def alone(self) -> list[PartEffect]:
        played = self.replay.play([[part] for part in self.parts], self.bank, [[0]] * len(self.parts))
        self.interventions += len(self.parts)
        self._first |= {frozenset([part]): found[0] for part, found in zip(self.parts, played.outcomes, strict=True)}
        # The most negative effect first.
        self.strongest = [self.parts[row] for row in played.log_odds.mean(axis=1).argsort(kind="stable")]
        effects, intervals = self.effects(played.log_odds)
        return [
            PartEffect(
                name=part.name,
                kind=part.kind,
                layer=part.layer,
                layer_kind=part.layer_kind(self.model.config),
                effect=effects[row],
                interval=intervals[row],
                outcome=played.outcomes[row][0],
                broken=breaks(played.outcomes[row][0]),
            )
            for row, part in enumerate(self.parts)
        ]

    def smallest(self, alone: Sequence[PartEffect], copying: list[Part], max_size: int) -> list[Part] | None:
        """The smallest set that breaks the loop and leaves the model a model; if there is none, the smallest of all.

        Of single parts the one that costs least elsewhere. Whatever ruins a model breaks its loops, too.
        """
        single = [[part] for part, effect in zip(self.parts, alone, strict=True) if effect.broken]
        single = [parts for parts, broken in zip(single, self.breaks(single), strict=True) if broken]
        costs = dict(zip([part for [part] in single], self.costs(single), strict=True))
        cheapest = min(costs, key=lambda part: costs[part], default=None)
        if cheapest is not None and costs[cheapest] <= RUINOUS:
            return [cheapest]
        found = [self.greedy([part for part, cost in costs.items() if cost > RUINOUS], max_size)]
        if self.breaks([copying])[0]:
            found.append(self.pruned(copying))
        sets = [parts for parts in found if parts is not None]
        harmless = [parts for parts, cost in zip(sets, self.costs(sets), strict=True) if cost <= RUINOUS]
        if cheapest is not None:
            sets = [[cheapest]]
        return min(harmless or sets, key=len, default=None)

    def greedy(self, without: Sequence[Part], max_size: int) -> list[Part] | None:
        """Add the part without which the loop's tokens lose most log-odds, until the loop breaks; then prune."""
        found: list[Part] = []
        # Those that do most alone; the others are not likely to do more together.
        strongest = [part for part in self.strongest if part not in without][:CANDIDATES]
        while len(found) < min(max_size, len(strongest)):
            candidates = [[*found, part] for part in strongest if part not in found]
            scores = self.replay.scores(candidates, self.bank)
            self.interventions += len(candidates)
            best = int(scores.log_odds.mean(axis=1).argmin())
            found = candidates[best]
            # While every token of the loop is still the likeliest, greedy text is the loop.
            if scores.margin[best].min() < 0 and self.breaks([found])[0]:
                return self.pruned(found)
        return None

    def pruned(self, found: list[Part]) -> list[Part]:
        """Without the parts that the set does not need."""
        while len(found) > 1:
            fewer = [[part for part in found if part != left_out] for left_out in found]
            still = self.first_to_break(fewer)
            if still is None:
                break
            found = still
        return found

    def first_to_break(self, sets: Sequence[list[Part]]) -> list[Part] | None:
        """The first of the sets that breaks the loop from every start; those behind it are hardly tried."""
        self._try_first(sets)
        return next((parts for parts in sets if self.breaks([parts])[0]), None)

    def breaks(self, sets: Sequence[list[Part]]) -> list[bool]:
        """Whether each set breaks the loop from every start."""
        self._try_first(sets)
        likely = [breaks(self._first[frozenset(parts)]) for parts in sets]
        self._play_all([parts for parts, broken in zip(sets, likely, strict=True) if broken])
        return [broken and all(map(breaks, self.played(parts)[1])) for parts, broken in zip(sets, likely, strict=True)]

    def played(self, parts: Sequence[Part]) -> tuple[np.ndarray, list[Outcome]]:
        """The log-odds without a set, and what becomes of the loop from every start. Each set is played once."""
        self._play_all([parts])
        return self._played[frozenset(parts)]

    def _try_first(self, sets: Sequence[Sequence[Part]]) -> None:
        """Most sets do not even break the loop from its first start, and need no other."""
        new = [parts for parts in sets if frozenset(parts) not in self._first]
        if new:
            outcomes = self.replay.play(new, self.bank, [[0]] * len(new)).outcomes
            self.interventions += len(new)
            self._first |= {frozenset(parts): found[0] for parts, found in zip(new, outcomes, strict=True)}

    def _play_all(self, sets: Sequence[Sequence[Part]]) -> None:
        new = [parts for parts in sets if frozenset(parts) not in self._played]
        if new:
            replayed = self.replay.play(new, self.bank)
            self.interventions += sum(frozenset(parts) not in self._first for parts in new)
            for row, parts in enumerate(new):
                self._played[frozenset(parts)] = replayed.log_odds[row], replayed.outcomes[row]

    def copying(self, suspects: Suspects, max_size: int) -> list[Part]:
        """The fewest heads by attention to earlier copies that break the loop; leaves half of the heads to compare."""
        n_heads = self.model.config.n_layers * self.model.config.n_heads
        heads = list(copying_heads(suspects, min(max_size, max(1, n_heads // 2))))
        sets = [heads[: size + 1] for size in range(len(heads))]
        return self.first_to_break(sets) or heads

    def set_effect(self, parts: list[Part]) -> SetEffect:
        log_odds, outcomes = self.played(parts)
        [effect], [interval] = self.effects(log_odds[None])
        broken = sum(map(breaks, outcomes))
        return SetEffect(
            parts=[part.name for part in parts],
            effect=effect,
            effect_interval=interval,
            starts=STARTS,
            broken=broken,
            rate=broken / STARTS,
            interval=wilson(broken, STARTS),
            another_loop=outcomes.count("another loop"),
            held_out_cost=self.costs([parts])[0],
        )

    def control(self, parts: list[Part], effect: SetEffect, rng: np.random.Generator) -> RandomControl:
        """Random sets until their interval lies apart from that of `effect`, or RANDOM_SETS are drawn."""
        at_once, most = RANDOM_SETS
        broken: list[bool] = []
        log_odds: list[np.ndarray] = []
        while len(broken) < most:
            sets = [self.like(parts, rng) for _ in range(at_once)]
            if not all(sets):  # there are no other parts of these kinds
                break
            starts = [[int(start)] for start in rng.integers(STARTS, size=at_once)]
            played = self.replay.play(sets, self.bank, starts)
            self.interventions += at_once
            broken += [breaks(outcome) for [outcome] in played.outcomes]
            log_odds.append(played.log_odds)
            interval = wilson(sum(broken), len(broken))
            apart = effect.interval.low > interval.high or effect.interval.high < interval.low
            if apart or effect.rate < 0.5:  # what does not break the loop needs no comparison
                break
        effects = np.array([[0.0]])
        if log_odds:
            effects = (np.concatenate(log_odds) - self.whole).mean(axis=1, dtype=np.float64)[None]
        low, high = bootstrap(effects)
        return RandomControl(
            sets=len(broken),
            broken=sum(broken),
            rate=sum(broken) / max(1, len(broken)),
            interval=wilson(sum(broken), len(broken)),
            effect=float(effects.mean()),
            effect_interval=Interval(float(low[0]), float(high[0])),
        )

    def like(self, parts: Sequence[Part], rng: np.random.Generator) -> list[Part]:
        """As many other parts of the same kinds in layers of the same kinds, at random; empty if there are too few."""
        config = self.model.config
        drawn: list[Part] = []
        for part in parts:
            pool = [
                other
                for other in self.parts
                if other.kind == part.kind and other.layer_kind(config) == part.layer_kind(config)
                if other not in parts and other not in drawn
            ]
            if not pool:
                return []
            drawn.append(pool[int(rng.integers(len(pool)))])
        return drawn

    def costs(self, sets: Sequence[Sequence[Part]]) -> list[float]:
        """The change of the loss on the reference without each set, in nats a token."""
        asked = [frozenset(parts) for parts in [[], *sets]]
        new = [parts for parts in dict.fromkeys(asked) if parts not in self._costs]
        if new:
            tokens = self.reference[:COST_WINDOWS]
            losses = losses_without(self.model, [list(parts) for parts in new], self.bank, tokens)
            self._costs |= zip(new, losses, strict=True)
        whole, *without = (self._costs[parts] for parts in asked)
        return [loss - whole for loss in without]


def established_replay(model: Shard, generation: Generation, onset: Onset) -> Replay:
    """The loop after its first copies, or after all of them. Raises XrayError if it does not go on."""
    ids = [*generation.prompt_ids, *generation.ids]
    written = len(onset.copies)
    some = min(written, max(2, min(GIVEN_COPIES, GIVEN_TOKENS // onset.period)))
    config = model.config
    nothing = Activations(
        torch.zeros(config.n_layers, 1, config.n_heads, config.d_head, device=model.device),
        torch.zeros(config.n_layers, 1, config.d_model, device=model.device),
    )
    for given in sorted({some, written}):
        replay = Replay(model, ids, onset.first, onset.period, given)
        if set(replay.play([[]], nothing).outcomes[0]) == {"same loop"}:
            return replay
    raise XrayError(
        f"the text ends in a loop of {onset.period} tokens, but greedy decoding leaves it after {written} copies; "
        "generate more tokens, and greedily (temperature 0)"
    )
