"""The model over a cache: its own blocks, for new positions only, with an attention that also sees the cached ones.

Hook points are called with the names and shapes of an uncached call in which the query axis holds the new positions
alone.

Axes: batch, pos (query, key), d_model, head, d_head, vocab.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from shardscope.generation.cache import KVCache, LayerCache, Span, in_order
from shardscope.model.attention import QKV
from shardscope.model.kernels.product import product
from shardscope.model.shard import Attend, Attention, Residual, Shard
from shardscope.threads import use_free_cores

PREFILL_CHUNK = 512  # positions of a prompt that pass through the model at once
# Tokens that are worth a call of their own: rows of unlike lengths are only split into groups larger than this.
UNSPLIT = {"cpu": 48, "cuda": 8192}
# Tokens of a call at most: the activations of more leave a CPU's cache, and every operation then waits for memory.
AT_ONCE = {"cpu": 2048}


class Piece(NamedTuple):
    """One chunk of `Decoder.feed`: row `rows[i]` takes part with `counts[i]` positions from number `first` on."""

    first: int
    rows: list[int]
    counts: list[int]
    hidden: Residual


class Decoder:
    """A model and the cache of `batch` sequences, each of at most `capacity` positions."""

    def __init__(self, model: Shard, batch: int, capacity: int, packed: Packed | None = None) -> None:
        """`packed`, the model's weights packed before, saves that work where many decoders follow each other."""
        self.model = model
        self.cache = KVCache(model.config, batch, capacity, model.device, model.embed.W_E.dtype)
        self.chunk = min(PREFILL_CHUNK, model.config.window)
        self._packed = packed
        self._attempted: list[Span] = []

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "batch vocab"]:
        """Append token sequences of any lengths, in chunks; returns the logits after the last token of each."""
        last: list[Tensor] = [torch.empty(0)] * len(prompts)
        for piece in self.feed(prompts):
            for index, (row, count) in enumerate(zip(piece.rows, piece.counts, strict=True)):
                last[row] = piece.hidden[index, count - 1]
        return self.logits(torch.stack(last)[:, None])[:, 0]

    def feed(self, sequences: Sequence[Sequence[int]]) -> Iterator[Piece]:
        """Append token sequences of any lengths, chunk by chunk."""
        device = self.model.device.type
        for first in range(0, max(map(len, sequences)), self.chunk):
            lengths = {row: min(len(s) - first, self.chunk) for row, s in enumerate(sequences) if len(s) > first}
            for rows in _alike(lengths, UNSPLIT.get(device, 0), AT_ONCE.get(device)):
                yield self._piece(sequences, first, rows)

    def _piece(self, sequences: Sequence[Sequence[int]], first: int, rows: list[int]) -> Piece:
        chunks = [list(sequences[row][first : first + self.chunk]) for row in rows]
        counts = [len(chunk) for chunk in chunks]
        tokens = torch.tensor([chunk + [0] * (max(counts) - len(chunk)) for chunk in chunks])
        hidden = self.hidden(tokens.to(self.model.device), counts, None if len(rows) == len(sequences) else rows)
        return Piece(first, rows, counts, hidden)

    def step(self, ids: Sequence[int]) -> Float[Tensor, "batch vocab"]:
        """Append one token to every sequence; returns the logits after it."""
        tokens = torch.tensor(ids, device=self.model.device)[:, None]
        return self.logits(self.hidden(tokens, [1] * len(ids)))[:, 0]

    def attempt(self, ids: Sequence[int]) -> Float[Tensor, "pos vocab"]:
        """The logits after each of several tokens appended to the only sequence; `settle` says how many stay."""
        use_free_cores(self.model.device)
        tokens = torch.tensor([list(ids)], device=self.model.device)
        self._attempted = [replace(span, attempt=True) for span in self.cache.spans([len(ids)], len(ids))]
        return self.logits(self._hidden(tokens, self._attempted))[0]

    def settle(self, count: int) -> None:
        """Accept the first `count` tokens of the attempt."""
        for layer, span in zip(self.cache.layers, self._attempted, strict=True):
            layer.settle(span, count)
        self.cache.advance([count])

    def hidden(
        self, tokens: Int[Tensor, "batch pos"], counts: Sequence[int], rows: Sequence[int] | None = None
    ) -> Residual:
        """The normalised residual stream at the new positions; row i has `counts[i]` of them, the rest is padding.

        `rows` are the sequences that take part (None: all). At most `chunk` positions at once: a chunk longer than
        the window would overwrite slots twice.
        """
        use_free_cores(self.model.device)
        if tokens.shape[1] > self.chunk:
            raise ValueError(f"{tokens.shape[1]} new positions at once; a chunk holds at most {self.chunk}")
        spans = self.cache.spans(counts, tokens.shape[1], rows)
        x = self._hidden(tokens, spans)
        self.cache.advance(counts, rows)
        return x

    def _hidden(self, tokens: Int[Tensor, "batch pos"], spans: Sequence[Span]) -> Residual:
        attends = [partial(attend_cached, *pair) for pair in zip(self.cache.layers, spans, strict=True)]
        return self.packed.hidden(tokens, spans[0].query, attends)

    def logits(self, hidden: Residual) -> Float[Tensor, "batch pos vocab"]:
        """Capped logits of `hidden`."""
        return self.packed.logits(hidden)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these sequences only."""
        self.cache.keep(rows)

    @property
    def packed(self) -> Packed:
        if self._packed is None:
            self._packed = Packed(self.model)
        return self._packed


def _alike(lengths: dict[int, int], least: int, most: int | None = None) -> list[list[int]]:
    """Rows in groups of like length: padding costs about a fifth at most; each but the last has `least` tokens.

    No group but of one row has more than `most` tokens, padding included.
    """
    groups: list[list[int]] = [[]]
    tokens = 0
    for row in sorted(lengths, key=lambda row: lengths[row]):
        padded = (len(groups[-1]) + 1) * lengths[row]
        wasteful = tokens >= least and padded > 1.2 * (tokens + lengths[row])
        if groups[-1] and (wasteful or (most is not None and padded > most)):
            groups.append([])
            tokens = 0
        groups[-1].append(row)
        tokens += lengths[row]
    return [sorted(group) for group in groups]


class Packed:
    """A model and what its weights are copied to for products with few rows. The copies do not follow later changes."""

    def __init__(self, model: Shard) -> None:
        self.model = model
        self.config = model.config
        self.rotary = model.blocks[0].attn.rotary
        with torch.no_grad():
            self.W_QKV = [block.attn.joined() for block in model.blocks]
            self.W_U = model.W_U.contiguous()

    def hidden(
        self, tokens: Int[Tensor, "batch pos"], positions: Int[Tensor, "batch pos"], attends: Sequence[Attend]
    ) -> Residual:
        """The normalised residual stream after the model's blocks, with an attention of its own for each block."""
        # What a hook sees may be used with gradients later; the other mode is faster.
        with torch.no_grad() if self.model.watched else torch.inference_mode():
            x = self.model.hook_embed(self.model.embed(tokens))
            angles = self.rotary.angles(positions)
            for block, W_QKV, attend in zip(self.model.blocks, self.W_QKV, attends, strict=True):
                x = block(x, attend=attend, angles=angles, W_QKV=W_QKV)
            return self.model.ln_final(x)

    @torch.inference_mode()
    def logits(self, hidden: Residual) -> Float[Tensor, "batch pos vocab"]:
        """Capped logits of `hidden`."""
        cap = self.config.logit_cap
        return product(hidden, self.W_U).float().div_(cap).tanh_().mul_(cap)


def attend_cached(layer: LayerCache, span: Span, attn: Attention, q: QKV, k: QKV, v: QKV) -> QKV:
    """Attention of the new positions of `span` over those that `layer` holds, and over themselves."""
    keys, values = layer.extend(k, v, span)
    if not (attn.hook_attn_scores.watched or attn.hook_pattern.watched):
        z = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=span.visible)
        return z.transpose(1, 2)
    # Whoever watches the pattern gets a key axis in the order of the positions, as without a cache.
    total = int(span.query.max()) + 1
    keys, values = in_order(keys, span.key, total), in_order(values, span.key, total)
    query, key = span.query[:, None, :, None], torch.arange(total, device=q.device)
    visible = key <= query
    if span.window is not None:
        visible &= key > query - span.window
    scores = einsum(q, keys, "batch query head d_head, batch head key d_head -> batch head query key")
    scores = attn.hook_attn_scores((scores / q.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf))
    pattern = attn.hook_pattern(scores.softmax(dim=-1))
    return einsum(pattern, values, "batch head query key, batch head key d_head -> batch query head d_head")
