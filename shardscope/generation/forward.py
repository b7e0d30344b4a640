"""The model over a cache, two ways that agree: through its hook points, and packed.

Both compute the pieces of `shardscope.model` for new positions only. The watched way calls every hook point, with the
names and shapes of an uncached call in which the query axis holds the new positions alone. The packed way is taken
when nobody watches: queries, keys and values in one product, no hook points, nothing materialised.

Axes: batch, pos (query, key), d_model, head, d_head, vocab.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from shardscope.generation.cache import KVCache, LayerCache, Span, in_order
from shardscope.model.shard import Attention, Block, Rotary, Shard
from shardscope.threads import use_free_cores

QKV = Float[Tensor, "batch pos head d_head"]
Residual = Float[Tensor, "batch pos d_model"]

PREFILL_CHUNK = 512  # positions of a prompt that pass through the model at once
# Tokens that are worth a call of their own: rows of unlike lengths are only split into groups larger than this.
UNSPLIT = {"cpu": 48, "cuda": 8192}


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
        for first in range(0, max(map(len, sequences)), self.chunk):
            lengths = {row: min(len(s) - first, self.chunk) for row, s in enumerate(sequences) if len(s) > first}
            for rows in _alike(lengths, UNSPLIT.get(self.model.device.type, 0)):
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
        return self.logits(self.packed.hidden(tokens, self.cache.layers, self._attempted))[0]

    def settle(self, count: int) -> None:
        """Keep the first `count` tokens of the attempt."""
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
        if is_watched(self.model):
            x = watched_hidden(self.model, tokens, self.cache.layers, spans)
        else:
            x = self.packed.hidden(tokens, self.cache.layers, spans)
        self.cache.advance(counts, rows)
        return x

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


def _alike(lengths: dict[int, int], least: int) -> list[list[int]]:
    """Rows in groups of like length: padding costs about a fifth at most; each but the last has `least` tokens."""
    groups: list[list[int]] = [[]]
    tokens = 0
    for row in sorted(lengths, key=lambda row: lengths[row]):
        padded = (len(groups[-1]) + 1) * lengths[row]
        if tokens >= least and padded > 1.2 * (tokens + lengths[row]):
            groups.append([])
            tokens = 0
        groups[-1].append(row)
        tokens += lengths[row]
    return [sorted(group) for group in groups]


def blocks_of(model: Shard) -> list[Block]:
    return cast("list[Block]", list(model.blocks))


def is_watched(model: Shard) -> bool:
    return any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())


# ------------------------------------------------------------------------------------------------- watched


@torch.no_grad()
def watched_hidden(
    model: Shard, tokens: Int[Tensor, "batch pos"], layers: Sequence[LayerCache], spans: Sequence[Span]
) -> Residual:
    x = model.hook_embed(model.embed(tokens))
    for block, layer, span in zip(blocks_of(model), layers, spans, strict=True):
        x = _watched_block(block, x, layer, span)
    return model.ln_final(x)


def _watched_block(block: Block, x: Residual, layer: LayerCache, span: Span) -> Residual:
    x = block.hook_resid_pre(x)
    x = block.hook_resid_mid(x + block.hook_attn_out(_watched_attention(block.attn, block.ln1(x), layer, span)))
    return block.hook_resid_post(x + block.hook_mlp_out(block.mlp(block.ln2(x))))


def _watched_attention(attn: Attention, x: Residual, layer: LayerCache, span: Span) -> Residual:
    into_heads = "batch pos d_model, head d_model d_head -> batch pos head d_head"
    q, k, v = (
        hook(einsum(x, weight, into_heads))
        for hook, weight in ((attn.hook_q, attn.W_Q), (attn.hook_k, attn.W_K), (attn.hook_v, attn.W_V))
    )
    angles = rotary_angles(attn.rotary, span.query)
    q, k = attn.normalised(q), attn.normalised(k)
    q, k = attn.hook_rot_q(rotate(q, *angles)), attn.hook_rot_k(rotate(k, *angles))
    keys, values = layer.extend(k, v, span)
    if not (attn.hook_attn_scores.watched or attn.hook_pattern.watched):
        return attn.output(_attend(q, keys, values, span))
    # Whoever watches the pattern gets a key axis in the order of the positions, as without a cache.
    total = int(span.query.max()) + 1
    keys, values = in_order(keys, span.key, total), in_order(values, span.key, total)
    query, key = span.query[:, None, :, None], torch.arange(total, device=x.device)
    visible = key <= query
    if span.window is not None:
        visible &= key > query - span.window
    scores = einsum(q, keys, "batch query head d_head, batch head key d_head -> batch head query key")
    scores = attn.hook_attn_scores((scores / q.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf))
    pattern = attn.hook_pattern(scores.softmax(dim=-1))
    return attn.output(
        einsum(pattern, values, "batch head query key, batch head key d_head -> batch query head d_head")
    )


# -------------------------------------------------------------------------------------------------- packed


class Packed:
    """The weights laid out for products with few rows. They are copied when this is built, not followed later."""

    def __init__(self, model: Shard) -> None:
        with torch.no_grad():
            self.config = model.config
            self.embedding = model.embed.W_E
            self.rotary = blocks_of(model)[0].attn.rotary
            self.final_norm = model.ln_final.w
            self.unembedding = model.W_U.contiguous()
            self.blocks = [PackedBlock(block) for block in blocks_of(model)]

    @torch.inference_mode()
    def hidden(self, tokens: Int[Tensor, "batch pos"], layers: Sequence[LayerCache], spans: Sequence[Span]) -> Residual:
        x = F.embedding(tokens, self.embedding)
        angles = rotary_angles(self.rotary, spans[0].query)
        for block, layer, span in zip(self.blocks, layers, spans, strict=True):
            q, k, v = block.project(x, *angles)
            keys, values = layer.extend(k, v, span)
            x = block.output(x, _attend(q, keys, values, span))
        return self.normalised(x)

    def normalised(self, x: Residual) -> Residual:
        return F.rms_norm(x, x.shape[-1:], self.final_norm, self.config.norm_eps)

    @torch.inference_mode()
    def logits(self, hidden: Residual) -> Float[Tensor, "batch pos vocab"]:
        cap = self.config.logit_cap
        return cap * torch.tanh(product(hidden, self.unembedding).float() / cap)


class PackedBlock:
    def __init__(self, block: Block) -> None:
        attn, mlp = block.attn, block.mlp
        self.heads = attn.W_Q.shape[0]
        self.normalised = attn.normalised
        self.eps = block.ln1.eps
        self.ln1, self.ln2 = block.ln1.w, block.ln2.w
        self.W_QKV = rearrange(
            torch.stack([attn.W_Q, attn.W_K, attn.W_V]),
            "three head d_model d_head -> d_model (three head d_head)",
        ).contiguous()
        # These lie in memory as needed; no copies.
        self.W_O = rearrange(attn.W_O, "head d_head d_model -> (head d_head) d_model")
        self.W_gate, self.W_in, self.W_out = mlp.W_gate, mlp.W_in, mlp.W_out

    def project(self, x: Residual, cos: Tensor, sin: Tensor) -> tuple[QKV, QKV, QKV]:
        """Queries, keys and values of the new positions, at the angles of `rotary_angles`."""
        qkv = product(F.rms_norm(x, x.shape[-1:], self.ln1, self.eps), self.W_QKV)
        qkv = qkv.view(x.shape[0], x.shape[1], 3 * self.heads, -1)
        qk = rotate(self.normalised(qkv[:, :, : 2 * self.heads]), cos, sin)
        return qk[:, :, : self.heads], qk[:, :, self.heads :], qkv[:, :, 2 * self.heads :]

    def output(self, x: Residual, z: QKV) -> Residual:
        """The residual stream after the block, where attention found `z`."""
        x = x + product(z.flatten(2), self.W_O)
        normalized = F.rms_norm(x, x.shape[-1:], self.ln2, self.eps)
        gated = F.silu(product(normalized, self.W_gate)) * product(normalized, self.W_in)
        return x + product(gated, self.W_out)


SLICES = 4


def product(x: Float[Tensor, "batch pos rows"], weight: Float[Tensor, "rows columns"]) -> Tensor:
    """x @ weight, sliced along the summed axis when x is a single row on a CPU.

    Such a product only reads the weight once, and the library's matrix-vector kernel does not keep two cores' memory
    busy: four slices of the rows, added up afterwards, took 7.6 ms for all of shard-54m's weights instead of 15.9 ms.
    """
    if x.device.type != "cpu" or x.shape[0] * x.shape[1] > 1 or x.shape[2] % SLICES:
        return x @ weight
    parts = torch.bmm(x.view(SLICES, 1, -1), weight.view(SLICES, -1, weight.shape[1]))
    return parts.sum(dim=0)[None]


# -------------------------------------------------------------------------------------------------- pieces


def rotary_angles(rotary: Rotary, positions: Int[Tensor, "batch pos"]) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines [batch pos 1 d_head] for `rotate`; padding past the table takes its last angle."""
    positions = positions.clamp(max=rotary.cos.shape[0] - 1)
    cos, sin = rotary.cos[positions][:, :, None], rotary.sin[positions][:, :, None]
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: QKV, cos: Tensor, sin: Tensor) -> QKV:
    """`Rotary` for rows that stand at different positions."""
    left, right = x.float().chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([right, left], dim=-1), sin).to(x.dtype)


def _attend(
    q: QKV, keys: Float[Tensor, "batch head key d_head"], values: Float[Tensor, "batch head key d_head"], span: Span
) -> QKV:
    z = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=span.visible)
    return z.transpose(1, 2)
