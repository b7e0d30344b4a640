"""What a probe measures: every head, every matrix that Muon trains, and the loss by position.

Heads are looked at on two kinds of text. Held-out windows give what a head does with real text: the scores of
`shardscope.microscope.head_scores`, whose definitions they share. Pairs of random blocks, each followed by its copy,
give induction at one lag: the mass on the token after the only earlier occurrence of the query's token (Olsson et al.
2022, arXiv:2209.11895). A head that only reaches a short way back scores there what it can see, and nothing else.

Axes: head, query, key, layer; pos counts the tokens of a text, copied those of them that repeat earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from shardscope.config import ConfigError, ShardConfig
from shardscope.data import HoldoutBatch
from shardscope.model import Shard
from shardscope.model.hooks import HookPoint

Ids = Int[Tensor, "pos"]
Pattern = Float[Tensor, "1 head query key"]
ByHead = Float[Tensor, "head"]

TEXT_SCORES = ("previous", "duplicate", "induction", "sink", "entropy", "reach")
LONGEST_TEXT = 2048  # tokens: a layer's patterns of the published model are 130 MB then


def default_lags(config: ShardConfig, seq_len: int) -> tuple[int, ...]:
    """8 tokens, and half, one and one and a half windows, as far as a sequence has room for them and a copy."""
    wanted = {8, config.window // 2, config.window, config.window * 3 // 2}
    return tuple(sorted(lag for lag in wanted if 2 <= lag <= longest_lag(seq_len)))


def longest_lag(seq_len: int) -> int:
    """So that a quarter of the sequence repeats what came before."""
    return min(seq_len, LONGEST_TEXT) * 3 // 4


def check_lags(lags: Iterable[int], seq_len: int) -> None:
    """Raises ConfigError for a lag that leaves no room for the copy."""
    for lag in lags:
        if lag > longest_lag(seq_len):
            raise ConfigError(
                f"probe.lags: {lag} is too far for data.seq_len={seq_len}; use at most {longest_lag(seq_len)}"
            )


@dataclass(frozen=True, eq=False)
class RepeatedBlocks:
    """A text in which every second block of `lag` tokens is a copy of the one before, and the queries in the copies."""

    lag: int
    ids: Ids
    copied: Int[Tensor, "copied"]


def repeated_blocks(lag: int, n_tokens: int, vocab_size: int, bos_id: int) -> RepeatedBlocks:
    """`<|endoftext|>`, then random blocks of `lag` tokens, each followed by its copy.

    The same at every call. Where the vocabulary has enough tokens, none is in two blocks.
    """
    generator = torch.Generator().manual_seed(lag)
    blocks = -(-(n_tokens - 1) // (2 * lag))
    ordinary = torch.tensor([token for token in range(vocab_size) if token != bos_id])
    order = torch.randperm(len(ordinary), generator=generator)
    drawn = ordinary[order.repeat(-(-blocks * lag // len(order)))[: blocks * lag]].view(blocks, 1, lag)
    tokens = torch.cat([torch.tensor([bos_id]), drawn.expand(-1, 2, -1).flatten()])[:n_tokens]
    places = torch.arange(1, len(tokens))
    return RepeatedBlocks(lag, tokens, places[(places - 1) // lag % 2 == 1])


def induction(pattern: Pattern, queries: Int[Tensor, "copied"], lag: int) -> ByHead:
    """Mean mass that the queries give to the token after their own earlier occurrence, `lag` tokens back."""
    return pattern[0, :, queries, queries - lag + 1].mean(dim=1)


def text_scores(pattern: Pattern, ids: Ids, window: int) -> dict[str, ByHead]:
    """Means over all queries but the first, which has nothing to choose; masses, and `entropy` in bits.

    `reach` is the mass at distances of `window` and more; see `shardscope.microscope.HeadScores`.
    """
    weights = pattern[0, :, 1:]
    n = len(ids)
    same = (ids[:, None] == ids).tril(-1)
    after_same = F.pad(same, (1, 0))[:, :-1]
    bits = torch.special.entr(weights).sum(dim=(1, 2)) / torch.log(torch.tensor(2.0))
    sums = {
        "previous": pattern[0].diagonal(-1, dim1=1, dim2=2).sum(dim=1),
        "duplicate": (weights * same[1:]).sum(dim=(1, 2)),
        "induction": (weights * after_same[1:]).sum(dim=(1, 2)),
        "sink": weights[:, :, 0].sum(dim=1),
        "entropy": bits,
        "reach": pattern[0].tril(-window).sum(dim=(1, 2)),
    }
    return {name: total / (n - 1) for name, total in sums.items()}


@torch.no_grad()
def watch_patterns(model: Shard, ids: Ids, look: Callable[[int, Pattern], None]) -> None:
    """One pass over `ids`; `look` is called with each layer and its pattern, which is not held."""

    def hear(pattern: Tensor, /, *, hook: HookPoint) -> None:
        look(hook.layer(), pattern.float())

    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.config.n_layers)]
    with model.hooks(fwd_hooks=[(name, hear) for name in names]):
        model.residual(ids[None].to(model.device))


def measure_heads(
    model: Shard, texts: Iterable[Ids], repeated: Iterable[RepeatedBlocks]
) -> dict[str, Float[Tensor, "layer head"]]:
    """Every score of every head: TEXT_SCORES averaged over `texts`, and `induction N` for each lag of `repeated`."""
    config = model.config
    found: dict[str, list[list[ByHead]]] = {}

    def keep(layer: int, name: str, score: ByHead) -> None:
        found.setdefault(name, [[] for _ in range(config.n_layers)])[layer].append(score)

    for ids in texts:
        own = ids.to(model.device)

        def look(layer: int, pattern: Pattern, own: Ids = own) -> None:
            for name, score in text_scores(pattern, own, config.window).items():
                keep(layer, name, score)

        watch_patterns(model, own, look)
    for blocks in repeated:

        def look_at(layer: int, pattern: Pattern, blocks: RepeatedBlocks = blocks) -> None:
            score = induction(pattern, blocks.copied.to(pattern.device), blocks.lag)
            keep(layer, f"induction {blocks.lag}", score)

        watch_patterns(model, blocks.ids, look_at)
    return {
        name: torch.stack([torch.stack(scores).mean(dim=0) for scores in layers]).cpu()
        for name, layers in found.items()
    }


def position_edges(seq_len: int, window: int) -> list[int]:
    """0, 1, 2, 4, 8 … seq_len, and the window's edge where it lies between."""
    doubling = [2**power for power in range(seq_len.bit_length())]
    return sorted({0, seq_len, *(edge for edge in (*doubling, window) if edge < seq_len)})


@torch.no_grad()
def loss_by_position(
    logits: Callable[[Tensor], Tensor], batches: Iterable[HoldoutBatch], edges: list[int], device: torch.device
) -> tuple[float, list[float]]:
    """Nats a token over all scored targets, and over those of the queries edges[i] … edges[i + 1] - 1."""
    nats, tokens = (torch.zeros(edges[-1], dtype=torch.float64, device=device) for _ in range(2))
    for batch in batches:
        ids, scored = batch.tokens.to(device), batch.bytes.to(device) > 0
        losses = F.cross_entropy(logits(ids[:, :-1]).float().transpose(1, 2), ids[:, 1:], reduction="none")
        nats += torch.where(scored, losses, 0.0).sum(dim=0)
        tokens += scored.sum(dim=0)
    by_bin = [(nats[start:stop].sum() / tokens[start:stop].sum()).item() for start, stop in pairwise(edges)]
    return (nats.sum() / tokens.sum()).item(), by_bin
