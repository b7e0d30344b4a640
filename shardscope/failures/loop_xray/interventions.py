"""Many interventions in one batch: every row has its own set of parts whose output is replaced.

What a head writes is replaced at `hook_z`, what an MLP writes at `hook_mlp_out`. The replacements come from a bank of
activations: their mean over a reference text, some drawn from it ("resample"), or those of another run (a patch).

Axes: row, pos, layer, head, d_head, d_model; `entry` counts the activations of a bank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shardscope.failures.loop_xray.parts import Part, XrayError
from shardscope.model import HookPoint, Shard

Ablation = Literal["mean", "resample"]

RESAMPLED = 512  # positions of the reference text that a resample draws from
UNTOUCHED = -1


@dataclass(frozen=True, eq=False)
class Activations:
    """What every head and every MLP wrote at some positions."""

    z: Float[Tensor, "layer entry head d_head"]
    mlp_out: Float[Tensor, "layer entry d_model"]

    def __len__(self) -> int:
        return self.z.shape[1]

    def mean(self) -> Activations:
        return Activations(self.z.mean(dim=1, keepdim=True), self.mlp_out.mean(dim=1, keepdim=True))


@torch.no_grad()
def activations(model: Shard, tokens: Int[Tensor, "row pos"], positions: Sequence[int] | None = None) -> Activations:
    """What every part writes at `positions` (None: at all) of every row, in float32; row after row."""
    n_layers = model.config.n_layers
    held: dict[str, Tensor] = {}
    index = torch.arange(tokens.shape[1]) if positions is None else torch.tensor(list(positions))
    index = index.to(model.device)

    def keep(activation: Tensor, /, *, hook: HookPoint) -> None:
        held[hook.name] = activation[:, index].float().flatten(0, 1)

    names = [f"blocks.{layer}.{point}" for layer in range(n_layers) for point in ("attn.hook_z", "hook_mlp_out")]
    with model.hooks(fwd_hooks=[(name, keep) for name in names]):
        model.residual(tokens.to(model.device))
    z, mlp_out = (
        torch.stack([held[f"blocks.{layer}.{point}"] for layer in range(n_layers)])
        for point in ("attn.hook_z", "hook_mlp_out")
    )
    return Activations(z, mlp_out)


def ablation_bank(
    model: Shard, reference: Int[Tensor, "row pos"], ablation: Ablation = "mean", seed: int = 0
) -> Activations:
    """What replaces an ablated part: one mean entry, or RESAMPLED entries to draw from. Raises XrayError."""
    if ablation not in get_args(Ablation):
        raise XrayError(f"there is no ablation {ablation!r}; use {' or '.join(map(repr, get_args(Ablation)))}")
    bank = activations(model, reference)
    if ablation == "mean":
        return bank.mean()
    order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(seed))[:RESAMPLED].to(model.device)
    return Activations(bank.z[:, order], bank.mlp_out[:, order])


def drawn_entries(positions: Int[Tensor, "row pos"], entries: int) -> Int[Tensor, "row pos"]:
    """An entry of the bank for every position: the same one however the text is cut into calls."""
    # Knuth's multiplicative hash, so that neighbours draw entries far apart.
    return positions * 2654435761 % 2**32 % entries


class Interventions:
    """One set of parts for each row of a batch; an empty set leaves its row as it is.

    `entry_of` gives each position the number of the bank's entry that replaces what is written there (UNTOUCHED: it
    stays). Until `move_to` says which positions the next call holds, that is entry 0 everywhere.
    """

    def __init__(
        self,
        model: Shard,
        sets: Sequence[Sequence[Part]],
        bank: Activations,
        entry_of: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        config, device = model.config, model.device
        self.model, self.bank = model, bank
        self._entry_of = entry_of or (lambda positions: drawn_entries(positions, len(bank)))
        self._entries: Int[Tensor, "#row #pos"] = torch.zeros(1, 1, dtype=torch.long, device=device)
        heads = torch.zeros(config.n_layers, len(sets), config.n_heads, dtype=torch.bool)
        mlps = torch.zeros(config.n_layers, len(sets), dtype=torch.bool)
        for row, parts in enumerate(sets):
            for part in parts:
                if part.head is None:
                    mlps[part.layer, row] = True
                else:
                    heads[part.layer, row, part.head] = True
        self._choose(heads.to(device), mlps.to(device))

    def _choose(self, heads: Bool[Tensor, "layer row head"], mlps: Bool[Tensor, "layer row"]) -> None:
        """What is replaced, and which layers have any of it: the others run without a hook."""
        self._heads, self._mlps = heads, mlps
        self._head_layers, self._mlp_layers = heads.flatten(1).any(dim=1).tolist(), mlps.any(dim=1).tolist()

    def of_rows(self, rows: Sequence[int]) -> Interventions:
        """Those of some of the rows."""
        chosen = copy(self)
        chosen._choose(self._heads[:, rows], self._mlps[:, rows])
        return chosen

    def move_to(self, positions: Int[Tensor, "row pos"]) -> None:
        """The next call holds these positions."""
        self._entries = self._entry_of(positions).to(self.model.device)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within this context the model's calls are intervened in."""
        layers = range(self.model.config.n_layers)
        hooks = [
            (f"blocks.{layer}.attn.hook_z", partial(self._replace_heads, layer))
            for layer in layers
            if self._head_layers[layer]
        ]
        hooks += [
            (f"blocks.{layer}.hook_mlp_out", partial(self._replace_mlp, layer))
            for layer in layers
            if self._mlp_layers[layer]
        ]
        with self.model.hooks(fwd_hooks=hooks):
            yield

    def _replace_heads(self, layer: int, z: Tensor, /, *, hook: HookPoint) -> Tensor:
        chosen = self._heads[layer][:, None, :, None] & (self._entries >= 0)[:, :, None, None]
        return torch.where(chosen, self.bank.z[layer][self._entries.clamp(min=0)].to(z.dtype), z)

    def _replace_mlp(self, layer: int, written: Tensor, /, *, hook: HookPoint) -> Tensor:
        chosen = self._mlps[layer][:, None, None] & (self._entries >= 0)[:, :, None]
        return torch.where(chosen, self.bank.mlp_out[layer][self._entries.clamp(min=0)].to(written.dtype), written)


@contextmanager
def switched_off(model: Shard, parts: Sequence[Part], bank: Activations) -> Iterator[Shard]:
    """Within this context `parts` write the mean of `bank` at every position of every call.

    `generate(model, …)` inside continues without them.
    """
    with Interventions(model, [parts], bank.mean()).active():
        yield model
