"""When: where a loop begins, and how it feeds itself from copy to copy.

Axes: copy, layer, pos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from shardscope.failures.loop_xray.parts import XrayError
from shardscope.failures.loop_xray.rows import LOGITS_AT_ONCE, score_tokens
from shardscope.failures.loops import LoopKind, find_counter, find_loop
from shardscope.generation import Generation
from shardscope.microscope import residuals
from shardscope.model import Shard


@dataclass(frozen=True, kw_only=True)
class Copy:
    """One round of the loop: means over its tokens.

    `probability` of the loop's next token and its smallest; `entropy` of the whole prediction in bits; `gap`, the
    logit of the loop's token less that of the best other one, and the smallest, at which `other` is that other token.
    """

    probability: float
    least_probability: float
    entropy: float
    gap: float
    least_gap: float
    other: int
    other_text: str


@dataclass(frozen=True, kw_only=True)
class LensReading:
    """The logit lens where one copy's first token is predicted: by layer, what the model would say if it ended there.

    Row 0 is the embedding, row l + 1 what stands after block l. `rank` 0: the loop's token is the likeliest.
    """

    copy: int
    token: int
    text: str
    rank: list[int]
    probability: list[float]
    likeliest: list[int]
    likeliest_text: list[str]


@dataclass(frozen=True, kw_only=True)
class Onset:
    """Where the loop is and how it grew.

    `onset` is the loop's first token in the output. `first` is that in the whole sequence (prompt, then output), and
    lies in the prompt where the prompt already repeats the block. `copies` counts from `first`.
    """

    onset: int
    first: int
    period: int
    repeats: float
    kind: LoopKind
    block: list[int]
    text: str
    copies: list[Copy]
    lens: list[LensReading]


@torch.no_grad()
def find_onset(model: Shard, generation: Generation) -> Onset:
    """The loop in which a text ends. Raises XrayError for a text that ends in none."""
    if len(generation.ids) == 0:
        raise XrayError("the text is empty; an X-ray takes a text that ends in a loop")
    pieces = pieces_of(model, generation.ids)
    loop = find_loop(generation.ids, pieces)
    if loop is None and (counter := find_counter(generation.ids, pieces)) is not None:
        shown = "".join(pieces[counter.start : counter.start + counter.period])
        raise XrayError(
            f"the text ends in a counter, a loop in which a number changes ({shown!r}, from token {counter.start} on); "
            "an X-ray compares a loop's copies token by token, so pass a prompt whose loop repeats exactly"
        )
    if loop is None:
        raise XrayError(
            f"the text of {len(generation.ids)} tokens does not end in a loop, so there is nothing to explain; "
            "generate more tokens, or pass another prompt"
        )
    ids = [*generation.prompt_ids, *generation.ids]
    first, period = loop.start + len(generation.prompt_ids), loop.period
    while first > 0 and ids[first - 1] == ids[first - 1 + period]:
        first -= 1
    rounds = [range(start, start + period) for start in range(first, len(ids) - period + 1, period)]
    # The token at place 0 is predicted by nothing.
    scores = _scored(model, ids, max(1, first))
    copies = []
    for places in rounds:
        probability, entropy, gap, other = (
            column[max(places.start - max(1, first), 0) : places.stop - max(1, first)] for column in scores
        )
        weakest = int(gap.argmin())
        copies.append(
            Copy(
                probability=float(probability.mean()),
                least_probability=float(probability.min()),
                entropy=float(entropy.mean()),
                gap=float(gap.mean()),
                least_gap=float(gap[weakest]),
                other=int(other[weakest]),
                other_text=text_of(model, [int(other[weakest])]),
            )
        )
    block = ids[rounds[-1].start : rounds[-1].stop]
    return Onset(
        onset=loop.start,
        first=first,
        period=period,
        repeats=(len(ids) - first) / period,
        kind=loop.kind,
        block=block,
        text=text_of(model, block),
        copies=copies,
        lens=_lens(model, ids, [places.start for places in rounds]),
    )


def text_of(model: Shard, ids: Sequence[int]) -> str:
    """What the ids say; '' for a model without a tokenizer, and for ids that a padded vocabulary leaves unused."""
    tokenizer = model.tokenizer
    return "" if tokenizer is None else tokenizer.decode([id for id in ids if id < tokenizer.vocab_size])


def pieces_of(model: Shard, ids: Sequence[int]) -> list[str]:
    """What each id says by itself; '' for a model without a tokenizer."""
    return [text_of(model, [id]) for id in ids]


def _scored(model: Shard, ids: list[int], first: int) -> tuple[Tensor, ...]:
    """Probability, entropy in bits, gap, and best other token, of every token from ids[first] on."""
    hidden = model.hidden(torch.tensor([ids[:-1]], device=model.device))[0, first - 1 :]
    targets = torch.tensor(ids[first:], device=model.device)
    at_once, columns = max(1, LOGITS_AT_ONCE // model.config.vocab_size), []
    for x, token in zip(hidden.split(at_once), targets.split(at_once), strict=True):
        logits = model.unembed(x[None])[0].float()
        log_probs = logits.log_softmax(dim=-1)
        _, gap, other, _ = score_tokens(logits, token)
        entropy = torch.special.entr(log_probs.exp()).sum(dim=-1) / torch.log(torch.tensor(2.0))
        columns.append((log_probs.gather(1, token[:, None])[:, 0].exp(), entropy, gap, other))
    return tuple(torch.cat(column).cpu() for column in zip(*columns, strict=True))


def _lens(model: Shard, ids: Sequence[int], starts: Sequence[int]) -> list[LensReading]:
    """The first copy, the second, and the last."""
    chosen = sorted({copy for copy in (0, 1, len(starts) - 1) if starts[copy] > 0})
    tokens: Int[Tensor, "pos"] = torch.tensor(ids)
    lens = residuals(model, tokens, [starts[copy] - 1 for copy in chosen]).lens(top=1)
    return [
        LensReading(
            copy=copy,
            token=ids[starts[copy]],
            text=text_of(model, [ids[starts[copy]]]),
            rank=lens.next_rank[:, column].tolist(),
            probability=lens.next_probability[:, column].tolist(),
            likeliest=lens.tokens[:, column, 0].tolist(),
            likeliest_text=[text_of(model, [token]) for token in lens.tokens[:, column, 0].tolist()],
        )
        for column, copy in enumerate(chosen)
    ]
