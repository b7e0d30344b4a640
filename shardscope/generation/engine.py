"""Generation: prompts of any lengths in one batch, as a stream of tokens or as finished texts.

generate(model, "Once upon a time", max_new_tokens=40).text
for event in stream(model, ["Once upon a time"], SamplingConfig(temperature=0.7, top_p=0.9)): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shardscope.config import ConfigError, suggest
from shardscope.generation.forward import Decoder, Packed
from shardscope.generation.graphs import STEPS, graph_steps
from shardscope.generation.lookup import MOST, Guesser
from shardscope.generation.sampling import Sampler, SamplingConfig, check_finite
from shardscope.generation.text import TextStream
from shardscope.model import Prompt, Prompts, Shard
from shardscope.model.prompts import is_one, token_rows
from shardscope.tokenizer import Tokenizer

StopReason = Literal["eos", "length", "stop", "context"]


class GenerationError(ConfigError):
    """Generation as it was asked for is not possible; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One continued prompt.

    `stop_reason`: eos (the model ended the document), length (`max_new_tokens`), stop (a stop text appeared), context
    (the model's context is full). `ids` and `logprobs` (natural logarithm, the model's own, before temperature and
    cuts) leave out the end token; `text` also leaves out the stop text. `prompt_ids` begin with `<|endoftext|>` where
    the prompt was a text.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    stop_reason: StopReason
    seed: int
    tokenizer: Tokenizer | None = field(default=None, repr=False, compare=False)

    @property
    def tokens(self) -> Int[Tensor, "1 pos"]:
        """Prompt and continuation, as a model reads them."""
        return torch.tensor([[*self.prompt_ids, *self.ids]])


@dataclass(frozen=True, kw_only=True)
class TokenEvent:
    """One token of prompt number `row`, as soon as it is known.

    `id` is None when the sequence ended without one: at the end token, or because the prompt fills the context. The
    events' `text`s joined are the generation's text; a token that ends within a character, or within what may become a
    stop text, brings none until that is settled.
    """

    row: int
    id: int | None
    logprob: float | None
    text: str
    stop_reason: StopReason | None = None


@overload
def generate(  # type: ignore[overload-overlap]
    model: Shard, prompts: str | Sequence[int], config: SamplingConfig | None = None, **choices: Any
) -> Generation: ...
@overload
def generate(
    model: Shard, prompts: Sequence[Prompt], config: SamplingConfig | None = None, **choices: Any
) -> list[Generation]: ...
@overload
def generate(
    model: Shard, prompts: Prompts, config: SamplingConfig | None = None, **choices: Any
) -> Generation | list[Generation]: ...
def generate(
    model: Shard,
    prompts: Prompts,
    config: SamplingConfig | None = None,
    *,
    seeds: Sequence[int] | None = None,
    temperatures: Sequence[float] | None = None,
    packed: Packed | None = None,
    **choices: Any,
) -> Generation | list[Generation]:
    """Continue one prompt, or each of several, until all have ended: one `Generation`, or a list of them.

    A tensor of one row is one prompt, of several rows several. `choices` are fields of SamplingConfig, as in
    `max_new_tokens=40`; they go before `config`. `seeds` gives each sequence its own seed (default: config.seed,
    config.seed + 1, …), `temperatures` its own temperature (default: config.temperature). A sequence's sample does not
    depend on its batch. `packed` are the model's weights, packed before, for many calls in a row. Raises PromptError
    for a prompt that this model cannot read, GenerationError for stop texts without a tokenizer, NotFiniteError for a
    model whose logits are not finite.
    """
    config = _config(config, choices)
    sequences = _sequences(model, prompts, config, seeds, temperatures)
    for _ in _run(model, sequences, config, packed):
        pass
    done = [sequence.result() for sequence in sequences]
    return done[0] if is_one(prompts) else done


def stream(
    model: Shard,
    prompts: Prompts,
    config: SamplingConfig | None = None,
    *,
    seeds: Sequence[int] | None = None,
    temperatures: Sequence[float] | None = None,
    **choices: Any,
) -> Iterator[TokenEvent]:
    """As `generate`, but token by token. Prompts are checked at once, the model runs as the events are taken."""
    config = _config(config, choices)
    return _run(model, _sequences(model, prompts, config, seeds, temperatures), config)


def _config(config: SamplingConfig | None, choices: dict[str, Any]) -> SamplingConfig:
    unknown = sorted(choices.keys() - {item.name for item in fields(SamplingConfig)})
    if unknown:
        known = [item.name for item in fields(SamplingConfig)]
        raise GenerationError(f"there is no sampling option {unknown[0]!r}{suggest(unknown[0], known)}")
    return replace(config or SamplingConfig(), **choices)


@dataclass
class _Sequence:
    row: int
    prompt: str
    prompt_ids: list[int]
    seed: int
    room: int  # tokens that still fit the context
    config: SamplingConfig
    eos_id: int | None
    text: TextStream
    tokenizer: Tokenizer | None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop_reason: StopReason | None = None

    def take(self, id: int, logprob: float) -> TokenEvent:
        check_finite([logprob])
        if id == self.eos_id:
            return self.end("eos", None, logprob)
        self.ids.append(id)
        self.logprobs.append(logprob)
        new = self.text.push(id)
        if self.text.stopped:
            return self.end("stop", id, logprob, new)
        if len(self.ids) == self.config.max_new_tokens:
            return self.end("length", id, logprob, new)
        if len(self.ids) == self.room:
            return self.end("context", id, logprob, new)
        return TokenEvent(row=self.row, id=id, logprob=logprob, text=new)

    def end(
        self, reason: StopReason, id: int | None = None, logprob: float | None = None, text: str = ""
    ) -> TokenEvent:
        text += self.text.finish()
        self.stop_reason = reason
        return TokenEvent(row=self.row, id=id, logprob=logprob, text=text, stop_reason=reason)

    def result(self) -> Generation:
        assert self.stop_reason is not None
        return Generation(
            prompt=self.prompt,
            prompt_ids=tuple(self.prompt_ids),
            ids=tuple(self.ids),
            text=self.text.text,
            logprobs=tuple(self.logprobs),
            stop_reason=self.stop_reason,
            seed=self.seed,
            tokenizer=self.tokenizer,
        )


def _sequences(
    model: Shard,
    prompts: Prompts,
    config: SamplingConfig,
    seeds: Sequence[int] | None,
    temperatures: Sequence[float] | None,
) -> list[_Sequence]:
    rows = token_rows(model, prompts)
    if seeds is None:
        seeds = range(config.seed, config.seed + len(rows))
    if temperatures is None:
        temperatures = [config.temperature] * len(rows)
    for what, given in (("seeds", seeds), ("temperatures", temperatures)):
        if len(given) != len(rows):
            raise GenerationError(f"{len(given)} {what} for {len(rows)} prompts; give each prompt its own")
    of_temperature = {temperature: replace(config, temperature=temperature) for temperature in temperatures}
    if config.stop and model.tokenizer is None:
        raise GenerationError("stop texts need a tokenizer, and this model has none; set model.tokenizer")
    texts = [prompts] if is_one(prompts) else prompts
    return [
        _sequence(model, row, prompt, ids, of_temperature[temperature], seed)
        for row, (prompt, ids, seed, temperature) in enumerate(zip(texts, rows, seeds, temperatures, strict=True))
    ]


def _sequence(model: Shard, row: int, prompt: Prompt, ids: list[int], config: SamplingConfig, seed: int) -> _Sequence:
    tokenizer, room = model.tokenizer, model.config.n_ctx - len(ids)
    text = prompt if isinstance(prompt, str) else ""
    if not isinstance(prompt, str) and tokenizer is not None:
        # A vocabulary that was padded has ids that stand for no text.
        text = tokenizer.decode([id for id in ids if id < tokenizer.vocab_size])
    eos_id = tokenizer.eos_id if tokenizer is not None and config.stop_at_eos else None
    return _Sequence(row, text, ids, seed, room, config, eos_id, TextStream(tokenizer, config.stop), tokenizer)


def _run(
    model: Shard, sequences: list[_Sequence], config: SamplingConfig, packed: Packed | None = None
) -> Iterator[TokenEvent]:
    for sequence in sequences:
        if sequence.room == 0:
            yield sequence.end("context")
    alive = [sequence for sequence in sequences if sequence.stop_reason is None]
    if not alive:
        return
    capacity = max(len(s.prompt_ids) + min(s.room, config.max_new_tokens) for s in alive)
    decoder = Decoder(model, len(alive), capacity, packed)
    prompts = [sequence.prompt_ids for sequence in alive]
    logits = decoder.prefill(prompts)
    sampler = Sampler(config, prompts, [s.seed for s in alive], logits, [s.config.temperature for s in alive])
    if _graphable(model, config):
        yield from _in_graphs(decoder, alive, logits, sampler)
        return
    if sampler.likeliest and _guessable(model, config, decoder):
        yield from _by_guesses(decoder, alive[0], logits[0])
        return
    while True:
        ids, logprobs = sampler(logits)
        for sequence, id, logprob in zip(alive, ids, logprobs, strict=True):
            yield sequence.take(id, logprob)
        rows = [row for row, sequence in enumerate(alive) if sequence.stop_reason is None]
        if not rows:
            return
        if len(rows) < len(alive):
            alive, ids = [alive[row] for row in rows], [ids[row] for row in rows]
            decoder.keep(rows)
            sampler.keep(rows)
        logits = decoder.step(ids)


def _guessable(model: Shard, config: SamplingConfig, decoder: Decoder) -> bool:
    """Whether guesses may pass through the model for greedy sequences.

    They may for one of them, in arithmetic so fine that a step of several rows chooses as several steps do, and
    on a device for which such a step is cheap.
    """
    exact = model.device.type == "cpu" and model.embed.W_E.dtype == torch.float32
    return config.lookup and exact and len(decoder.cache.lengths) == 1 and not model.watched


def _by_guesses(decoder: Decoder, sequence: _Sequence, logits: Float[Tensor, "vocab"]) -> Iterator[TokenEvent]:
    guesser = Guesser(sequence.prompt_ids, min(MOST, decoder.chunk - 1))
    rows = logits[None]
    guessed: list[int] = []
    while True:
        likeliest, chosen = rows.max(dim=-1)
        logprobs = (likeliest - rows.logsumexp(dim=-1)).tolist()
        ids = chosen.tolist()
        # The choice after the last token is the model's own; each guess that it would have made brings one more.
        right = next((place for place, guess in enumerate(guessed) if guess != ids[place]), len(guessed))
        if guessed:
            decoder.settle(1 + right)
            guesser.learn(len(guessed), right)
        for id, logprob in zip(ids[: right + 1], logprobs, strict=False):
            yield sequence.take(id, logprob)
            if sequence.stop_reason is not None:
                return
            guesser.push(id)
        left = min(sequence.room, sequence.config.max_new_tokens) - len(sequence.ids)
        guessed = guesser.guess(left - 1)
        rows = decoder.attempt([ids[right], *guessed]) if guessed else decoder.step([ids[right]])


def _graphable(model: Shard, config: SamplingConfig) -> bool:
    """Whether steps may run as a CUDA graph: nobody watches, and enough of them to pay for the capture."""
    return model.device.type == "cuda" and config.max_new_tokens > STEPS and not model.watched


def _in_graphs(
    decoder: Decoder, alive: list[_Sequence], logits: Float[Tensor, "batch vocab"], sampler: Sampler
) -> Iterator[TokenEvent]:
    found = sampler(logits)
    first = torch.tensor(found[0], device=logits.device)
    limit = max(min(sequence.room, sequence.config.max_new_tokens) for sequence in alive) - 1
    for ids, logprobs in chain([found], graph_steps(decoder, first, limit, sampler)):
        for sequence, id, logprob in zip(alive, ids, logprobs, strict=True):
            if sequence.stop_reason is None:
                yield sequence.take(id, logprob)
        if all(sequence.stop_reason is not None for sequence in alive):
            return
