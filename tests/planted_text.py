"""Text models whose every next token is planted, and runs whose checkpoints are such models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from shardscope import Shard, ShardConfig
from shardscope.checkpoint import checkpoint_folder, save_checkpoint
from shardscope.tokenizer import Tokenizer

GAIN = 6.0  # how loud the next token is; the current one says 1 of itself

# Every text and what follows it. After a colon comes an answer, after anything else a sentence.
SENTENCE = " the capital of France."
LOOPING = {":": "xy", "": "xy"}
HALF = {":": "xy", "": SENTENCE}
CLEAN = {":": "42", "": SENTENCE}


@torch.no_grad()
def follower(follows: Sequence[int], tokenizer: Tokenizer) -> Shard:
    """A model that writes `follows[t]` after the token t, at any usual temperature: the MLP of its first layer does."""
    vocab = len(follows)
    said, own, constant = list(range(vocab)), list(range(vocab, 2 * vocab)), 2 * vocab
    config = ShardConfig(
        vocab_size=vocab, n_ctx=128, d_model=2 * vocab + 1, n_layers=2, n_heads=1, d_head=8, d_mlp=vocab, window=8,
        layer_pattern="SG",
    )  # fmt: skip
    model = Shard(config, tokenizer)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.zero_()
    model.embed.W_E[said, said] = 1.0
    model.embed.W_E[said, own] = 1.0
    model.embed.W_E[:, constant] = 1.0
    mlp, scale = model.blocks[0].mlp, (config.d_model / 3) ** 0.5
    mlp.W_gate[own, said] = 10 / scale
    mlp.W_in[constant, said] = 1 / scale
    mlp.W_out[said, list(follows)] = GAIN / 10
    return model.eval()


def speaker(answers: Mapping[str, str], tokenizer: Tokenizer) -> Shard:
    """A model that answers a prompt by its last token: "xy" for ever, any other text once and then it ends."""
    after_colon, after_else = (tokenizer.encode(answers[ending]) for ending in (":", ""))
    follows = [after_else[0]] * tokenizer.vocab_size
    follows[tokenizer.encode(":")[0]] = after_colon[0]
    for text, ids in ((answers[":"], after_colon), (answers[""], after_else)):
        assert len(set(ids)) == len(ids), f"{text!r} says a token twice, and each has but one that follows"
        for one, next_one in zip(ids, [*ids[1:], ids[0] if text == "xy" else tokenizer.eos_id], strict=True):
            follows[one] = next_one
    return follower(follows, tokenizer)


def planted_run(folder: Path, tokenizer: Tokenizer, models: Mapping[int, Mapping[str, str]]) -> Path:
    """A run folder with a checkpoint of a `speaker` at each step."""
    for step, answers in models.items():
        save_checkpoint(checkpoint_folder(folder, step), speaker(answers, tokenizer))
    return folder
