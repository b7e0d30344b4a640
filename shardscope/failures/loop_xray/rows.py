"""Rows of one batch, each intervened in by its own set of parts: given tokens are scored, and texts are continued.

Axes: row, pos, vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from shardscope.failures.loop_xray.interventions import Activations, Interventions
from shardscope.failures.loop_xray.parts import Part
from shardscope.failures.loops import find_loop
from shardscope.generation import Decoder

LOGITS_AT_ONCE = 2**25  # 128 MiB of float32
CACHE_BYTES = {"cpu": 2**29, "cuda": 2**33}  # keys and values of the rows of one batch
LOOK_EVERY = 8  # tokens, after which it is seen which rows have settled


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What the model thought of given tokens.

    `log_odds`: log p/(1 - p), in nats. `margin`: logit less that of the best other token, which is `other`.
    """

    log_odds: Float[np.ndarray, "row pos"]
    margin: Float[np.ndarray, "row pos"]
    other: Int[np.ndarray, "row pos"]
    chosen: Int[np.ndarray, "row pos"]  # the likeliest token


def score_tokens(logits: Float[Tensor, "n vocab"], tokens: Int[Tensor, "n"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-odds, margin, the best other token and the likeliest of all, for one token a row."""
    own = logits.gather(1, tokens[:, None])[:, 0]
    others = logits.scatter(1, tokens[:, None], -torch.inf)
    best, other = others.max(dim=-1)
    # Of equal logits the first is the likeliest, as for argmax.
    own_first = (own > best) | ((own == best) & (tokens < other))
    return own - others.logsumexp(dim=-1), own - best, other, torch.where(own_first, tokens, other)


def rows_at_once(decoder: Decoder) -> int:
    """Rows like those of this decoder of one row whose keys and values fit CACHE_BYTES."""
    layers = decoder.cache.layers
    bytes_a_row = sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in layers)
    return max(1, CACHE_BYTES.get(decoder.model.device.type, CACHE_BYTES["cpu"]) // bytes_a_row)


def branch(decoder: Decoder, rows: Sequence[int]) -> Decoder:
    """A decoder of its own that goes on from copies of these sequences."""
    other = copy(decoder)
    other.cache = copy(decoder.cache)
    other.cache.layers = [copy(layer) for layer in decoder.cache.layers]
    other.keep(rows)
    return other


def read_tokens(
    decoder: Decoder, interventions: Interventions, texts: Int[Tensor, "row pos"], first: int = 1
) -> TokenScores:
    """Append the texts, and score every token of each from number `first` on, which is 1 or more.

    Column 0 of the scores is that of token `first`.
    """
    rows, pos = texts.shape
    columns: list[list[Tensor]] = [[] for _ in range(4)]
    at_once = max(1, LOGITS_AT_ONCE // decoder.model.config.vocab_size)
    for start in range(0, pos - 1, decoder.chunk):
        piece = texts[:, start : min(start + decoder.chunk, pos - 1)]
        hidden = call(decoder, interventions, piece, [piece.shape[1]] * rows)
        unscored = max(0, first - 1 - start)
        if unscored >= piece.shape[1]:
            continue
        following = texts[:, start + unscored + 1 : start + 1 + piece.shape[1]].flatten()
        parts = [
            score_tokens(decoder.logits(some[:, None])[:, 0], token)
            for some, token in zip(
                hidden[:, unscored:].flatten(0, 1).split(at_once), following.split(at_once), strict=True
            )
        ]
        for column, values in zip(columns, zip(*parts, strict=True), strict=False):
            column.append(torch.cat(values).view(rows, -1))
    return TokenScores(*(torch.cat(column, dim=1).cpu().numpy() for column in columns))


def write_tokens(
    decoder: Decoder,
    interventions: Interventions,
    texts: Sequence[Sequence[int]],
    count: int,
    settled_copies: int | None = None,
) -> list[list[int]]:
    """Append the texts, of any lengths, and continue each with `count` greedy tokens.

    A row is left as it is once what it wrote ends in a loop of `settled_copies` copies (None: never).
    """
    logits = prefill(decoder, interventions, texts)
    written: list[list[int]] = [[] for _ in texts]
    rows = list(range(len(texts)))  # of the decoder, by their number in `texts`
    for step in range(1, count + 1):
        ids = logits.argmax(dim=-1)
        for row, id in zip(rows, ids.tolist(), strict=True):
            written[row].append(id)
        if step == count:
            break
        if settled_copies is not None and step % LOOK_EVERY == 0:
            going = [at for at, row in enumerate(rows) if not _settled(written[row], settled_copies)]
            if not going:
                break
            if len(going) < len(rows):
                rows, ids = [rows[at] for at in going], ids[going]
                decoder.keep(going)
                interventions = interventions.of_rows(going)
        logits = decoder.logits(call(decoder, interventions, ids[:, None], [1] * len(rows)))[:, 0]
    return written


@torch.no_grad()
def losses_without(
    model: Shard, sets: Sequence[Sequence[Part]], bank: Activations, tokens: Int[Tensor, "text pos"]
) -> list[float]:
    """Mean cross-entropy of every token but the first of each text without each set, in nats: a row for each set."""
    at_once = max(1, LOGITS_AT_ONCE // (model.config.vocab_size * tokens.shape[1]))
    found: list[float] = []
    for first in range(0, len(sets), at_once):
        some = sets[first : first + at_once]
        interventions = Interventions(model, some, bank)
        interventions.move_to(torch.arange(tokens.shape[1] - 1)[None])
        total = torch.zeros(len(some), device=model.device)
        for text in tokens:
            with interventions.active():
                logits = model(text[None, :-1].expand(len(some), -1)).float()
            targets = text[1:].expand(len(some), -1)
            total += F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(dim=1)
        found += (total / (tokens.shape[0] * (tokens.shape[1] - 1))).tolist()
    return found


def _settled(text: Sequence[int], copies: int) -> bool:
    loop = find_loop(text)
    return loop is not None and loop.repeats >= copies


def prefill(
    decoder: Decoder, interventions: Interventions, texts: Sequence[Sequence[int]]
) -> Float[Tensor, "row vocab"]:
    """The logits after the last token of each text."""
    device, last = decoder.model.device, [torch.empty(0)] * len(texts)
    for first in range(0, max(map(len, texts)), decoder.chunk):
        pieces = [list(text[first : first + decoder.chunk]) for text in texts]
        counts = [len(piece) for piece in pieces]
        tokens = torch.tensor([piece + [0] * (max(counts) - len(piece)) for piece in pieces], device=device)
        hidden = call(decoder, interventions, tokens, counts)
        for row, count in enumerate(counts):
            if 0 < count == len(texts[row]) - first:
                last[row] = hidden[row, count - 1]
    return decoder.logits(torch.stack(last)[:, None])[:, 0]


def call(
    decoder: Decoder, interventions: Interventions, tokens: Int[Tensor, "row pos"], counts: Sequence[int]
) -> Float[Tensor, "row pos d_model"]:
    """The normalised residual stream at the new positions, while the interventions are active."""
    before = torch.tensor(decoder.cache.lengths)[:, None]
    interventions.move_to(before + torch.arange(tokens.shape[1]))
    with interventions.active():
        return decoder.hidden(tokens, counts)
