"""Many texts at once, as a tree of tokens: common beginnings are computed once, and no number depends on other texts.

A sum of floating-point numbers depends on its order, and the order on the shapes of the matrices, so the same text in
another batch usually gets other last digits. Here no shape depends on the batch. What is computed for each token alone
takes a tile of a fixed number of tokens at a time. In attention, a token at position p is row p mod BLOCK of a block of
queries, which meets the keys of all positions up to the block's end. The batch only says how many tiles and blocks.

Axes: node (a token of the tree), tile, text, batch, pos, query, key, d_model, head, d_head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from shardscope.generation.forward import Packed
from shardscope.threads import use_free_cores

BLOCK = 32
# Tokens of a tile. A CPU's products are about as fast in tiles as all at once; a GPU hardly notices those of one tile.
TILE = {"cpu": 32, "cuda": 4096, "mps": 512}
KEYS_AT_ONCE = {"cpu": 2**15, "cuda": 2**18, "mps": 2**16}  # bounds the memory of attention

Nodes = NDArray[np.int64]


@dataclass(frozen=True)
class Tree:
    """`tokens` and `positions` of its nodes, and for each text its `path`: the nodes of its tokens in order.

    The first `shared` nodes of a path are those of a text before it.
    """

    tokens: Nodes
    positions: Nodes
    paths: list[Nodes]
    shared: list[int]

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> Tree:
        """In lexical order, what a text shares with any text before it, it shares with the one just before it."""
        paths: list[Nodes] = [np.empty(0, dtype=np.int64)] * len(texts)
        shared = [0] * len(texts)
        tokens: list[int] = []
        positions: list[int] = []
        before: Sequence[int] = ()
        path = np.empty(0, dtype=np.int64)
        for index in sorted(range(len(texts)), key=lambda index: tuple(texts[index])):
            text = texts[index]
            differ = (at for at, (a, b) in enumerate(zip(before, text, strict=False)) if a != b)
            common = next(differ, min(len(before), len(text)))
            new = np.arange(len(tokens), len(tokens) + len(text) - common)
            path = np.concatenate([path[:common], new])
            tokens.extend(text[common:])
            positions.extend(range(common, len(text)))
            paths[index], shared[index], before = path, common, text
        return cls(np.array(tokens), np.array(positions), paths, shared)


@torch.inference_mode()
def tree_hidden(packed: Packed, tree: Tree, device: torch.device) -> Float[Tensor, "node d_model"]:
    """The normalised residual stream after every node. Rows behind the last node are padding."""
    tokens, positions = (in_tiles(torch.from_numpy(of_nodes).to(device)) for of_nodes in (tree.tokens, tree.positions))
    model = packed.model
    angles = list(zip(*(of_tiles.split(1) for of_tiles in packed.rotary.angles(positions)), strict=True))
    blocks = _query_blocks(tree, device)
    x = model.embed(tokens)
    for layer, W_QKV in zip(model.blocks, packed.W_QKV, strict=True):
        use_free_cores(device)
        qkv = [layer.attn.project(layer.ln1(tile), at, W_QKV) for tile, at in zip(x.split(1), angles, strict=True)]
        q, k, v = (torch.cat(tiles).flatten(0, 1) for tiles in zip(*qkv, strict=True))
        z = torch.zeros_like(q)
        for block in blocks:
            block.attend(q, k, v, layer.attn.window, z)
        tiles_of_z = z.view(*x.shape[:2], *z.shape[1:]).split(1)
        x = torch.cat([layer.output(*tile) for tile in zip(x.split(1), tiles_of_z, strict=True)])
    return torch.cat([model.ln_final(tile) for tile in x.split(1)]).flatten(0, 1)


def in_tiles(rows: Tensor) -> Tensor:
    """[node …] as [tile pos …]; the last tile is filled up with zeros."""
    size = TILE[rows.device.type]
    filled = torch.cat([rows, rows.new_zeros((-len(rows) % size, *rows.shape[1:]))])
    return filled.view(-1, size, *rows.shape[1:])


@dataclass(frozen=True)
class QueryBlock:
    """The positions `first` … `first` + BLOCK - 1 of every text that has nodes of its own among them.

    `query` are the nodes there and `key` those up to the block's end, 0 where a text has none; `own` marks the nodes
    whose attention is computed here. A text's end and what it shares with another are no reason for another shape.
    """

    first: int
    query: Int[Tensor, "text query"]
    key: Int[Tensor, "text key"]
    own: Bool[Tensor, "text query"]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None, z: Tensor) -> None:
        """Write into `z` [node head d_head] the attention of the block's own nodes, of `q`, `k` and `v` like it."""
        end = self.first + BLOCK
        start = 0 if window is None else max(0, self.first + 1 - window) // BLOCK * BLOCK
        query = torch.arange(self.first, end, device=q.device)[:, None]
        key = torch.arange(start, end, device=q.device)
        visible = key <= query
        if window is not None:
            visible &= key > query - window
        texts = max(1, KEYS_AT_ONCE[q.device.type] // (end - start))
        for rows, columns, own in zip(
            self.query.split(texts), self.key[:, start:].split(texts), self.own.split(texts), strict=True
        ):
            queries, keys, values = (of[nodes].transpose(1, 2) for of, nodes in ((q, rows), (k, columns), (v, columns)))
            found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
            z[rows[own]] = found.transpose(1, 2)[own]


def _query_blocks(tree: Tree, device: torch.device) -> list[QueryBlock]:
    members: dict[int, list[int]] = {}
    for text, (path, shared) in enumerate(zip(tree.paths, tree.shared, strict=True)):
        for first in range(shared // BLOCK * BLOCK, len(path) if len(path) > shared else 0, BLOCK):
            members.setdefault(first, []).append(text)
    blocks = []
    for first, texts in sorted(members.items()):
        key = np.zeros((len(texts), first + BLOCK), dtype=np.int64)
        own = np.zeros((len(texts), BLOCK), dtype=np.bool_)
        for row, text in enumerate(texts):
            path = tree.paths[text][: first + BLOCK]
            key[row, : len(path)] = path
            own[row, max(0, tree.shared[text] - first) : len(path) - first] = True
        keys = torch.from_numpy(key).to(device)
        blocks.append(QueryBlock(first, keys[:, first:], keys, torch.from_numpy(own).to(device)))
    return blocks
