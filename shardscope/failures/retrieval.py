"""How long a model's context really is: a fact planted far back and asked for at the end, and the loss by position.

    [… filler …] The secret word of Alice is river. [… filler …] The secret word of Alice is

A retrieval is scored three ways: the answer is the likeliest of all tokens (`recalled`), the likeliest among the
values that might have been planted (`chosen`; chance is one in CANDIDATES), or gains probability by being planted
(`lift`). The same with every global layer cut to the sliding window, and with single global heads replaced by their
mean where the question stands: a head that fetches the fact is then missed.

Axes: sample, row, pos, vocab, distance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from shardscope.config import ConfigError
from shardscope.failures.held_out import held_out_ids, windows
from shardscope.failures.intervals import Interval, bootstrap, wilson
from shardscope.failures.loop_xray.interventions import Activations, Interventions, ablation_bank
from shardscope.failures.loop_xray.parts import Part
from shardscope.failures.loop_xray.rows import CACHE_BYTES, branch
from shardscope.failures.prompts import planted
from shardscope.generation import Decoder, Packed
from shardscope.model import Shard

Progress = Callable[[float, str], None]

SHORTEST_DISTANCE = 64
SAMPLES = 8
LEAST_LIFT = 0.1  # nats; less is no retrieval, however sure
CANDIDATES = 8  # values that might have been planted
NAMES = ("Alice", "Robert", "Mary", "Thomas", "Emma", "George", "Helen", "Peter")
VALUES = (
    "river", "garden", "letter", "window", "winter", "silver", "horse", "music", "bread", "stone", "paper", "night",
    "water", "house", "money", "heart", "light", "green", "black", "white", "gold", "fire", "tree", "book", "hand",
)  # fmt: skip
REFERENCE_WINDOWS, REFERENCE_LENGTH = 8, 256
LOSS_WINDOWS = 4


class RetrievalError(ConfigError):
    """Distances or a model that a retrieval cannot be measured with; the message says what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Recall:
    """One distance, in tokens from the planted value to the place where it is asked for; rates of `samples`.

    `lift`: log p(answer) with the fact planted, less with another value planted in its place, in nats.
    """

    distance: int
    samples: int
    recalled: float
    recalled_interval: Interval
    chosen: float
    chosen_interval: Interval
    lift: float
    lift_interval: Interval


@dataclass(frozen=True, kw_only=True)
class HeadRecall:
    """One global head missing. `lift_lost` by distance: the lift of the whole model less that without the head."""

    name: str
    layer: int
    head: int
    lift_lost: list[float]
    lift_lost_interval: list[Interval]
    recalled: list[float]


@dataclass(frozen=True, kw_only=True)
class PositionLoss:
    """Mean loss on held-out text over positions first … last, in nats: of the whole model, and cut to the window."""

    first: int
    last: int
    whole: float
    cut: float


@dataclass(frozen=True, kw_only=True)
class LongContext:
    """The curves that say how long the context is.

    `reach`: the largest distance up to which the lift's interval lies above LEAST_LIFT throughout; 0 if there is none.
    """

    window: int
    n_ctx: int
    chance: float
    whole: list[Recall]
    cut: list[Recall]
    heads: list[HeadRecall]
    losses: list[PositionLoss]

    @property
    def reach(self) -> int:
        return _reach(self.whole)

    @property
    def reach_cut(self) -> int:
        """The same with every layer cut to the window."""
        return _reach(self.cut)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `json.dump` and for plots."""
        return {"reach": self.reach, "reach_cut": self.reach_cut, **asdict(self)}


@torch.no_grad()
def long_context(
    model: Shard,
    *,
    distances: Sequence[int] | None = None,
    samples: int = SAMPLES,
    heads: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> LongContext:
    """Measure retrieval at `distances` (None: 64, 128, … up to the context), and the loss by position.

    A model with a tokenizer reads sentences in built-in held-out text; one without reads random tokens. Raises
    RetrievalError for distances that do not fit the context.
    """
    probe = _TextProbe(model) if model.tokenizer is not None else _TokenProbe(model)
    room = model.config.n_ctx - probe.overhead
    if distances is None:
        distances = [SHORTEST_DISTANCE * 2**power for power in range(20) if SHORTEST_DISTANCE * 2**power <= room]
        distances = [*distances, *([room] if not distances or room >= 1.25 * distances[-1] else [])]
    for distance in distances:
        if not probe.least <= distance <= room:
            raise RetrievalError(
                f"a fact {distance} tokens back cannot be asked for; this model's context of {model.config.n_ctx} has "
                f"room for {probe.least} to {room}"
            )
    if samples < 1:
        raise RetrievalError(f"samples={samples} measures nothing; use at least 1")
    chosen = [
        Part(layer, head)
        for layer, kind in enumerate(model.config.layer_kinds)
        if kind == "global" and heads
        for head in range(model.config.n_heads)
    ]
    reference = windows(held_out_ids(model), REFERENCE_WINDOWS, min(REFERENCE_LENGTH, model.config.n_ctx))
    bank = ablation_bank(model, reference)
    rng, packed = np.random.default_rng(seed), Packed(model)
    whole, cut, missing = [], [], []
    for done, distance in enumerate(distances):
        if progress is not None:
            progress(done / (len(distances) + 1), f"asking {distance} tokens back")
        asked = [probe.sample(distance, rng) for _ in range(samples)]
        sets = [[], *[[head] for head in chosen]]
        found = _answers(asked, partial(_without, model, sets=sets, bank=bank, packed=packed))
        whole.append(_recall(distance, found[0]))
        missing.append([_recall_without(found[0], without) for without in found[1:]])
        with cut_to_window(model):
            cut.append(_recall(distance, _answers(asked, partial(_plain, model))[0]))
    if progress is not None:
        progress(len(distances) / (len(distances) + 1), "loss by position")
    losses = loss_by_position(model)
    if progress is not None:
        progress(1.0, "done")
    return LongContext(
        window=model.config.window,
        n_ctx=model.config.n_ctx,
        chance=1 / CANDIDATES,
        whole=whole,
        cut=cut,
        heads=[
            HeadRecall(
                name=part.name,
                layer=part.layer,
                head=part.head or 0,
                lift_lost=[by_head[at][0] for by_head in missing],
                lift_lost_interval=[by_head[at][1] for by_head in missing],
                recalled=[by_head[at][2] for by_head in missing],
            )
            for at, part in enumerate(chosen)
        ],
        losses=losses,
    )


@contextmanager
def cut_to_window(model: Shard) -> Iterator[Shard]:
    """Within this context every global layer sees only as far as a sliding one. For calls without a cache."""
    before = [block.attn.window for block in model.blocks]
    try:
        for block in model.blocks:
            block.attn.window = model.config.window
        yield model
    finally:
        for block, window in zip(model.blocks, before, strict=True):
            block.attn.window = window


@torch.no_grad()
def loss_by_position(model: Shard, count: int = LOSS_WINDOWS) -> list[PositionLoss]:
    """Held-out loss in doubling ranges of positions up to the context: whole, and cut to the window."""
    tokens = windows(held_out_ids(model), count, model.config.n_ctx).to(model.device)
    whole = _losses(model, tokens)
    with cut_to_window(model):
        cut = _losses(model, tokens)
    edges = [0, *(2**power for power in range(5, 21) if 2**power < len(whole)), len(whole)]
    return [
        PositionLoss(
            first=first, last=last - 1, whole=float(whole[first:last].mean()), cut=float(cut[first:last].mean())
        )
        for first, last in pairwise(edges)
    ]


# ------------------------------------------------------------------------------------------------------------- probes


@dataclass(frozen=True)
class _Asked:
    """Token ids of a prompt, where the question begins in it, the planted answer, and all values it might have been.

    `other` is the same prompt with another value planted.
    """

    ids: list[int]
    other: list[int]
    question: int
    answer: int
    candidates: list[int]


class _TextProbe:
    """Sentences in held-out text."""

    def __init__(self, model: Shard) -> None:
        assert model.tokenizer is not None
        self.encode = model.tokenizer.encode
        self.filler = [id for id in held_out_ids(model) if id != model.tokenizer.bos_id]
        self.bos = model.tokenizer.bos_id
        # The first token of each value stands for it, so no two may begin alike.
        firsts: dict[int, str] = {}
        for value in VALUES:
            firsts.setdefault(self.encode(f" {value}")[0], value)
        if len(firsts) < CANDIDATES:
            raise RetrievalError(f"this tokenizer tells only {len(firsts)} of {len(VALUES)} words apart by a token")
        self.firsts = firsts
        longest = max(len(self._fact(name, value)) for name in NAMES for value in VALUES)
        question = max(len(self._question(name)) for name in NAMES)
        self.overhead = question + 2
        self.least = longest

    def _question(self, name: str) -> list[int]:
        return self.encode(f"\nThe secret word of {name} is")

    def _fact(self, name: str, value: str) -> list[int]:
        return [*self._question(name), *self.encode(f" {value}.\n")]

    def sample(self, distance: int, rng: np.random.Generator) -> _Asked:
        name = NAMES[int(rng.integers(len(NAMES)))]
        candidates = [int(id) for id in rng.choice(list(self.firsts), CANDIDATES, replace=False)]
        answer, other = candidates[0], candidates[1]
        question, start = self._question(name), int(rng.integers(len(self.filler)))
        texts = []
        for value in (answer, other):
            fact = self._fact(name, self.firsts[value])
            after = len(fact) - len(question) - 1  # of the fact, after the value: the distance is the value's
            filler = ([self.filler[(start + place) % len(self.filler)]] for place in range(distance))
            texts.append([self.bos, *planted(fact, filler, question, distance - after)])
        return _Asked(texts[0], texts[1], len(texts[0]) - len(question), answer, candidates)


class _TokenProbe:
    """A key of two tokens and a value among random ones, for models without a tokenizer."""

    overhead, least = 4, 8

    def __init__(self, model: Shard) -> None:
        self.vocab = model.config.vocab_size
        if self.vocab < CANDIDATES + 4:
            raise RetrievalError(f"a vocabulary of {self.vocab} is too small; a probe takes {CANDIDATES + 4} tokens")

    def sample(self, distance: int, rng: np.random.Generator) -> _Asked:
        # Filler that holds neither key nor values, so that nothing but the fact answers.
        ids = [int(id) for id in rng.permutation(self.vocab)]
        first, key, *candidates = ids[: CANDIDATES + 2]
        rest = ids[CANDIDATES + 2 :]
        filler = [[rest[int(at)]] for at in rng.integers(len(rest), size=distance - 2)]
        texts = [[rest[0], *planted([first, key, value], filler, [first, key], distance)] for value in candidates[:2]]
        return _Asked(texts[0], texts[1], len(texts[0]) - 2, candidates[0], candidates)


# ------------------------------------------------------------------------------------------------------------- scoring


@dataclass(frozen=True, eq=False)
class _Found:
    recalled: np.ndarray  # [sample], as are all
    chosen: np.ndarray
    lift: np.ndarray


def _answers(asked: Sequence[_Asked], logits_of: Callable[[_Asked], Float[Tensor, "set text vocab"]]) -> list[_Found]:
    """For every set of parts the answers to all samples; the texts are those with the fact and with another value."""
    columns: list[list[list[float]]] = []
    for one in asked:
        log_probs = logits_of(one).float().log_softmax(dim=-1)
        recalled = log_probs[:, 0].argmax(dim=-1) == one.answer
        chosen = log_probs[:, 0, one.candidates].argmax(dim=-1) == 0
        lift = log_probs[:, 0, one.answer] - log_probs[:, 1, one.answer]
        columns.append(torch.stack([recalled.double(), chosen.double(), lift.double()], dim=1).tolist())
    by_set = np.array(columns).transpose(1, 2, 0)
    return [_Found(*rows) for rows in by_set]


def _without(
    model: Shard, one: _Asked, sets: Sequence[Sequence[Part]], bank: Activations, packed: Packed
) -> Float[Tensor, "set text vocab"]:
    """The logits after the question, which is read anew for each set; what stands before it is read once."""
    texts = [one.ids, one.other]
    start = Decoder(model, len(texts), len(one.ids), packed)
    for _ in start.feed([text[: one.question] for text in texts]):
        pass
    row_bytes = sum(2 * layer.keys[0].numel() * layer.keys.element_size() for layer in start.cache.layers)
    limit = CACHE_BYTES.get(model.device.type, CACHE_BYTES["cpu"])
    at_once = max(1, limit // (row_bytes * len(texts)))
    rows = []
    for first in range(0, len(sets), at_once):
        some = sets[first : first + at_once]
        decoder = branch(start, list(range(len(texts))) * len(some))
        questions = [text[one.question :] for text in texts] * len(some)
        with Interventions(model, [parts for parts in some for _ in texts], bank).active():
            *_, last = decoder.feed(questions)
        logits = decoder.logits(last.hidden[:, -1:])[:, 0]
        rows.append(logits.unflatten(0, (len(some), len(texts))))
    return torch.cat(rows)


def _plain(model: Shard, one: _Asked) -> Float[Tensor, "set text vocab"]:
    """The logits after the question without a cache, one set: the model as it is."""
    hidden = [model.hidden(torch.tensor([text], device=model.device))[:, -1:] for text in (one.ids, one.other)]
    return model.unembed(torch.cat(hidden))[None, :, 0]


def _recall(distance: int, found: _Found) -> Recall:
    samples = len(found.lift)
    recalled, chosen = int(found.recalled.sum()), int(found.chosen.sum())
    return Recall(
        distance=distance,
        samples=samples,
        recalled=recalled / samples,
        recalled_interval=wilson(recalled, samples),
        chosen=chosen / samples,
        chosen_interval=wilson(chosen, samples),
        lift=float(found.lift.mean()),
        lift_interval=_interval(found.lift),
    )


def _recall_without(whole: _Found, without: _Found) -> tuple[float, Interval, float]:
    lost = whole.lift - without.lift
    return float(lost.mean()), _interval(lost), float(without.recalled.mean())


def _interval(values: np.ndarray) -> Interval:
    low, high = bootstrap(values[None])
    return Interval(float(low[0]), float(high[0]))


def _reach(curve: Sequence[Recall]) -> int:
    reach = 0
    for recall in sorted(curve, key=lambda recall: recall.distance):
        if recall.lift_interval.low <= LEAST_LIFT:
            break
        reach = recall.distance
    return reach


def _losses(model: Shard, tokens: Tensor) -> Float[np.ndarray, "pos"]:
    rows = [F.cross_entropy(model(row[None, :-1])[0].float(), row[1:], reduction="none") for row in tokens]
    return torch.stack(rows).mean(dim=0).cpu().numpy()


def long_context_table(found: LongContext) -> str:
    """A line for each distance and each range of positions, for a terminal."""
    lines = [
        f"context {found.n_ctx}, window {found.window}; a fact is retrieved up to {found.reach} tokens back, "
        f"with global layers cut to the window up to {found.reach_cut}",
        "",
        f"{'distance':>8}{'recalled':>10}{'chosen':>8}{'lift':>8}  {'95 % interval':<17}{'cut: chosen':>11}{'lift':>8}"
        "  heads that fetch it (lift lost)",
    ]
    for at, (whole, cut) in enumerate(zip(found.whole, found.cut, strict=True)):
        heads = sorted(found.heads, key=lambda head: -head.lift_lost[at])
        fetching = [head for head in heads if head.lift_lost_interval[at].low > LEAST_LIFT][:3]
        interval = f"[{whole.lift_interval.low:.2f}, {whole.lift_interval.high:.2f}]"
        lines.append(
            f"{whole.distance:>8}{whole.recalled:>10.0%}{whole.chosen:>8.0%}{whole.lift:>+8.2f}  {interval:<17}"
            f"{cut.chosen:>11.0%}{cut.lift:>+8.2f}  "
            + ", ".join(f"{head.name} {head.lift_lost[at]:.2f}" for head in fetching)
        )
    lines += ["", f"{'positions':>13}{'loss':>8}{'cut':>8}"]
    lines += [f"{f'{part.first}-{part.last}':>13}{part.whole:>8.3f}{part.cut:>8.3f}" for part in found.losses]
    lines.append(f"(chosen: among {round(1 / found.chance)} values, chance {found.chance:.0%}; losses in nats a token)")
    return "\n".join(line.rstrip() for line in lines)
