"""What a picture of attention needs: one head's map, one query's row, and a few numbers for every head.

Everything is rebuilt from the rotated queries and keys of one layer at a time (`hook_rot_q`, `hook_rot_k`), in
blocks of queries, so that neither all layers nor one long head's whole pattern is ever held.

Axes: pos (query, key), head, d_head; `cell` counts the squares of a pooled map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from shardscope.config import ConfigError, LayerKind
from shardscope.model import HookPoint, Shard

Ids = Int[Tensor, "pos"]
HeadVectors = Float[Tensor, "pos head d_head"]

MAX_CELLS = 256
THUMBNAIL_CELLS = 24
QUERY_BLOCK = 256


class ViewError(ConfigError):
    """A view that cannot be drawn: no such layer, head or token, or a prompt that is empty or too long."""


@dataclass(frozen=True)
class LayerAttention:
    """The rotated queries and keys of one layer over one prompt: enough for every view of its heads."""

    layer: int
    window: int | None
    q: HeadVectors
    k: HeadVectors

    @property
    def kind(self) -> LayerKind:
        return "global" if self.window is None else "sliding"

    @property
    def n_tokens(self) -> int:
        return self.q.shape[0]

    def rows(self, head: int, first: int, last: int) -> Float[Tensor, "query key"]:
        """The exact pattern of queries first … last - 1 over keys 0 … last - 1; every row sums to 1."""
        query = torch.arange(first, last, device=self.q.device)[:, None]
        key = torch.arange(last, device=self.q.device)[None, :]
        visible = key <= query
        if self.window is not None:
            visible = visible & (key > query - self.window)
        scores = einsum(
            self.q[first:last, head].float(), self.k[:last, head].float(), "query d_head, key d_head -> query key"
        )
        return (scores / self.q.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf).softmax(dim=-1)

    def blocks(self, head: int, block: int = QUERY_BLOCK) -> Iterator[tuple[int, Float[Tensor, "query key"]]]:
        """(first query, its rows) for the whole prompt, `block` queries at a time."""
        for first in range(0, self.n_tokens, block):
            yield first, self.rows(head, first, min(first + block, self.n_tokens))


@dataclass(frozen=True)
class AttentionView:
    """One head's attention as a map of at most `max_cells` squares on a side.

    `weights[query_cell, key_cell]` is the attention that an average query of the cell gives to all keys of the cell
    together, so rows sum to 1; with `cell == 1` it is the exact pattern. A square covers `cell` tokens on each side.
    """

    layer: int
    head: int
    kind: LayerKind
    window: int | None
    n_tokens: int
    cell: int
    weights: Float[np.ndarray, "query_cell key_cell"]

    @property
    def exact(self) -> bool:
        return self.cell == 1

    def edge(self) -> Int[np.ndarray, "query"] | None:
        """For each query the first key it sees; None for a global layer, which has no edge."""
        if self.window is None:
            return None
        return np.maximum(np.arange(self.n_tokens) - self.window + 1, 0)


@dataclass(frozen=True)
class HeadSummary:
    """One head in numbers, each a mean over the queries after the first, and a small pooled picture.

    `past_window` is the weight on keys that no sliding layer of this model can see (distance >= config.window); a
    sliding head scores exactly 0 there.
    """

    layer: int
    head: int
    kind: LayerKind
    first_token: float  # weight on position 0
    previous_token: float  # weight on the position before
    entropy: float  # bits
    distance: float  # tokens
    past_window: float  # weight
    thumbnail: Float[np.ndarray, "query_cell key_cell"]


def read_layer(model: Shard, ids: Ids, layer: int) -> LayerAttention:
    """Run blocks 0 … layer and keep the queries and keys of that layer alone. Raises ViewError."""
    check_prompt(model, ids)
    if not 0 <= layer < model.config.n_layers:
        raise ViewError(f"there is no layer {layer}; this model has layers 0 to {model.config.n_layers - 1}")
    names = [f"blocks.{layer}.attn.hook_rot_q", f"blocks.{layer}.attn.hook_rot_k"]
    with torch.no_grad():
        _, cache = model.run_with_cache(ids[None], names_filter=names, stop_at_layer=layer + 1)
    return LayerAttention(layer, model.config.windows[layer], cache[names[0]][0], cache[names[1]][0])


def attention_view(model: Shard, ids: Ids, layer: int, head: int, max_cells: int = MAX_CELLS) -> AttentionView:
    """The map of one head over a prompt; pooled when the prompt is longer than `max_cells`. Raises ViewError."""
    return head_map(read_layer(model, ids, layer), head, max_cells)


def head_map(attention: LayerAttention, head: int, max_cells: int = MAX_CELLS) -> AttentionView:
    """The map of one head of a layer that was read before. Raises ViewError."""
    check_head(attention, head)
    cell = -(-attention.n_tokens // max_cells)
    weights = _pool(attention, head, cell)
    return AttentionView(
        attention.layer, head, attention.kind, attention.window, attention.n_tokens, cell, weights.cpu().numpy()
    )


def query_row(attention: LayerAttention, head: int, query: int) -> Float[np.ndarray, "pos"]:
    """What one query reads: its exact weights over the whole prompt, 0 for keys it cannot see. Raises ViewError."""
    check_head(attention, head)
    if not 0 <= query < attention.n_tokens:
        raise ViewError(f"there is no token {query}; this prompt has tokens 0 to {attention.n_tokens - 1}")
    row = np.zeros(attention.n_tokens, dtype=np.float32)
    row[: query + 1] = attention.rows(head, query, query + 1)[0].cpu().numpy()
    return row


def summarize_heads(model: Shard, ids: Ids) -> list[HeadSummary]:
    """Every head of every layer in numbers, in one pass that holds one layer at a time. Raises ViewError."""
    check_prompt(model, ids)
    summaries: list[HeadSummary] = []
    held: dict[str, Tensor] = {}

    def keep_query(activation: Tensor, /, *, hook: HookPoint) -> None:
        held["q"] = activation[0]

    def summarize(activation: Tensor, /, *, hook: HookPoint) -> None:
        layer = hook.layer()
        attention = LayerAttention(layer, model.config.windows[layer], held.pop("q"), activation[0])
        summaries.extend(_summary(attention, head, model.config.window) for head in range(model.config.n_heads))

    # Keys are rotated after queries, so the second hook finds both.
    hooks = [
        (lambda name: name.endswith("hook_rot_q"), keep_query),
        (lambda name: name.endswith("hook_rot_k"), summarize),
    ]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model.residual(ids[None])
    return summaries


def check_prompt(model: Shard, ids: Ids) -> None:
    """Raises ViewError unless the model can read these tokens."""
    if len(ids) == 0:
        raise ViewError("the prompt is empty; write at least one character")
    if len(ids) > model.config.n_ctx:
        raise ViewError(
            f"the prompt has {len(ids)} tokens and this model's context holds {model.config.n_ctx}; "
            f"shorten it by at least {len(ids) - model.config.n_ctx} tokens"
        )


def check_head(attention: LayerAttention, head: int) -> None:
    """Raises ViewError unless the layer has this head."""
    n_heads = attention.q.shape[1]
    if not 0 <= head < n_heads:
        raise ViewError(f"there is no head {head}; layer {attention.layer} has heads 0 to {n_heads - 1}")


def _pool(attention: LayerAttention, head: int, cell: int) -> Float[Tensor, "query_cell key_cell"]:
    """Mean over a cell's queries of the sum over its keys; the last cell may hold fewer tokens."""
    cells = -(-attention.n_tokens // cell)
    pooled = torch.zeros(cells, cells, device=attention.q.device)
    block = cell * max(1, QUERY_BLOCK // cell)
    for first, rows in attention.blocks(head, block):
        queries, keys = rows.shape
        rows = F.pad(rows, (0, -keys % cell, 0, -queries % cell))
        sums = rearrange(
            rows, "(query_cell query) (key_cell key) -> query_cell key_cell query key", query=cell, key=cell
        ).sum(dim=(2, 3))
        pooled[first // cell :, : sums.shape[1]][: sums.shape[0]] = sums
    sizes = torch.full((cells, 1), float(cell), device=pooled.device)
    sizes[-1] = attention.n_tokens - cell * (cells - 1)
    return pooled / sizes


def _summary(attention: LayerAttention, head: int, window: int) -> HeadSummary:
    """The numbers of one head; a prompt of one token has only its own query to speak of."""
    device = attention.q.device
    totals = torch.zeros(5, dtype=torch.float64, device=device)
    skipped = 1 if attention.n_tokens > 1 else 0
    for first, rows in attention.blocks(head):
        query = torch.arange(first, first + len(rows), device=device)[:, None]
        distance = query - torch.arange(rows.shape[1], device=device)[None, :]
        per_query = torch.stack(
            [
                rows[:, 0],
                (rows * (distance == 1)).sum(dim=1),
                torch.special.entr(rows).sum(dim=1) / np.log(2),
                (rows * distance.clamp(min=0)).sum(dim=1),
                (rows * (distance >= window)).sum(dim=1),
            ]
        )
        totals += per_query[:, max(0, skipped - first) :].double().sum(dim=1)
    first_token, previous_token, entropy, mean_distance, past_window = (
        totals / (attention.n_tokens - skipped)
    ).tolist()
    return HeadSummary(
        layer=attention.layer,
        head=head,
        kind=attention.kind,
        first_token=first_token,
        previous_token=previous_token,
        entropy=entropy,
        distance=mean_distance,
        past_window=past_window,
        thumbnail=_pool(attention, head, -(-attention.n_tokens // THUMBNAIL_CELLS)).cpu().numpy(),
    )
