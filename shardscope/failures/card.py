"""The card's six prompts, sampled and labelled, and a table of them for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shardscope.failures.labels import NO_FLAG, Labels, label
from shardscope.failures.prompts import CARD_PROMPTS, SuitePrompt
from shardscope.failures.text_model import TextModel
from shardscope.generation import Generation, SamplingConfig, generate
from shardscope.model import Shard


class CardSample(NamedTuple):
    prompt: SuitePrompt
    generation: Generation
    labels: Labels


def sample_card(
    model: Shard,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_p: float = 0.9,
    seed: int = 0,
    text_model: TextModel | None = None,
) -> list[CardSample]:
    """Continue the six prompts (by default with the card's own temperature and top-p) and label what comes out."""
    config = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    generations = generate(model, [prompt.text for prompt in CARD_PROMPTS], config)
    return [
        CardSample(prompt, generation, _labelled(prompt, generation, text_model))
        for prompt, generation in zip(CARD_PROMPTS, generations, strict=True)
    ]


def _labelled(prompt: SuitePrompt, generation: Generation, text_model: TextModel | None) -> Labels:
    return label(generation, domain=prompt.domain, gold=prompt.gold, text_model=text_model)


def card_table(samples: Sequence[CardSample], width: int = 110) -> str:
    """A plain-text table of `width` columns: the prompt, its continuation on one line, and what is wrong with it."""
    rows = [("prompt", "continuation", "flags")]
    rows += [(s.prompt.text, _one_line(s.generation.text), describe(s.labels)) for s in samples]
    first = max(len(row[0]) for row in rows)
    last = max(len(row[2]) for row in rows)
    middle = max(20, width - first - last - 4)
    lines = [f"{a:<{first}}  {_cut(b, middle):<{middle}}  {c}".rstrip() for a, b, c in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def describe(labels: Labels) -> str:
    """The flags in a few words, the primary one first, suspicions with a question mark; "no flag" where none fired."""
    flags = sorted(labels.flags, key=lambda flag: (flag.failure != labels.primary, flag.suspect))
    words = [_with_size(flag.failure, labels) + "?" * flag.suspect for flag in flags] or [NO_FLAG]
    return ", ".join([*words, *(["no end"] if labels.non_termination else [])])


def _with_size(failure: str, labels: Labels) -> str:
    if failure == "loop" and labels.loop is not None:
        return f"loop ({labels.loop.repeats:.0f} × {labels.loop.period} tokens)"
    return failure


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
