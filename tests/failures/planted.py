"""Models whose weights are set by hand, so that it is known which part writes the next token.

The residual stream has four kinds of channels: SAID, which the logits weigh most and predictions are added to; OWN, the
current token, which nothing writes to; BEFORE, for the token before it; and a constant. All other heads and MLPs have
small random weights: there, but of no effect.
"""

from __future__ import annotations

import torch

from shardscope import Shard, ShardConfig

VOCAB = 24
CONSTANT = 3 * VOCAB
FIRST = 0  # begins a prompt; nothing comes before it, so the previous-token head copies it itself
GAIN = 6.0  # how loud the predicted token is; the current one says 2 of itself
NOISE = 0.02

# Rotation is as fast as usual in the first channels, and next to none in STILL: there contents are matched.
CONFIG = ShardConfig(
    vocab_size=VOCAB, n_ctx=512, d_model=CONSTANT + 1, n_layers=2, n_heads=4, d_head=64, d_mlp=32,
    layer_pattern="SG", window=64, rope_base=1e8,
)  # fmt: skip
HALF = CONFIG.d_head // 2
STILL = [*range(16, HALF), *range(HALF + 16, CONFIG.d_head)][:VOCAB]
SAID = list(range(VOCAB))
OWN = list(range(VOCAB, 2 * VOCAB))
BEFORE = list(range(2 * VOCAB, 3 * VOCAB))

Head = tuple[int, int]


def blank(seed: int = 0, config: ShardConfig = CONFIG) -> Shard:
    """Embeddings as planned, everything else small noise."""
    generator = torch.Generator().manual_seed(seed)
    model = Shard(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(NOISE * torch.randn(parameter.shape, generator=generator))
        model.embed.W_E.zero_()
        model.embed.W_E[SAID, SAID] = 1.0
        model.embed.W_E[SAID, OWN] = 1.0
        model.embed.W_E[:, CONSTANT] = 1.0
    return model.eval()


@torch.no_grad()
def plant_previous_token(model: Shard, at: Head) -> None:
    """A head that copies the token before into its place."""
    attn, head = model.blocks[at[0]].attn, at[1]
    scale = _scale(3)
    for weight in (attn.W_Q, attn.W_K, attn.W_V, attn.W_O):
        weight[head] = 0.0
    # Turned back by one position, queries agree best with the keys one position behind.
    channel = torch.arange(8)
    angle = CONFIG.rope_base ** (-2.0 * channel / CONFIG.d_head)
    attn.W_Q[head, CONSTANT, channel] = 14 * angle.cos() / scale
    attn.W_Q[head, CONSTANT, channel + HALF] = -14 * angle.sin() / scale
    attn.W_K[head, CONSTANT, channel] = 14 / scale
    attn.W_V[head, OWN, SAID] = 1 / scale
    attn.W_O[head, SAID, BEFORE] = 1.0


@torch.no_grad()
def plant_induction(model: Shard, at: Head, share: float = 1.0) -> None:
    """A head that finds where the current token was before, and writes what followed (`share` of it)."""
    attn, head = model.blocks[at[0]].attn, at[1]
    scale = _scale(4)
    for weight in (attn.W_Q, attn.W_K, attn.W_V, attn.W_O):
        weight[head] = 0.0
    attn.W_Q[head, OWN, STILL] = 40 / scale
    attn.W_K[head, BEFORE, STILL] = 40 / scale
    attn.W_V[head, OWN, SAID] = 1 / scale
    attn.W_O[head, SAID, SAID] = GAIN * share


@torch.no_grad()
def plant_bigram(model: Shard, layer: int, follows: list[int]) -> None:
    """An MLP that writes the token `follows[t]` after the token t."""
    mlp, scale = model.blocks[layer].mlp, _scale(3)
    for weight in (mlp.W_gate, mlp.W_in, mlp.W_out):
        weight.zero_()
    mlp.W_gate[OWN, SAID] = 10 / scale
    mlp.W_in[CONSTANT, SAID] = 1 / scale
    mlp.W_out[SAID, follows] = GAIN / 10


def induction_model(previous: Head, induction: Head, seed: int = 0) -> Shard:
    model = blank(seed)
    plant_previous_token(model, previous)
    plant_induction(model, induction)
    return model


def bigram_model(layer: int, follows: list[int], seed: int = 0) -> Shard:
    model = blank(seed)
    plant_bigram(model, layer, follows)
    return model


def random_block(period: int, seed: int) -> list[int]:
    """Tokens that are all different, so that each says which one follows; none is FIRST."""
    order = torch.randperm(VOCAB - 1, generator=torch.Generator().manual_seed(seed))
    return [1 + id for id in order[:period].tolist()]


def _scale(ones: int) -> float:
    """What a 1 in the residual stream becomes after the norm, where `ones` of its channels are 1 and the others 0."""
    return (CONFIG.d_model / ones) ** 0.5
