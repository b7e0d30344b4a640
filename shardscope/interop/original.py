"""The way in for the published checkpoint, whose tensor names are not public.

The file is read without running code from it (`restricted`), its weights are recognised by name and shape
(`name_mapping`), its config under any spelling (`settings`), and what stays open is decided by reading a text: the
right order of gate and up, of what one matrix holds, and the right pairing of rotary channels give the lowest loss.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import tokenizers
import torch
from torch import Tensor
from torch.nn import functional as F

from shardscope.config import ShardConfig
from shardscope.files import read_json
from shardscope.interop.name_mapping import read_spelling
from shardscope.interop.restricted import OriginalError, read_original
from shardscope.interop.settings import read_settings
from shardscope.model import Shard
from shardscope.tokenizer import END_OF_TEXT, FILE_NAME, Tokenizer

__all__ = ["Imported", "OriginalError", "import_original"]

_READ = 512  # tokens of the text that are read
# Nats a token. Closer losses than the first do not decide between two readings. The best reading must be better than
# guessing among the whole vocabulary by the second, which knowing how frequent each token is brings twice over.
_MARGIN, _BETTER_THAN_GUESSING = 0.01, 1.0
_PLAIN_ENGLISH = (
    "The water cycle describes how water moves between the land, the ocean and the air. When the sun warms the sea, "
    "some of the water becomes vapour and rises. High above the ground the air is cold, so the vapour turns back into "
    "small drops, and the drops gather into clouds. When the drops grow heavy they fall as rain or snow. Some of the "
    "water runs into rivers and flows back to the sea, and some of it sinks into the soil, where the roots of plants "
    "take it up. The plants give part of it back to the air through their leaves, and the cycle begins again."
)


@dataclass(frozen=True)
class Imported:
    """The model in eval mode, and what was decided on the way, as lines to print."""

    model: Shard
    report: list[str]


def import_original(
    path: str | Path,
    tokenizer: str | Path | Tokenizer,
    text: str | None = None,
    bos: str | None = None,
    ignore: Collection[str] = (),
) -> Imported:
    """The Shard in a published checkpoint.

    `text` decides what names and shapes leave open; it should be in the language that the model was trained on. `bos`
    is the token that begins a document, if the tokenizer.json does not call it `<|endoftext|>`. `ignore` are keys of
    the file's config that are not understood and that you know to have concerned training only. Raises OriginalError
    when the file is unsafe, holds something else, cannot be read in one way only, or predicts the text in none.
    """
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = read_tokenizer(tokenizer, bos)
    values, weights = read_original(path)
    reading = read_spelling(weights)
    config, remarks = read_settings(values, reading.seen(), ignore)
    if tokenizer.vocab_size > config.vocab_size:
        raise OriginalError(
            f"the tokenizer has {tokenizer.vocab_size} entries, the model only {config.vocab_size}; "
            "pass the tokenizer.json that was published with it"
        )
    tokens = torch.tensor([tokenizer.encode(text or _PLAIN_ENGLISH, bos=True)[: min(config.n_ctx, _READ)]])
    if tokens.shape[1] < 32:
        raise OriginalError(f"the text has only {tokens.shape[1] - 1} tokens; give at least 31 to decide by")
    first, *others = reading.choices()
    trial = _model(config, reading.state(config, first)).float()
    losses = {first: _loss(trial, tokens)}
    for choice in others:
        trial.load_state_dict(reading.state(config, choice))
        losses[choice] = _loss(trial, tokens)
    ranked = sorted(losses, key=lambda choice: (math.isnan(losses[choice]), losses[choice]))
    best, guessing = losses[ranked[0]], math.log(config.vocab_size)
    if not best < guessing - _BETTER_THAN_GUESSING:
        raise OriginalError(
            f"no reading predicts the text: the best has a loss of {best:.2f} nats a token, and guessing among "
            f"{config.vocab_size} tokens has {guessing:.2f}; pass a --text like what the model was trained on, and the "
            "tokenizer.json that belongs to it"
        )
    if len(ranked) > 1 and not losses[ranked[1]] - best > _MARGIN:
        raise OriginalError(
            f"two readings fit the text equally well: {ranked[0]} (loss {best:.3f}) and {ranked[1]} "
            f"({losses[ranked[1]]:.3f}); pass a longer --text like what the model was trained on"
        )
    report = reading.describe(ranked[0]) + remarks
    report += [f"loss {losses[choice]:.4f} when read as: {choice}" for choice in ranked]
    model = _model(config, reading.state(config, ranked[0]))
    model.tokenizer = tokenizer
    return Imported(model, report)


def read_tokenizer(path: str | Path, bos: str | None = None) -> Tokenizer:
    """The tokenizer in somebody else's tokenizer.json, with its token `bos` under the name `<|endoftext|>`.

    Raises OriginalError when `bos` is not in it, and when it is needed and not given.
    """
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise OriginalError(f"{file}: no such tokenizer file")
    values = read_json(file, OriginalError)
    try:
        added = {token["content"]: token for token in values.get("added_tokens") or []}
        vocab = values["model"]["vocab"]
        known = {**vocab, **{name: token["id"] for name, token in added.items()}}
    except (KeyError, TypeError):
        raise OriginalError(f"{file}: not a tokenizer.json of the tokenizers library") from None
    begins = bos or END_OF_TEXT
    if begins not in known:
        special = ", ".join(added) or "none"
        wanted = "name the token that begins a document with --bos" if bos is None else "--bos names one that is"
        raise OriginalError(f"{file}: has no token {begins}; {wanted}; its special tokens: {special}")
    if begins == END_OF_TEXT:
        return Tokenizer.load(file)
    if END_OF_TEXT in known:
        raise OriginalError(f"{file}: has {END_OF_TEXT}, which begins a document in a Shard; leave --bos out")
    if begins in vocab:
        vocab[END_OF_TEXT] = vocab.pop(begins)
    switches = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added[begins] = {"id": known[begins], "content": END_OF_TEXT, **switches}
    values |= {"added_tokens": list(added.values()), "post_processor": None, "padding": None, "truncation": None}
    try:
        return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(values)))
    except Exception as error:  # the library raises bare Exception
        raise OriginalError(f"{file}: cannot be read with {begins} as its first token: {error}") from None


def _model(config: ShardConfig, state: Mapping[str, Tensor]) -> Shard:
    """A Shard of these weights in the widest of their dtypes. No memory is taken before every shape is right."""
    with torch.device("meta"):
        expected = {name: tuple(weight.shape) for name, weight in Shard(config).state_dict().items()}
    for name, weight in state.items():
        if tuple(weight.shape) != expected[name]:
            raise OriginalError(f"{name} would be {tuple(weight.shape)}, but the file's config says {expected[name]}")
    widest = reduce(torch.promote_types, (weight.dtype for weight in state.values()))
    return Shard.of_weights(config, state, widest).eval()


@torch.no_grad()
def _loss(model: Shard, tokens: Tensor) -> float:
    logits = model(tokens)[0, :-1]
    return float(F.cross_entropy(logits, tokens[0, 1:]))
