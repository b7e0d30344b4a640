"""Choosing the next token: repetition penalty, temperature, top-k, top-p, in that order, then one uniform number.

A sequence draws from its own generator, seeded by its own seed, so its sample does not depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shardscope.config import ConfigError, choice


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How to continue a prompt. The default is greedy."""

    max_new_tokens: int = choice(256, help="largest number of tokens to generate")
    temperature: float = choice(0.0, help="logits are divided by it before sampling; 0: greedy")
    top_k: int = choice(0, help="sample among the k likeliest tokens; 0: among all")
    top_p: float = choice(1.0, help="sample among the likeliest tokens that together have this probability")
    repetition_penalty: float = choice(1.0, help="divides positive logits of seen tokens, multiplies negative ones")
    stop: tuple[str, ...] = choice((), help="texts that end a sequence; they are cut from its text")
    seed: int = choice(0, help="sequence i of a batch is sampled with seed + i")
    stop_at_eos: bool = choice(True, help="end a sequence at <|endoftext|>")
    lookup: bool = choice(
        True, help="greedy text of one prompt on a CPU: guess ahead from the text so far; the text stays the same"
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            value, kind = getattr(self, item.name), _KINDS.get(str(item.type))
            if kind is not None:
                known = isinstance(value, kind[0]) and (kind[0] is bool or not isinstance(value, bool))
                _require(known, f"{item.name}={value!r} is not {kind[1]}")
        _require(self.max_new_tokens >= 1, f"max_new_tokens={self.max_new_tokens} must be at least 1")
        _require(0 <= self.temperature < float("inf"), f"temperature={self.temperature} must be 0 (greedy) or above")
        _require(self.top_k >= 0, f"top_k={self.top_k} is negative; use 0 to sample among all tokens")
        _require(0 < self.top_p <= 1, f"top_p={self.top_p} is a probability; use a value above 0, at most 1")
        _require(
            0.01 <= self.repetition_penalty <= 100,
            f"repetition_penalty={self.repetition_penalty} must lie between 0.01 and 100; 1 switches it off",
        )
        texts = isinstance(self.stop, tuple | list) and all(isinstance(text, str) for text in self.stop)
        _require(texts, f"stop={self.stop!r} is not a tuple of texts; write it as in stop=('\\n',)")
        _require(all(self.stop), "stop holds an empty string, which would stop before the first token; remove it")
        _require(0 <= self.seed < 2**63, f"seed={self.seed} must lie between 0 and 2^63 - 1")


# What a field of each type takes, and what that is called.
_KINDS: dict[str, tuple[Any, str]] = {
    "int": (int, "a whole number"),
    "float": (int | float, "a number"),
    "bool": (bool, "True or False"),
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(f"sampling: {message}")


class NotFiniteError(ConfigError):
    """A model that computes no numbers."""


def check_finite(logprobs: Sequence[float]) -> None:
    """Raises NotFiniteError for log-probabilities that are not finite: a single logit that is not a number shows."""
    if not all(map(math.isfinite, logprobs)):
        raise NotFiniteError(
            "the model's logits are not finite: a weight or a number of its config is NaN or too large; "
            "load another checkpoint"
        )


class Sampler:
    """The state of a batch's sampling: each row's random numbers, and the tokens it has seen."""

    BLOCK = 64  # numbers drawn from a generator at once

    def __init__(
        self,
        config: SamplingConfig,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        logits_like: Tensor,
        temperatures: Sequence[float] | None = None,
    ) -> None:
        """`temperatures` are the rows' own; without them all have the config's."""
        self.config = config
        of_rows = [config.temperature] * len(seeds) if temperatures is None else temperatures
        self.temperatures: Float[Tensor, "batch 1"] | None = None  # None: all rows are greedy
        if any(of_rows):
            self.temperatures = torch.tensor(of_rows, dtype=torch.float64, device=logits_like.device)[:, None]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.drawn = 0
        self.uniforms = torch.empty(0)
        self.seen: Bool[Tensor, "batch vocab"] | None = None
        if config.repetition_penalty != 1:
            self.seen = torch.zeros_like(logits_like, dtype=torch.bool)
            for row, prompt in enumerate(prompts):
                self.seen[row, torch.tensor(prompt, device=logits_like.device)] = True

    @property
    def likeliest(self) -> bool:
        """Whether every row takes its likeliest token, whatever came before."""
        return self.temperatures is None and self.seen is None

    @torch.no_grad()
    def __call__(self, logits: Float[Tensor, "batch vocab"]) -> tuple[list[int], list[float]]:
        """The chosen ids, and their log-probabilities under the model itself (before penalty, temperature, cuts)."""
        ids = self.choose(logits, self.next_uniforms(1)[0].to(logits.device))
        logprobs = logits.log_softmax(dim=-1).gather(1, ids[:, None])[:, 0]
        return ids.tolist(), logprobs.tolist()

    def choose(self, logits: Float[Tensor, "batch vocab"], uniform: Float[Tensor, "batch"]) -> Int[Tensor, "batch"]:
        """The rows' tokens, each drawn with its number in [0, 1). All on the device of the logits: a CUDA graph may
        hold it."""
        scores = logits if self.seen is None else penalise(logits, self.seen, self.config.repetition_penalty)
        ids = scores.argmax(dim=-1)
        if self.temperatures is not None:
            greedy = self.temperatures == 0
            probabilities = shaped(scores, self.config, self.temperatures.masked_fill(greedy, 1.0))
            ids = torch.where(greedy[:, 0], ids, draw(probabilities, uniform))
        if self.seen is not None:
            self.seen.scatter_(1, ids[:, None], True)
        return ids

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.generators = [self.generators[row] for row in rows]
        if self.temperatures is not None:
            self.temperatures = self.temperatures[torch.tensor(rows, device=self.temperatures.device)]
        if len(self.uniforms):
            self.uniforms = self.uniforms[list(rows)]
        if self.seen is not None:
            self.seen = self.seen[torch.tensor(rows, device=self.seen.device)]

    def next_uniforms(self, count: int) -> Float[Tensor, "{count} batch"]:
        """Each row's next numbers in [0, 1), on the CPU; zeros where all rows are greedy."""
        if self.temperatures is None:
            return torch.zeros(count, len(self.generators), dtype=torch.float64)
        columns = []
        for _ in range(count):
            column = self.drawn % self.BLOCK
            if column == 0:
                blocks = [torch.rand(self.BLOCK, generator=g, dtype=torch.float64) for g in self.generators]
                self.uniforms = torch.stack(blocks)
            self.drawn += 1
            columns.append(self.uniforms[:, column])
        return torch.stack(columns)


def penalise(
    logits: Float[Tensor, "batch vocab"], seen: Bool[Tensor, "batch vocab"], penalty: float
) -> Float[Tensor, "batch vocab"]:
    """Make tokens seen before less likely (Keskar et al. 2019, arXiv:1909.05858)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def shaped(
    logits: Float[Tensor, "batch vocab"], config: SamplingConfig, temperatures: Float[Tensor, "batch 1"] | None = None
) -> Float[Tensor, "batch vocab"]:
    """The probabilities to draw from, in float64: tempered, cut to top-k, then to top-p, not renormalised.

    `temperatures` (above 0) are the rows' own; without them all have the config's. Among equal logits the lower id is
    cut last. The likeliest token always stays.
    """
    scores = logits.double()
    # Less the largest, so that the smallest temperature leaves 0 and -inf, which is the greedy choice.
    scores = scores - scores.amax(dim=-1, keepdim=True)
    scores = scores / (config.temperature if temperatures is None else temperatures)
    if not config.top_k and config.top_p == 1:
        return scores.softmax(dim=-1)
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    if config.top_k:
        ordered[:, config.top_k :] = -torch.inf
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    # Top-p (Holtzman et al. 2020, arXiv:1904.09751) keeps the token that crosses the threshold.
    probabilities = probabilities.masked_fill(before >= config.top_p, 0)
    return torch.zeros_like(probabilities).scatter_(1, order, probabilities)


def draw(probabilities: Float[Tensor, "batch vocab"], uniform: Float[Tensor, "batch"]) -> Int[Tensor, "batch"]:
    """The token at which the cumulative probability passes `uniform` (in [0, 1)) of the total.

    In the order of the ids, so that two nearly equal probabilities changing places changes nothing. Probabilities that
    are not numbers give some token, too: its log-probability tells.
    """
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    token = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
    last_possible = torch.searchsorted(cumulative, total)
    return torch.minimum(token, last_possible).clamp(max=probabilities.shape[-1] - 1)[:, 0]
