"""Held-out loss in nats a token, and bits per byte, which does not depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shardscope.data import Holdout
from shardscope.model import Shard


@dataclass(frozen=True)
class Score:
    """Over one source: the summed negative log-likelihood, and what it is summed over."""

    nats: float
    tokens: int
    bytes: int

    @property
    def loss(self) -> float:
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    def __add__(self, other: Score) -> Score:
        return Score(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)

    def to_dict(self) -> dict[str, float]:
        return {"loss": self.loss, "bits_per_byte": self.bits_per_byte, "tokens": self.tokens, "bytes": self.bytes}


@torch.no_grad()  # not inference_mode: what FSDP gathers meanwhile is used in training again
def evaluate(
    model: Shard,
    holdouts: Mapping[str, Holdout],
    batch_size: int = 8,
    logits: Callable[[Tensor], Tensor] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Score] | None:
    """The score of every source, and of all of them together under 'all'; None when `stop()` became true meanwhile.

    `logits` may be a compiled form of the model.
    """
    logits = logits or model
    scores: dict[str, Score] = {}
    for name, holdout in holdouts.items():
        nats = torch.zeros((), dtype=torch.float64, device=model.device)
        for batch in holdout.batches(batch_size):
            if stop():
                return None
            tokens = batch.tokens.to(model.device)
            found = logits(tokens[:, :-1]).float().transpose(1, 2)
            nats += batch.scored_nats(F.cross_entropy(found, tokens[:, 1:], reduction="none"))
        scores[name] = Score(nats.item(), holdout.tokens, holdout.bytes)
    scores["all"] = sum(scores.values(), Score(0.0, 0, 0))
    return scores
