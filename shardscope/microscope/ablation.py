"""Switching heads off, and what that does to the predictions and to the continuation.

with ablated(model, [(5, 1)]):
    generate(model, "Once upon a time")
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shardscope.microscope.logits import LENS_ROWS, check_position
from shardscope.microscope.reading import MicroscopeError, check_finite_activations
from shardscope.model import HookPoint, Prompt, Shard
from shardscope.model.prompts import one_prompt

Mode = Literal["zero", "mean"]
Heads = Sequence[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class AblationEffect:
    """The predictions of a prompt with and without some heads.

    `kl[i]` is KL(whole ‖ ablated) of the prediction at position i, in bits. The tokens are those likeliest at
    `position` with or without the heads, in the order of the whole model's probabilities; logits are the capped ones.
    """

    heads: tuple[tuple[int, int], ...]
    mode: Mode
    kl: Float[np.ndarray, "pos"]
    loss_change: float  # mean over the prompt's own next tokens, in nats; nan for a prompt of one token
    position: int
    tokens: Int[np.ndarray, "top"]
    before: Float[np.ndarray, "top"]  # probabilities
    after: Float[np.ndarray, "top"]
    logit_change: Float[np.ndarray, "top"]


@contextmanager
def ablated(model: Shard, heads: Heads, mode: Mode = "zero", *, reference: Prompt | None = None) -> Iterator[Shard]:
    """Within this context the heads, given as (layer, head), write nothing ("zero"), or always their mean ("mean").

    The mean is over the positions of `reference`, read once without ablation. Generation goes through the same hooks,
    so `generate(model, …)` inside continues without the heads. Raises MicroscopeError, or PromptError for `reference`.
    """
    by_layer = check_heads(model, heads)
    if mode not in get_args(Mode):
        raise MicroscopeError(f"there is no ablation {mode!r}; use 'zero' or 'mean'")
    means: dict[int, Tensor] = {}
    if mode == "mean":
        if reference is None:
            raise MicroscopeError("a mean ablation needs reference=, the tokens over which the mean is taken")
        means = _means(model, by_layer, reference)

    def switch_off(z: Tensor, /, *, hook: HookPoint) -> Tensor:
        layer, z = hook.layer(), z.clone()
        z[:, :, by_layer[layer]] = means[layer].to(z.dtype) if layer in means else 0.0
        return z

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", switch_off) for layer in by_layer]):
        yield model


@torch.no_grad()
def ablation_effect(
    model: Shard,
    prompt: Prompt,
    heads: Heads,
    mode: Mode = "zero",
    *,
    position: int = -1,
    top: int = 10,
    reference: Prompt | None = None,
) -> AblationEffect:
    """What the predictions lose with the heads; a mean is over `reference` (None: the prompt).

    Raises PromptError, or MicroscopeError for a head or a position that is not there.
    """
    ids = one_prompt(model, prompt)
    place = check_position(ids, position)
    if not 1 <= top <= model.config.vocab_size:
        raise MicroscopeError(f"top={top} tokens cannot be shown; use 1 to {model.config.vocab_size}")
    whole = model.hidden(ids[None])[0]
    with ablated(model, heads, mode, reference=ids if reference is None else reference):
        without = model.hidden(ids[None])[0]
    check_finite_activations(whole, without)
    kl, losses = [], []
    following = torch.cat([ids[1:], ids.new_full((1,), -1)])
    for x, y, token in zip(whole.split(LENS_ROWS), without.split(LENS_ROWS), following.split(LENS_ROWS), strict=True):
        p, q = (model.unembed(part[None])[0].log_softmax(dim=-1) for part in (x, y))
        kl.append((p.exp() * (p - q)).sum(dim=-1) / np.log(2))
        losses.append((p - q).gather(1, token.clamp(min=0)[:, None])[:, 0])
    logits = torch.stack([model.unembed(part[None, place : place + 1])[0, 0] for part in (whole, without)])
    probabilities = logits.softmax(dim=-1)
    tokens = torch.cat([row.topk(top).indices for row in probabilities]).unique()
    tokens = tokens[probabilities[0, tokens].argsort(descending=True)]
    before, after = probabilities[:, tokens].cpu().numpy()
    return AblationEffect(
        heads=tuple((int(layer), int(head)) for layer, head in heads),
        mode=mode,
        kl=torch.cat(kl).clamp(min=0).cpu().numpy(),
        loss_change=float(torch.cat(losses)[:-1].mean()),
        position=place,
        tokens=tokens.cpu().numpy(),
        before=before,
        after=after,
        logit_change=(logits[1] - logits[0])[tokens].cpu().numpy(),
    )


def check_heads(model: Shard, heads: Heads) -> dict[int, list[int]]:
    """Layer to heads. Raises MicroscopeError for a head that is not there, or for none at all."""
    config = model.config
    by_layer: dict[int, list[int]] = defaultdict(list)
    for layer, head in heads:
        if not (0 <= layer < config.n_layers and 0 <= head < config.n_heads):
            raise MicroscopeError(
                f"there is no head {head} in layer {layer}; this model has layers 0 to {config.n_layers - 1} "
                f"with heads 0 to {config.n_heads - 1}"
            )
        by_layer[layer].append(head)
    if not by_layer:
        raise MicroscopeError("no head was named; give at least one (layer, head)")
    return dict(by_layer)


@torch.no_grad()
def _means(model: Shard, by_layer: dict[int, list[int]], reference: Prompt) -> dict[int, Tensor]:
    """For each layer the mean output [head d_head] of the heads that are switched off."""
    ids = one_prompt(model, reference)
    means: dict[int, Tensor] = {}

    def average(z: Tensor, /, *, hook: HookPoint) -> None:
        means[hook.layer()] = z[0, :, by_layer[hook.layer()]].float().mean(dim=0)

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", average) for layer in by_layer]):
        model.residual(ids[None], stop_at_layer=max(by_layer) + 1)
    return means
