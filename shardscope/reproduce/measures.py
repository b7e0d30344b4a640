"""What is measured on a checkpoint: one function each, from a model to plain data for a stage's record."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from shardscope.data import Holdout
from shardscope.evals.suite import evaluate, questions
from shardscope.failures import ORDER, SuitePrompt, for_model, label, load_suite, long_context, sample_card
from shardscope.failures.held_out import held_out_ids
from shardscope.failures.labels import NO_FLAG
from shardscope.failures.retrieval import RetrievalError
from shardscope.failures.text_model import TextModel
from shardscope.generation import SamplingConfig, generate
from shardscope.microscope import SCORES, head_scores, read
from shardscope.model import Shard

HEAD_TOKENS = 2048  # of held-out text, in which heads are scored
NEW_TOKENS = 128  # of a continuation in the suite
TOKENS_AT_ONCE = 16_384  # in a batch of held-out windows
CARD_SAMPLING = {"temperature": 0.7, "top_p": 0.9, "seed": 0}  # temperature and top-p of the model card
DECODED, DECODINGS = 128, 3  # tokens of a greedy continuation, and how often it is timed


def scores_of_heads(model: Shard) -> dict[str, Any]:
    """Every head in numbers over the same held-out text; `SCORES` says what they mean."""
    ids = torch.tensor(held_out_ids(model)[: min(HEAD_TOKENS, model.config.n_ctx)])
    found = head_scores(read(model, ids))
    return {
        "tokens": len(ids),
        "heads": [
            {
                "layer": head.layer, "head": head.head, "kind": head.kind,
                **{score: round(float(getattr(head, score)), 5) for score in SCORES},
            }
            for head in found
        ],
    }  # fmt: skip


def failures_of_suite(model: Shard, most: int | None = None, text_model: TextModel | None = None) -> dict[str, Any]:
    """How many continuations of the prompt suite show each failure first, sampled as the card's; and each prompt's own.

    `most`: only so many prompts, spread evenly over the suite. `text_model`: that of the labels, None for the shipped.
    """
    chosen = some_of(load_suite(), most)
    prompts = for_model(chosen, model, room=NEW_TOKENS)
    if not prompts:
        return {"prompts": 0, "left_out": len(chosen), "new_tokens": NEW_TOKENS, "failures": {}, "by_prompt": {}}
    config = SamplingConfig(max_new_tokens=NEW_TOKENS, **CARD_SAMPLING)  # type: ignore[arg-type]
    generations = generate(model, [prompt.text for prompt in prompts], config)
    primary = {
        prompt.id: label(generation, domain=prompt.domain, gold=prompt.gold, text_model=text_model).primary
        for prompt, generation in zip(prompts, generations, strict=True)
    }
    counts = Counter(primary.values())
    return {
        "prompts": len(prompts),
        "left_out": len(chosen) - len(prompts),
        "new_tokens": NEW_TOKENS,
        "failures": {failure: counts[failure] for failure in (*ORDER, NO_FLAG)},
        "by_prompt": primary,
    }


def some_of(prompts: list[SuitePrompt], most: int | None) -> list[SuitePrompt]:
    """At most so many prompts, spread evenly."""
    if most is None or most >= len(prompts):
        return prompts
    return [prompts[place * len(prompts) // most] for place in range(most)]


def reach(model: Shard) -> dict[str, Any]:
    """How far back the model retrieves a fact, whole and with every layer cut to the sliding window.

    A model that such facts cannot be asked of (its context or its vocabulary is too small) gives the reason instead.
    """
    try:
        found = long_context(model, heads=False)
    except RetrievalError as error:
        return {"why_not": str(error)}
    return {**found.to_dict(), "heads": []}


@torch.no_grad()
def loss_by_source_and_position(model: Shard, holdouts: Mapping[str, Holdout]) -> dict[str, list[dict[str, Any]]]:
    """For each source the held-out nats, tokens and bytes in doubling ranges of positions; they sum to `evaluate`'s."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, holdout in holdouts.items():
        nats = torch.zeros(holdout.seq_len, dtype=torch.float64)
        tokens, sizes = torch.zeros(2, holdout.seq_len, dtype=torch.int64)
        for batch in holdout.batches(max(1, TOKENS_AT_ONCE // holdout.seq_len)):
            windows = batch.tokens.to(model.device)
            logits = model(windows[:, :-1]).float().transpose(1, 2)
            each = F.cross_entropy(logits, windows[:, 1:], reduction="none").double().cpu()
            scored = batch.bytes > 0
            nats += torch.where(scored, each, 0.0).sum(dim=0)
            tokens += scored.sum(dim=0)
            sizes += batch.bytes.sum(dim=0)
        edges = [0, *(2**power for power in range(5, 21) if 2**power < holdout.seq_len), holdout.seq_len]
        found[name] = [
            {
                "first": first, "last": last - 1, "nats": float(nats[first:last].sum()),
                "tokens": int(tokens[first:last].sum()), "bytes": int(sizes[first:last].sum()),
            }
            for first, last in pairwise(edges)
        ]  # fmt: skip
    return found


def samples_of_card(model: Shard, text_model: TextModel | None = None) -> list[dict[str, str]]:
    """The card's six prompts, continued with its temperature and top-p, and the failure that each shows first."""
    samples = sample_card(model, text_model=text_model, **CARD_SAMPLING)  # type: ignore[arg-type]
    return [
        {"prompt": sample.prompt.text, "text": sample.generation.text, "failure": sample.labels.primary}
        for sample in samples
    ]


def decoding_speed(model: Shard) -> dict[str, Any]:
    """Greedy tokens a second of one continuation, one by one with a cache, its prompt included: a median."""
    new = min(DECODED, model.config.n_ctx // 2)
    config = SamplingConfig(max_new_tokens=new, stop_at_eos=False, lookup=False)
    rates = []
    for _ in range(1 + DECODINGS):
        began = time.perf_counter()
        written = generate(model, "Once upon a time", config)
        rates.append(len(written.ids) / (time.perf_counter() - began))
    return {"tokens": new, "tokens_per_second": round(statistics.median(rates[1:]), 1)}


def rows_of_task(model: Shard, task: str, data: Path | None, limit: int | None) -> dict[str, Any]:
    """A task of lm-evaluation-harness: every metric with its standard error and the number of questions."""
    from shardscope.evals.harness import ShardLM

    return {"rows": evaluate(ShardLM(model, batch_size="auto"), [task], data, limit)}


def questions_of(task: str, data: Path | None) -> dict[str, Any]:
    """The test questions of a task, found and counted before anything is trained for them."""
    return questions(task, data)
