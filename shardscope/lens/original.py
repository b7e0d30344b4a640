"""The way in for the published checkpoint, whose tensor names are not public.

The file is read without running code from it (`restricted`), its weights are recognised by name and shape
(`spelling`), and what stays open is decided by reading a text: the right order of gate and up, and the right pairing
of rotary channels, give the lowest loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shardscope.config import ShardConfig
from shardscope.lens.restricted import OriginalError, read_original
from shardscope.lens.spelling import Choice, read_spelling
from shardscope.model import Shard
from shardscope.tokenizer import Tokenizer

__all__ = ["Imported", "OriginalError", "import_original"]

# Ours to the spellings of the same setting; the first of each is the published one.
_SETTINGS: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size", "n_vocab"),
    "d_model": ("dim", "d_model", "hidden_size", "n_embd"),
    "n_layers": ("n_layers", "n_layer", "num_layers", "num_hidden_layers"),
    "n_heads": ("n_heads", "n_head", "num_heads", "num_attention_heads"),
    "d_head": ("head_dim", "d_head"),
    "d_mlp": ("mlp_hidden", "d_mlp", "hidden_dim", "intermediate_size"),
    "n_ctx": ("max_seq_len", "n_ctx", "block_size", "context_length"),
    "window": ("sliding_window", "window"),
    "rope_base": ("rope_theta", "rope_base"),
    "norm_eps": ("norm_eps", "rms_norm_eps", "rms_eps", "eps"),
    "logit_cap": ("lm_head_logit_cap", "logit_cap"),
}
_PATTERNS = {"gemma4": "SG", "all_global": "G"}
# Closer losses than this (nats a token) do not decide between two readings.
_MARGIN = 0.01
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


def import_original(path: str | Path, tokenizer: str | Path | Tokenizer, text: str | None = None) -> Imported:
    """The Shard in a published checkpoint.

    `text` decides what names and shapes leave open; it should be in the language that the model was trained on.
    Raises OriginalError when the file is unsafe, holds something else, or cannot be read in one way only.
    """
    tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.load(tokenizer)
    values, weights = read_original(path)
    reading = read_spelling(weights)
    config = _config(values, reading.embedding, len(reading.layers))
    if tokenizer.vocab_size > config.vocab_size:
        raise OriginalError(
            f"the tokenizer has {tokenizer.vocab_size} entries, the model only {config.vocab_size}; "
            "pass the tokenizer.json that was published with it"
        )
    tokens = torch.tensor([tokenizer.encode(text or _PLAIN_ENGLISH, bos=True)[: min(config.n_ctx, 1024)]])
    if tokens.shape[1] < 32:
        raise OriginalError(f"the text has only {tokens.shape[1] - 1} tokens; give at least 31 to decide by")
    losses: dict[Choice, float] = {}
    for choice in reading.choices():
        losses[choice] = _loss(_model(config, reading.state(config, choice)).float(), tokens)
    ranked = sorted(losses, key=losses.__getitem__)
    if len(ranked) > 1 and not losses[ranked[1]] - losses[ranked[0]] > _MARGIN:
        raise OriginalError(
            f"two readings fit the text equally well: {ranked[0]} (loss {losses[ranked[0]]:.3f}) and {ranked[1]} "
            f"({losses[ranked[1]]:.3f}); pass a longer --text like what the model was trained on"
        )
    report = reading.describe(ranked[0])
    report += [f"loss {losses[choice]:.4f} when read as: {choice}" for choice in ranked]
    model = _model(config, reading.state(config, ranked[0]))
    model.tokenizer = tokenizer
    return Imported(model, report)


def _model(config: ShardConfig, state: Mapping[str, Tensor]) -> Shard:
    model = Shard(config).to(state["embed.W_E"].dtype)
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    for name, weight in state.items():
        if tuple(weight.shape) != expected[name]:
            raise OriginalError(f"{name} would be {tuple(weight.shape)}, but the file's config says {expected[name]}")
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def _loss(model: Shard, tokens: Tensor) -> float:
    logits = model(tokens)[0, :-1]
    return float(F.cross_entropy(logits, tokens[0, 1:]))


def _config(values: Mapping[str, Any], embedding: Tensor, n_layers: int) -> ShardConfig:
    """The architecture that the file's config describes; what it does not say keeps the published value."""
    if values.get("engram_enabled"):
        raise OriginalError(
            "engram_enabled=True: the memory bank is not part of a Shard; only checkpoints without it are read"
        )
    pattern = values.get("attention_pattern", "gemma4")
    if pattern not in _PATTERNS:
        raise OriginalError(f"attention_pattern={pattern!r} is unknown; known: {', '.join(_PATTERNS)}")
    found: dict[str, Any] = {"layer_pattern": _PATTERNS[pattern]}
    for ours, spellings in _SETTINGS.items():
        stated = [values[name] for name in spellings if values.get(name) is not None]
        if stated:
            found[ours] = stated[0]
    found.setdefault("vocab_size", embedding.shape[0])
    found.setdefault("d_model", embedding.shape[1])
    found.setdefault("n_layers", n_layers)
    for ours, shown in (("vocab_size", embedding.shape[0]), ("d_model", embedding.shape[1]), ("n_layers", n_layers)):
        if found[ours] != shown:
            raise OriginalError(f"the file's config says {ours}={found[ours]}, its weights show {shown}")
    if "n_heads" in found and "d_head" not in found:
        found["d_head"] = found["d_model"] // found["n_heads"]
    kv_heads = values.get("n_kv_heads") or values.get("num_key_value_heads") or found.get("n_heads")
    if kv_heads != found.get("n_heads"):
        raise OriginalError(
            f"{kv_heads} key-value heads for {found.get('n_heads')} query heads; a Shard has as many of both"
        )
    found["window"] = min(found.get("window", 1024), found.get("n_ctx", 8192))
    return ShardConfig.from_dict(found)
