"""A little text that people wrote and the built-in model was not trained on, for means and losses without a download.

Two novels, school mathematics and Python; each line of `held_out.jsonl` says where it is from and its licence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from shardscope.model import Shard

FILE = Path(__file__).with_name("held_out.jsonl")


@cache
def held_out_texts() -> tuple[str, ...]:
    return tuple(json.loads(line)["text"] for line in FILE.read_text(encoding="utf-8").splitlines())


def held_out_ids(model: Shard) -> list[int]:
    """All texts as one sequence, each begun by `<|endoftext|>`; for a model without a tokenizer, random tokens."""
    if model.tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        random: list[int] = torch.randint(model.config.vocab_size, (2**14,), generator=generator).tolist()
        return random
    return [id for text in held_out_texts() for id in model.tokenizer.encode(text, bos=True)]


def windows(ids: list[int], count: int, length: int) -> Int[Tensor, "row pos"]:
    """At most `count` windows of `length` tokens, spread evenly over all; shorter where the text is."""
    length = min(length, len(ids))
    there = len(ids) // length
    count = min(count, there)
    starts = [row * there // count * length for row in range(count)]
    return torch.tensor([ids[start : start + length] for start in starts])


@torch.no_grad()
def losses_of(
    model: Shard, tokens: Int[Tensor, "row pos"], changes: Sequence[Callable[[Tensor, Tensor], Tensor] | None] = (None,)
) -> list[float]:
    """Mean cross-entropy of every token but the first of each row, in nats, under whatever hooks are on the model.

    One for each of `changes`, which makes other logits [pos vocab] of the model's and the tokens [pos] that they
    follow; None leaves them. The model reads the text once.
    """
    totals = [0.0] * len(changes)
    for row in tokens:
        logits = model(row[None, :-1])[0].float()
        for number, change in enumerate(changes):
            changed = logits if change is None else change(logits, row[:-1])
            totals[number] += float(F.cross_entropy(changed, row[1:], reduction="sum"))
    return [total / (tokens.shape[0] * (tokens.shape[1] - 1)) for total in totals]
