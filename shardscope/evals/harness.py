"""The model type `shard` of lm-evaluation-harness: `lm_eval --model shard --model_args pretrained=PATH`.

It gives the numbers that `--model hf` gives for the same weights (a context gets `<|endoftext|>` in front, what is too
long is cut at the left, text is cut at the first stop text), but computes every context once for all its continuations,
and never pads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import lm_eval.models  # noqa: F401 (the built-in models first: the registry only loads them while it is empty)
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from torch import Tensor
from tqdm import tqdm

from shardscope.checkpoint import load, resolve_checkpoint
from shardscope.config import ConfigError
from shardscope.evals.ranks import Ranks
from shardscope.generate import Packed, SamplingConfig, generate, score
from shardscope.tokenizer import END_OF_TEXT, Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ARGUMENTS = (
    "pretrained, tokenizer, device, dtype, batch_size, max_batch_size, max_length, max_gen_toks, add_bos_token, seed"
)
# For batch_size=auto: tokens of contexts that are computed at once, and texts that are written at once.
AUTO_TOKENS = {"cpu": 2048, "cuda": 65_536}
AUTO_TEXTS = {"cpu": 32, "cuda": 256}

T = TypeVar("T")
Request = tuple[tuple[str, str] | None, list[int], list[int]]  # its texts, context, continuation

logger = logging.getLogger(__name__)


class HarnessError(ConfigError, SystemExit):
    """A request that cannot be carried out.

    It is a SystemExit, too: uncaught, as in the `lm_eval` command, it prints its sentence, not a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = f"error: {message}"


@register_model("shard")
class ShardLM(TemplateLM):
    """A Shard checkpoint for lm-evaluation-harness.

    `pretrained`: a checkpoint or run (None: the built-in model, else the newest run). `tokenizer`: a tokenizer.json
    other than the checkpoint's. `dtype` auto: the stored one, on a CPU float32. `batch_size`: contexts computed, or
    texts written, at once; auto: as many as are fast, fewer when memory runs out. `max_length`: tokens of context and
    continuation (default: the model's context). `add_bos_token` False: no `<|endoftext|>` before a text. `seed`: of
    sampling; request i is sampled with seed + i, whatever its batch.

    Raises HarnessError. Under torchrun each process takes its share of the requests.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        tokenizer: str | None = None,
        device: str | None = None,
        dtype: str | None = "auto",
        batch_size: int | str | None = 1,
        max_batch_size: int | str | None = None,
        max_length: int | str | None = None,
        max_gen_toks: int | str = 256,
        add_bos_token: bool | None = None,
        seed: int | str = 0,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            name = next(iter(unknown))
            raise HarnessError(f"model_args: {name}={unknown[name]!r} is not known; use {ARGUMENTS}")
        self.ranks = Ranks.of_this_process()
        self._rank, self._world_size = self.ranks.rank, self.ranks.world_size
        self._device = _device(device, self.ranks)
        try:
            self.path = resolve_checkpoint(pretrained)
            self.model = load(self.path, self._device, _dtype(dtype, self._device))
            if tokenizer is not None:
                self.model.tokenizer = Tokenizer.load(tokenizer)
        except ConfigError as error:
            raise HarnessError(str(error)) from None
        n_ctx, found = self.model.config.n_ctx, self.model.tokenizer
        if found is None:
            raise HarnessError(f"{self.path} holds no tokenizer.json; pass tokenizer=FILE in model_args")
        if found.vocab_size > self.model.config.vocab_size:
            raise HarnessError(
                f"tokenizer={tokenizer} has {found.vocab_size} entries, the model's vocabulary "
                f"{self.model.config.vocab_size}; pass the tokenizer that it was trained with"
            )
        self.tokens: Tokenizer = found
        self.max_length = _whole("max_length", max_length or n_ctx, most=n_ctx, why=f"the model's context is {n_ctx}")
        self.max_gen_toks = _whole("max_gen_toks", max_gen_toks)
        self.add_bos_token = add_bos_token is not False
        self.seed = _whole("seed", seed, least=0)
        self.batch_size = batch_size if batch_size in (None, "auto") else _batch_size(batch_size)
        self.max_batch_size = max_batch_size and _whole("max_batch_size", max_batch_size)
        self.packed = Packed(self.model)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> ShardLM:
        """From `key=value,key=value`. Raises HarnessError when that is not what `arg_string` is."""
        odd = [part for part in arg_string.split(",") if part.strip() and "=" not in part]
        if odd:
            raise HarnessError(
                f"model_args: {odd[0]!r} is no key=value; write it as in pretrained=runs/shard-pico-anneal"
            )
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    # ------------------------------------------------------------------------------------------- tokens

    @property
    def eot_token_id(self) -> int:
        return self.tokens.eos_id

    @property
    def tokenizer_name(self) -> str:
        return self.tokens.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids, after `<|endoftext|>` unless `add_special_tokens` or the model's add_bos_token says otherwise.

        A text that begins with it in letters gets no second one; its letters stay ordinary text.
        """
        if add_special_tokens is None:
            add_special_tokens = self.add_bos_token and not string.startswith(END_OF_TEXT)
        return self.tokens.encode(string, bos=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        raise HarnessError("a Shard is a base model without a chat template; leave --apply_chat_template out")

    def get_model_info(self) -> dict[str, Any]:
        """What the results file says of the model."""
        return {
            "model_num_parameters": self.model.n_params,
            "model_dtype": str(self.model.embed.W_E.dtype),
            "model_checkpoint": str(self.path),
            "tokenizer_fingerprint": self.tokens.fingerprint,
        }

    # ------------------------------------------------------------------------------------------- likelihoods

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        groups: dict[tuple[int, ...], list[int]] = {}
        continuations: list[list[int]] = []
        for index, (_, context, continuation) in enumerate(requests):
            context = self._cut_left(context, continuation)
            groups.setdefault(tuple(context), []).append(index)
            continuations.append(continuation)
        # Contexts of nearly the same length go together; the longest first, so that memory runs out at once or never.
        ordered = sorted(groups.items(), key=lambda group: (-len(group[0]), group[0]))
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests")

        def run(batch: list[tuple[tuple[int, ...], list[int]]]) -> None:
            scores = score(self.model, [(ctx, [continuations[i] for i in own]) for ctx, own in batch], self.packed)
            for (_, own), found in zip(batch, scores, strict=True):
                for index, answer in zip(own, found, strict=True):
                    results[index] = (answer.logprob, answer.greedy)
                    if (texts := requests[index][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", texts, results[index])
                bar.update(len(own))

        for batch in self._batches(ordered, lambda group: len(group[0]) + sum(len(continuations[i]) for i in group[1])):
            _halving(batch, run)
        bar.close()
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows: list[Request] = []
        owner: list[int] = []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                context, continuation = make_disjoint_window(window)
                windows.append((None, list(context), list(continuation)))
                owner.append(index)
        totals = [0.0] * len(requests)
        for index, (logprob, _) in zip(owner, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[index] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _cut_left(self, context: list[int], continuation: list[int]) -> list[int]:
        """What of the context fits beside the continuation, whose last token is never read."""
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise HarnessError(
                f"a continuation of {len(continuation)} tokens does not fit max_length={self.max_length}; "
                "score a shorter one, or a model with a longer context"
            )
        if len(context) > room:
            _warn_once(f"a context of {len(context)} tokens was cut at its left to fit max_length={self.max_length}")
        return context[-room:]

    # ------------------------------------------------------------------------------------------- texts

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        by_choices: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            by_choices.setdefault(repr(request.args[1]), []).append(index)
        texts = [""] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running generate_until requests")
        for indices in by_choices.values():
            config, until = self._sampling(requests[indices[0]].args[1])
            room = self.max_length - config.max_new_tokens
            if room < 1:
                raise HarnessError(
                    f"max_gen_toks={config.max_new_tokens} leaves no room for a prompt in "
                    f"max_length={self.max_length}; pass a smaller one, as in --gen_kwargs max_gen_toks=64"
                )
            prompts = {index: self.tok_encode(requests[index].args[0])[-room:] for index in indices}

            def run(batch: list[int], prompts=prompts, config=config, until=until) -> None:  # type: ignore[no-untyped-def]
                seeds = [self.seed + index for index in batch]
                done = generate(self.model, [prompts[i] for i in batch], config, seeds=seeds, packed=self.packed)
                for index, generation in zip(batch, done, strict=True):
                    text = self.tokens.decode(generation.ids)
                    texts[index] = postprocess_generated_text(text, until, think_end_token=None)
                    self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                bar.update(len(batch))

            ordered = sorted(indices, key=lambda index: -len(prompts[index]))
            for batch in self._batches(ordered, None):
                _halving(batch, run)
        bar.close()
        return texts

    def _sampling(self, gen_kwargs: dict[str, Any]) -> tuple[SamplingConfig, list[str]]:
        """How to continue, and all stop texts, from what a task or --gen_kwargs asks for."""
        choices = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        until = [stop for stop in handle_stop_sequences(choices.pop("until", None), eos=END_OF_TEXT) if stop]
        if not choices.pop("do_sample"):
            # Greedy, whatever the other arguments say.
            choices = {name: value for name, value in choices.items() if name not in ("temperature", "top_p", "top_k")}
        elif "temperature" not in choices:
            choices["temperature"] = 1.0
        choices["max_new_tokens"] = choices.pop("max_gen_toks")
        known = {item.name for item in fields(SamplingConfig)} - {"stop", "seed", "stop_at_eos"}
        if unknown := sorted(choices.keys() - known):
            raise HarnessError(
                f"generation argument {unknown[0]}={choices[unknown[0]]!r} is not supported; "
                "use until, do_sample, max_gen_toks, temperature, top_k, top_p, repetition_penalty"
            )
        try:
            return SamplingConfig(stop=tuple(until), **choices), until
        except ConfigError as error:
            raise HarnessError(str(error)) from None

    # ------------------------------------------------------------------------------------------- batches

    def _batches(self, items: list[T], cost: Callable[[T], int] | None) -> list[list[T]]:
        """Runs of `items`: batch_size of them, or (auto) of a total `cost` in tokens, at most max_batch_size."""
        if self.batch_size is not None and self.batch_size != "auto":
            size, budget = int(self.batch_size), None
        else:
            size = AUTO_TEXTS[self._device.type] if cost is None else len(items)
            budget = AUTO_TOKENS[self._device.type] if cost is not None else None
        size = min(size, self.max_batch_size or size)
        batches: list[list[T]] = []
        spent = 0
        for item in items:
            price = cost(item) if cost is not None else 0
            if not batches or len(batches[-1]) == size or (budget is not None and spent + price > budget):
                batches.append([])
                spent = 0
            batches[-1].append(item)
            spent += price
        return batches

    # ------------------------------------------------------------------------------------------- many processes

    def all_gather(self, tensor: Tensor) -> Tensor:
        return self.ranks.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        return self.ranks.gather_object(obj, dst)

    def barrier(self) -> None:
        self.ranks.barrier()


def _halving(batch: list[T], run: Callable[[list[T]], None]) -> None:
    """Run a batch; in halves, if memory runs out."""
    try:
        run(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise HarnessError(
                "memory runs out on a single request; pass a smaller max_length or another device"
            ) from None
        torch.cuda.empty_cache()
        _halving(batch[: len(batch) // 2], run)
        _halving(batch[len(batch) // 2 :], run)


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        logger.warning(message)


def _device(name: str | None, ranks: Ranks) -> torch.device:
    """The device asked for. The harness itself asks for cuda:0 when nobody does, so without CUDA that means the CPU."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise HarnessError(f"device={name} is not known; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        _warn_once(f"device={name}: this machine has no CUDA device; the CPU is used")
        return torch.device("cpu")
    if device.type not in AUTO_TOKENS:
        raise HarnessError(f"device={name} is not supported; use cpu, cuda or cuda:N")
    return torch.device("cuda", ranks.local_rank) if device.type == "cuda" and ranks.world_size > 1 else device


def _dtype(name: str | None, device: torch.device) -> torch.dtype | None:
    if name in (None, "auto"):
        return torch.float32 if device.type == "cpu" else None
    if name not in DTYPES:
        raise HarnessError(f"model_args: dtype={name} is not supported; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _batch_size(value: int | str | None) -> int:
    if isinstance(value, str) and value.startswith("auto"):
        raise HarnessError(f"batch_size={value}: use auto or a number")
    return _whole("batch_size", value)


def _whole(name: str, value: Any, least: int = 1, most: int | None = None, why: str = "") -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise HarnessError(f"model_args: {name}={value!r} is no whole number") from None
    if number < least or (most is not None and number > most):
        limits = f"at least {least}" if most is None else f"{least} to {most}"
        raise HarnessError(f"model_args: {name}={number} is out of range{f' ({why})' if why else ''}; use {limits}")
    return number
