"""Causal attention over a window, three ways that agree: explicit, banded, and fused.

Shapes are `batch pos head d_head`. A window counts the query's own position: query i sees keys
max(0, i - window + 1) … i; None sees all keys up to i. `document_start` gives, for every position, the first
position of its document; keys before it are invisible.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from shardscope.model.kernels import windowed

QKV = Float[Tensor, "batch pos head d_head"]
Scores = Float[Tensor, "batch head query key"]
Starts = Int[Tensor, "batch pos"]


def visible_keys(
    pos: int, window: int | None, document_start: Starts | None = None, device: torch.device | None = None
) -> Bool[Tensor, "batch #head query key"]:
    """Which keys each query sees; batch is 1 unless documents differ."""
    query = torch.arange(pos, device=device)[:, None]
    key = torch.arange(pos, device=device)[None, :]
    visible = key <= query
    if window is not None:
        visible &= key > query - window
    visible = rearrange(visible, "query key -> 1 1 query key")
    if document_start is not None:
        visible = visible & (key >= rearrange(document_start, "batch query -> batch 1 query 1"))
    return visible


def attention_scores(q: QKV, k: QKV, window: int | None, document_start: Starts | None = None) -> Scores:
    """Scaled scores, -inf where a key is invisible."""
    scores = einsum(q, k, "batch query head d_head, batch key head d_head -> batch head query key")
    visible = visible_keys(q.shape[1], window, document_start, q.device)
    return (scores / q.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf)


def fused_attention(q: QKV, k: QKV, v: QKV, window: int | None, document_start: Starts | None = None) -> QKV:
    """The attention output without ever holding the pattern, by the best kernel for the device and the window."""
    pos = q.shape[1]
    if window is not None and window >= pos:
        window = None
    if window is None and document_start is None:
        return _sdpa(q, k, v, is_causal=True)
    if windowed.applies(q):
        return windowed.windowed_attention(q, k, v, window, document_start)
    if document_start is None and window is not None:
        return banded_attention(q, k, v, window)
    return _sdpa(q, k, v, attn_mask=visible_keys(pos, window, document_start, q.device))


def banded_attention(q: QKV, k: QKV, v: QKV, window: int) -> QKV:
    """Sliding-window attention whose cost grows with pos * window instead of pos².

    Queries are cut into blocks of `window`; a block sees only its own keys and those of the block before, so
    every block is a small dense attention over 2 * window keys.
    """
    pos = q.shape[1]
    padding = -pos % window
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, padding)) for x in (q, k, v))
    q_blocks = rearrange(q, "batch (block query) head d_head -> (batch block) query head d_head", query=window)

    def with_previous(x: Tensor) -> Tensor:
        blocks = rearrange(x, "batch (block key) head d_head -> batch block key head d_head", key=window)
        previous = F.pad(blocks[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
        both = torch.cat([previous, blocks], dim=2)
        return rearrange(both, "batch block key head d_head -> (batch block) key head d_head")

    query = torch.arange(window, device=q.device)[:, None] + window
    key = torch.arange(2 * window, device=q.device)[None, :]
    visible = (key <= query) & (key > query - window)
    blocks = (pos + padding) // window
    # The first block has nothing before it.
    first = torch.arange(blocks, device=q.device)[:, None, None] > 0
    visible = visible & (first | (key >= window))
    visible = visible.repeat(q.shape[0], 1, 1)[:, None]
    z = _sdpa(q_blocks, with_previous(k), with_previous(v), attn_mask=visible)
    return rearrange(z, "(batch block) query head d_head -> batch (block query) head d_head", block=blocks)[:, :pos]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, **mask: Tensor | bool) -> Tensor:
    by_head = (rearrange(x, "batch pos head d_head -> batch head pos d_head") for x in (q, k, v))
    z = F.scaled_dot_product_attention(*by_head, **mask)  # type: ignore[arg-type]
    return rearrange(z, "batch head pos d_head -> batch pos head d_head")
