"""One block over a long prompt, in pieces: the block's own forward pass, at a fraction of its memory.

At 8192 positions of the published model the hidden layer of an MLP, or the two windows of keys that every block of
queries gets in the model's banded attention, are larger than all that a reading keeps.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from shardscope.model.attention import QKV
from shardscope.model.shard import Attention, Block

MLP_ROWS = 1024  # positions that pass through an MLP at once
BAND_ROWS = 256  # queries of a sliding layer at once, with the window before them

Residual = Float[Tensor, "batch pos d_model"]


def through(block: Block, x: Residual) -> Residual:
    """`block(x)`. Hooks inside the MLP see MLP_ROWS positions at a time, all others everything."""
    x = block.hook_resid_pre(x)
    x = block.hook_resid_mid(x + block.hook_attn_out(_attention(block.attn, block.ln1(x))))
    pieces = [block.mlp(block.ln2(piece)) for piece in x.split(MLP_ROWS, dim=1)]
    return block.hook_resid_post(x + block.hook_mlp_out(torch.cat(pieces, dim=1)))


def _attention(attn: Attention, x: Residual) -> Residual:
    q, k, v = attn.project(x)
    watched = attn.hook_attn_scores.watched or attn.hook_pattern.watched
    # A GPU has kernels of its own for a window, and memory to spare.
    if attn.window is None or watched or x.device.type != "cpu":
        return attn.output(attn.attend(q, k, v))
    return attn.output(_sliding(q, k, v, attn.window))


def _sliding(q: QKV, k: QKV, v: QKV, window: int) -> QKV:
    pos, pieces = q.shape[1], []
    q, k, v = (rearrange(x, "batch pos head d_head -> batch head pos d_head") for x in (q, k, v))
    for first in range(0, pos, BAND_ROWS):
        queries, keys = slice(first, first + BAND_ROWS), slice(max(0, first - window + 1), first + BAND_ROWS)
        distance = torch.arange(pos)[queries, None] - torch.arange(pos)[keys]
        visible = (distance >= 0) & (distance < window)
        pieces.append(F.scaled_dot_product_attention(q[:, :, queries], k[:, :, keys], v[:, :, keys], attn_mask=visible))
    return rearrange(torch.cat(pieces, dim=2), "batch head pos d_head -> batch pos head d_head")
