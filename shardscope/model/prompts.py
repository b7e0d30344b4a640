"""What counts as a prompt, and the ways between text and tokens: the same everywhere a model is asked something.

A prompt is a text, a list of token ids, or a tensor of ids, [pos] or [batch pos]. Text begins with `<|endoftext|>`, as
every document did in training; ids are taken as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from shardscope.config import ConfigError, ShardConfig

if TYPE_CHECKING:
    from shardscope.tokenizer import Tokenizer

    Prompt = str | Sequence[int] | Int[Tensor, "pos"] | Int[Tensor, "batch pos"]
    Prompts = Prompt | Sequence[Prompt]
else:
    # While tests run, types are checked on every call; what is no prompt has to reach the checks below, which say so.
    Prompt = Prompts = Any

ALLOWED = "a prompt is a text, a list of token ids, or an integer tensor [pos] or [batch pos]"


class PromptError(ConfigError):
    """What is no prompt, or none that this model can read; the message says what came and what is allowed."""


class TextInterface(nn.Module):
    """A model's tokenizer under TransformerLens's names."""

    config: ShardConfig
    tokenizer: Tokenizer | None

    @property
    def device(self) -> torch.device:
        raise NotImplementedError

    def to_tokens(self, input: Prompts, prepend_bos: bool = True, truncate: bool = True) -> Int[Tensor, "batch pos"]:
        """Token ids, one row for each prompt, on the model's device.

        A text begins with `<|endoftext|>`; `prepend_bos=False` leaves it out, as for a piece of a text. Rows are cut
        to the context unless `truncate` is False. Shorter rows of several prompts are filled up with `<|endoftext|>` at
        their right, which changes nothing before. Raises PromptError, or TokenizerError for a text that is not Unicode.
        """
        rows = token_rows(self, input, prepend_bos, check=False)
        n_ctx = self.config.n_ctx if truncate else max(map(len, rows))
        return padded([row[:n_ctx] for row in rows], self).to(self.device)

    def to_string(self, tokens: Sequence[Any] | Tensor | np.ndarray) -> str | list[str]:
        """The text of ids [pos], or the texts of [batch pos]; `<|endoftext|>` is written out."""
        ids = tokens.tolist() if isinstance(tokens, Tensor | np.ndarray) else tokens
        if isinstance(ids, int):
            ids = [ids]
        if len(ids) and not _is_id(ids[0]):
            return [self._string(row) for row in ids]
        return self._string(ids)

    def to_str_tokens(self, input: Prompts, prepend_bos: bool = True) -> list[str] | list[list[str]]:
        """Each token as a text of its own; several lists for several prompts. Raises PromptError."""
        rows = [[self._string([id]) for id in row] for row in token_rows(self, input, prepend_bos, check=False)]
        return rows[0] if is_one(input) else rows

    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token. Raises PromptError for any other."""
        [ids] = token_rows(self, string, prepend_bos=False, check=False)
        if len(ids) != 1:
            raise PromptError(
                f"{string!r} is {len(ids)} tokens, {self.to_str_tokens(string, False)}; give one that is one"
            )
        return ids[0]

    def _string(self, ids: Sequence[int]) -> str:
        tokenizer = needed_tokenizer(self, "ids become text")
        # A vocabulary that was padded has ids that stand for no text.
        known = [id for id in ids if not tokenizer.vocab_size <= id < self.config.vocab_size]
        end = tokenizer.token_text(tokenizer.eos_id).encode()
        return b"".join(end if id == tokenizer.eos_id else tokenizer.token_bytes(id) for id in known).decode(
            errors="replace"
        )


def is_one(prompts: Prompts) -> bool:
    """Whether this is one prompt, not several: a text, a list of ids, a tensor [pos] or [1 pos]."""
    if isinstance(prompts, str):
        return True
    if isinstance(prompts, Tensor | np.ndarray):
        return prompts.ndim != 2 or len(prompts) == 1
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes) or len(prompts) == 0:
        return True
    first = prompts[0]
    return not (isinstance(first, Sequence) or (isinstance(first, Tensor | np.ndarray) and first.ndim > 0))


def token_rows(
    model: TextInterface, prompts: Prompts, prepend_bos: bool = True, check: bool = True, what: str = "prompt"
) -> list[list[int]]:
    """The ids of each prompt. Raises PromptError, unless `check` is False also for a prompt that is too long or empty.

    What is wrong with one of several is said with its number, and with what they are (`what`).
    """
    if is_one(prompts):
        return [_ids(model, prompts, prepend_bos, check, what)]
    if len(prompts) == 0:
        raise PromptError(f"{_described(prompts)} holds no {what}; {ALLOWED}")
    rows = []
    for number, prompt in enumerate(prompts):
        try:
            if not is_one(prompt):
                raise PromptError(f"{_described(prompt)} is several prompts; {ALLOWED}")
            rows.append(_ids(model, prompt, prepend_bos, check, what))
        except PromptError as error:
            raise PromptError(f"{what} {number}: {error}") from None
    return rows


def one_prompt(model: TextInterface, prompt: Prompt) -> Int[Tensor, "pos"]:
    """The ids of a single prompt, on the model's device. Raises PromptError for several."""
    if not is_one(prompt):
        raise PromptError(f"{_described(prompt)} is several prompts, and this looks at one; pass them one by one")
    return torch.tensor(token_rows(model, prompt)[0], device=model.device)


def token_batch(
    model: TextInterface, prompts: Prompts, prepend_bos: bool = True
) -> tuple[Int[Tensor, "batch pos"], list[int] | None]:
    """One row for each prompt, filled up at the right, and their lengths where they differ (None: all are full)."""
    if isinstance(prompts, Tensor) and prompts.ndim == 2 and _is_integer(prompts):
        # As it came: nothing of a large batch goes through Python, and a compiler can follow.
        prompts = prompts.to(model.device, torch.long)
        if not (torch.compiler.is_compiling() or prompts.is_meta):
            check_length(model, prompts.shape[1])
            _check_ids(model, prompts)
        return prompts, None
    rows = token_rows(model, prompts, prepend_bos)
    lengths = [len(row) for row in rows]
    return padded(rows, model).to(model.device), None if len(set(lengths)) == 1 else lengths


def padded(rows: Sequence[Sequence[int]], model: TextInterface) -> Int[Tensor, "batch pos"]:
    width = max(map(len, rows))
    filler = 0 if model.tokenizer is None else model.tokenizer.eos_id
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], dtype=torch.long)


def needed_tokenizer(model: TextInterface, why: str) -> Tokenizer:
    if model.tokenizer is None:
        raise PromptError(f"{why} through a tokenizer, and this model has none; pass token ids, or set model.tokenizer")
    return model.tokenizer


def check_ids(model: TextInterface, ids: Sequence[int]) -> None:
    """Raises PromptError for an id outside the vocabulary."""
    wrong = next((id for id in ids if not 0 <= id < model.config.vocab_size), None)
    if wrong is not None:
        last = model.config.vocab_size - 1
        raise PromptError(f"token id {wrong} is outside the vocabulary of {last + 1}; ids run from 0 to {last}")


def _ids(model: TextInterface, prompt: Prompts, prepend_bos: bool, check: bool, what: str) -> list[int]:
    if isinstance(prompt, str):
        ids = needed_tokenizer(model, "text becomes ids").encode(prompt, bos=prepend_bos)
    else:
        ids = _plain_ids(prompt)
        check_ids(model, ids)
    if check:
        check_length(model, len(ids), what)
    return ids


def _plain_ids(prompt: Any) -> list[int]:
    """The ids of a sequence, a tensor or an array that holds nothing else."""
    if isinstance(prompt, Tensor | np.ndarray):
        if prompt.ndim not in (1, 2) or not _is_integer(prompt):
            raise PromptError(f"{_described(prompt)} is no prompt; {ALLOWED}")
        prompt = prompt.reshape(-1).tolist()
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise PromptError(f"{_described(prompt)} is no prompt; {ALLOWED}")
    odd = next((id for id in prompt if not _is_id(id)), None)
    if odd is not None:
        raise PromptError(f"{odd!r} among the ids is no token id; {ALLOWED}")
    return [int(id) for id in prompt]


def check_length(model: TextInterface, length: int, what: str = "prompt") -> None:
    """Raises PromptError for no tokens, or more than the context holds."""
    if length == 0:
        raise PromptError(f"the {what} is empty: it holds no token; give at least one")
    n_ctx = model.config.n_ctx
    if length > n_ctx:
        raise PromptError(
            f"{length} tokens do not fit this model's context of {n_ctx}; pass at least {length - n_ctx} fewer, or a "
            "model with a larger n_ctx"
        )


def _check_ids(model: TextInterface, ids: Tensor) -> None:
    wrong = ids[(ids < 0) | (ids >= model.config.vocab_size)]
    check_ids(model, wrong[:1].tolist())


def _is_id(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0 and _is_integer(value)
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_integer(values: Tensor | np.ndarray) -> bool:
    if isinstance(values, np.ndarray):
        return bool(np.issubdtype(values.dtype, np.integer))
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def _described(value: Any) -> str:
    """What came, in a few words."""
    if isinstance(value, Tensor | np.ndarray):
        kind = "a tensor" if isinstance(value, Tensor) else "an array"
        return f"{kind} of {str(value.dtype).removeprefix('torch.')} with shape {list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r} ({type(value).__name__})" if isinstance(value, int | float) else f"a {type(value).__name__}"
