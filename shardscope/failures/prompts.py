"""The six prompts on Shard-40m-v1's model card, with what a right answer would be where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Domain = Literal["math", "code", "prose"]


@dataclass(frozen=True, kw_only=True)
class CardPrompt:
    text: str
    domain: Domain
    gold: str | None = None


CARD_PROMPTS: tuple[CardPrompt, ...] = (
    CardPrompt(text="The capital of France is", domain="prose", gold="Paris"),
    CardPrompt(text="To compute 12 plus 7, we can", domain="math", gold="19"),
    CardPrompt(text="Question: What is 23 + 19? Answer:", domain="math", gold="42"),
    CardPrompt(text="def fibonacci(n):", domain="code"),
    CardPrompt(text="Once upon a time, in a small village,", domain="prose"),
    CardPrompt(text="Solve: 17 * 23 = ?", domain="math", gold="391"),
)
