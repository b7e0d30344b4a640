"""Who: which heads and MLPs write the loop's next token, and which heads look one copy back. A picture, no proof.

Axes: layer, head, pos, d_head, d_model, key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from shardscope.config import LayerKind
from shardscope.failures.intervals import Interval, bootstrap
from shardscope.failures.loop_xray.onset import Onset
from shardscope.failures.loop_xray.parts import Part, parts_of
from shardscope.failures.loop_xray.rows import score_tokens
from shardscope.generation import Generation
from shardscope.microscope import read_layers
from shardscope.model import HookPoint, Shard


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """One part over the loop's last copy, means over its tokens.

    `attribution`: what it writes to the logit of the loop's token less that of the best other one, before the cap
    (direct logit attribution, Elhage et al. 2021). `attention`: a head's weight at lag period - 1, on what followed
    one copy ago; `attention_all_copies` adds the copies before.
    """

    name: str
    kind: Literal["head", "mlp"]
    layer: int
    layer_kind: LayerKind
    attribution: float
    attribution_interval: Interval
    attention: float | None
    attention_all_copies: float | None


@dataclass(frozen=True, kw_only=True)
class Suspects:
    """Every part, and what the heads of each kind of layer do together.

    `embedding` and all parts' attributions add up to `logit_difference`. The attentions are means over heads.
    """

    parts: list[Suspect]
    embedding: float
    logit_difference: float
    attention_sliding: float | None  # None: the model has no such layer
    attention_global: float | None

    def by_attention(self) -> list[Suspect]:
        """The heads, those that look at the loop's earlier copies most first."""
        heads = [part for part in self.parts if part.kind == "head"]
        return sorted(heads, key=lambda head: -(head.attention_all_copies or 0.0))


@torch.no_grad()
def find_suspects(model: Shard, generation: Generation, onset: Onset) -> Suspects:
    """Direct logit attribution and attention at the loop's lag, of every part, over the loop's last copy."""
    ids = torch.tensor([*generation.prompt_ids, *generation.ids], device=model.device)
    last = onset.first + onset.period * (len(onset.copies) - 1)
    places = range(max(1, last) - 1, last + onset.period - 1)  # where the copy's tokens are predicted
    ids = ids[: places.stop + 1]
    heads, mlps, embedding, difference = _attributions(model, ids, places)
    near, all_copies = _attention(model, ids[:-1], places, onset.period)
    kinds = model.config.layer_kinds
    means = {kind: [near[at] for at, its in enumerate(kinds) if its == kind] for kind in ("sliding", "global")}
    found = []
    written = torch.cat([heads.flatten(0, 1), mlps]).cpu().double().numpy()  # in the order of parts_of
    low, high = bootstrap(written)
    for row, part in enumerate(parts_of(model.config)):
        found.append(
            Suspect(
                name=part.name,
                kind=part.kind,
                layer=part.layer,
                layer_kind=part.layer_kind(model.config),
                attribution=float(written[row].mean()),
                attribution_interval=Interval(float(low[row]), float(high[row])),
                attention=None if part.head is None else float(near[part.layer][part.head]),
                attention_all_copies=None if part.head is None else float(all_copies[part.layer][part.head]),
            )
        )
    return Suspects(
        parts=found,
        embedding=embedding,
        logit_difference=difference,
        attention_sliding=float(np.mean(means["sliding"])) if means["sliding"] else None,
        attention_global=float(np.mean(means["global"])) if means["global"] else None,
    )


def _attributions(model: Shard, ids: Tensor, places: range) -> tuple[Tensor, Tensor, float, float]:
    """By head [layer head pos] and by MLP [layer pos]; the embedding's mean, and the logit difference's."""
    n_layers, held = model.config.n_layers, {}
    index = torch.tensor(list(places), device=model.device)

    def keep(activation: Tensor, /, *, hook: HookPoint) -> None:
        held[hook.name] = activation[0, index].float()

    names = ["hook_embed", "ln_final.hook_scale"]
    names += [f"blocks.{layer}.{point}" for layer in range(n_layers) for point in ("attn.hook_z", "hook_mlp_out")]
    with model.hooks(fwd_hooks=[(name, keep) for name in names]):
        hidden = model.hidden(ids[None, :-1])[:, index]
    tokens = ids[index + 1]
    _, _, other, _ = score_tokens(model.unembed(hidden)[0].float(), tokens)
    direction = model.embed.W_E[tokens].float() - model.embed.W_E[other].float()
    readout = direction * model.ln_final.w.float() / held["ln_final.hook_scale"]
    heads = []
    for layer, block in enumerate(model.blocks):
        written = einsum(block.attn.W_O.float(), readout, "head d_head d_model, pos d_model -> pos head d_head")
        heads.append(
            einsum(held[f"blocks.{layer}.attn.hook_z"], written, "pos head d_head, pos head d_head -> head pos")
        )
    mlps = [(held[f"blocks.{layer}.hook_mlp_out"] * readout).sum(dim=-1) for layer in range(n_layers)]
    embedding = float((held["hook_embed"] * readout).sum(dim=-1).mean())
    difference = float((hidden[0].float() * direction).sum(dim=-1).mean())
    return torch.stack(heads), torch.stack(mlps), embedding, difference


def _attention(
    model: Shard, ids: Tensor, places: range, period: int
) -> tuple[list[Float[np.ndarray, "head"]], list[Float[np.ndarray, "head"]]]:
    """For each layer, by head: the mean weight at lag period - 1, and that at all lags of whole periods less one."""
    near, all_copies = [], []
    for reading in read_layers(model, ids):
        by_head = []
        for head in range(reading.n_heads):
            keys, weights = reading.rows(head, places)
            query = torch.arange(places.start, places.stop, device=weights.device)[:, None]
            lag = query - torch.arange(keys.start, keys.stop, device=weights.device)
            at_lag = lag == period - 1
            earlier = (lag > 0) & ((lag + 1) % period == 0) | at_lag
            by_head.append([float((weights * chosen).sum(dim=1).mean()) for chosen in (at_lag, earlier)])
        columns = np.array(by_head)
        near.append(columns[:, 0])
        all_copies.append(columns[:, 1])
    return near, all_copies


def copying_heads(suspects: Suspects, most: int) -> Sequence[Part]:
    """The heads that look at the loop's earlier copies most."""
    config_order = {part.name: part for part in suspects.parts}
    return [Part(config_order[head.name].layer, _head(head.name)) for head in suspects.by_attention()[:most]]


def _head(name: str) -> int:
    return int(name.partition("H")[2])
