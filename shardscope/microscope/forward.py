"""Attention over a long prompt on a CPU, a stretch of queries at a time.

At 8192 positions of the published model the two windows of keys that every block of queries gets in the model's banded
attention are larger than all that a reading holds.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch.nn import functional as F

from shardscope.model.attention import QKV
from shardscope.model.shard import Attention

BAND_ROWS = 256  # queries of a sliding layer at once, with the window before them


def attend_in_bands(attn: Attention, q: QKV, k: QKV, v: QKV) -> QKV:
    """`attn.attend(q, k, v)`, in little memory."""
    watched = attn.hook_attn_scores.watched or attn.hook_pattern.watched
    # A GPU has kernels of its own for a window, and memory to spare.
    if attn.window is None or watched or q.device.type != "cpu":
        return attn.attend(q, k, v)
    pos, pieces = q.shape[1], []
    q, k, v = (rearrange(x, "batch pos head d_head -> batch head pos d_head") for x in (q, k, v))
    for first in range(0, pos, BAND_ROWS):
        queries, keys = slice(first, first + BAND_ROWS), slice(max(0, first - attn.window + 1), first + BAND_ROWS)
        distance = torch.arange(pos)[queries, None] - torch.arange(pos)[keys]
        visible = (distance >= 0) & (distance < attn.window)
        pieces.append(F.scaled_dot_product_attention(q[:, :, queries], k[:, :, keys], v[:, :, keys], attn_mask=visible))
    return rearrange(torch.cat(pieces, dim=2), "batch head pos d_head -> batch pos head d_head")
