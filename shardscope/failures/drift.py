"""Drift: text that leaves the topic of its prompt, or its kind (SCARECROW's "Off-Prompt": arXiv:2107.01294).

Three measures:

A  prompt lift: by how much the prompt raises the log-probability of the first 32 tokens, in nats per token,
   L = mean[log p(text | prompt) - log p(text)]. It needs the language model. Later windows say nothing: in people's
   text their median is 0.00 to 0.09, so there is nothing to fall short of.
B  another domain: passages of 128 bytes (32 tokens, about) are likelier in another domain than in the prompt's, by
   n-grams of bytes (`TextModel.log_odds`), two in a row. The prompt must be clearly of its domain: a page of
   documentation may go on with its code.
C  another subject: the TF-IDF cosine of prompt and first passage.

Text drifts if B is beyond a limit that people's text hardly ever passes, or if A is below people's 5th percentile and B
or C are beyond theirs. B beyond people's 5th percentile alone is a suspicion, and so is one passage where there are not
two.

Mathematics that is to be answered by a number drifts, too, if its first 192 characters name none, in digits or words:
of 7,366 answers of people to word problems 3 name their first so late. No other domain: a story may go on without it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shardscope.failures.prompts import Domain
from shardscope.failures.text_model import TextModel
from shardscope.model import Shard

DriftKind = Literal["other_domain", "other_subject", "no_number"]

PASSAGE = 128  # bytes
WINDOW = 32  # tokens
SHORTEST_WINDOW = 16
WITHOUT_NUMBER = 192  # characters

_NAMED_NUMBER = re.compile(
    r"\d|\b(?:no|none|zero|one|once|two|twice|double|half|three|third|four|quarter|five|six|seven|eight|nine|ten|eleven|"
    r"twelve|dozen|\w+teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|million)(?:s|th)?\b",
    re.IGNORECASE,
)


class DriftLimits(NamedTuple):
    """For one domain: the least odds of a clear prompt; B on its own, with A, and to be suspected, in nats per n-gram;
    A in nats per token; C."""

    clear_prompt: float
    odds: float
    odds_with_lift: float
    odds_suspect: float
    lift: float
    cosine: float


class Drift(NamedTuple):
    """The text leaves its prompt from this share of it on."""

    from_share: float
    kind: DriftKind
    suspect: bool


def find_drift(
    prompt: str,
    text: str,
    domain: Domain,
    model: TextModel,
    limits: DriftLimits,
    lift: float | None = None,
    asks_number: bool = False,
) -> Drift | None:
    """Where a text leaves its prompt, or None. `lift` is what `prompt_lift` measured, if it did."""
    odds = model.log_odds(text, domain, PASSAGE)
    clear = is_clear(prompt, domain, model, limits.clear_prompt)
    switched = _two_in_a_row(odds, limits.odds)
    if clear and switched is not None:
        return Drift(switched / len(odds), "other_domain", suspect=False)
    if lift is not None and lift < limits.lift:
        switched = _two_in_a_row(odds, limits.odds_with_lift)
        if switched is not None:
            return Drift(switched / len(odds), "other_domain", suspect=False)
        if model.cosine(prompt, text[:PASSAGE]) < limits.cosine:
            return Drift(0.0, "other_subject", suspect=False)
    if asks_number and len(text) >= WITHOUT_NUMBER and not _NAMED_NUMBER.search(text[:WITHOUT_NUMBER]):
        return Drift(0.0, "no_number", suspect=False)
    switched = _two_in_a_row(odds, limits.odds_suspect)
    if switched is None and len(odds) == 1 and len(text) >= PASSAGE // 2 and odds[0] < limits.odds_suspect:
        switched = 0
    return None if switched is None else Drift(switched / len(odds), "other_domain", suspect=True)


def is_clear(prompt: str, domain: Domain, model: TextModel, least: float) -> bool:
    """Whether a prompt, as a whole, is so much likelier in its domain than in the others."""
    odds = model.log_odds(prompt, domain, width=max(1, len(prompt.encode("utf-8", errors="replace"))))
    return bool(odds) and odds[0] >= least


@torch.no_grad()
def prompt_lift(model: Shard, prompt_ids: Sequence[int], ids: Sequence[int]) -> float | None:
    """L of the first 32 tokens of `ids`; None for fewer than 16, or a prompt of none. Two passes of the model.

    `prompt_ids` begin with the token that begins a document; the second pass reads `ids` after that token alone.
    """
    first = ids[:WINDOW]
    if len(first) < SHORTEST_WINDOW or len(prompt_ids) < 2 or len(prompt_ids) + len(first) > model.config.n_ctx:
        return None
    gain = _log_probability(model, prompt_ids, first) - _log_probability(model, prompt_ids[:1], first)
    return float(gain.mean())


def _log_probability(model: Shard, before: Sequence[int], ids: Sequence[int]) -> Float[Tensor, "pos"]:
    tokens: Int[Tensor, "batch pos"] = torch.tensor([[*before, *ids]], device=model.device)
    logits = model(tokens)[0, len(before) - 1 : -1].float()
    return logits.log_softmax(dim=-1).gather(1, tokens[0, len(before) :, None])[:, 0].cpu()


def _two_in_a_row(odds: Sequence[float], limit: float) -> int | None:
    """The first of two successive passages below the limit."""
    return next((place for place in range(len(odds) - 1) if max(odds[place : place + 2]) < limit), None)
