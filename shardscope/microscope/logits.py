"""What the residual stream says about the next token: the logit lens, and who wrote a logit.

Axes: layer, pos, head, d_head, d_model, vocab; `top` counts the likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from shardscope.microscope.forward import attend_in_bands
from shardscope.microscope.reading import Ids, MicroscopeError, check_finite_activations
from shardscope.model import HookPoint, Prompt, Shard
from shardscope.model.prompts import check_ids, one_prompt

LENS_ROWS = 512  # positions unembedded at once: 512 × 8192 logits are 16 MiB


@dataclass(frozen=True, eq=False)
class LogitLens:
    """What each layer would predict if it were the last (nostalgebraist 2020): final norm, tied unembedding, cap.

    Row 0 is the embedding, row l + 1 the residual stream after block l; the last row is the model's own prediction.
    """

    positions: tuple[int, ...]
    tokens: Int[np.ndarray, "layer pos top"]  # the likeliest next tokens, likeliest first
    probabilities: Float[np.ndarray, "layer pos top"]
    entropy: Float[np.ndarray, "layer pos"]  # bits
    next_rank: Int[np.ndarray, "layer pos"]  # 0: the token that really follows is the likeliest; -1: none follows
    next_probability: Float[np.ndarray, "layer pos"]  # of the token that follows; nan where none does


@dataclass(frozen=True, eq=False)
class Attribution:
    """Who wrote the logit of `token` (less that of `against`, if any) at `position`, before the cap.

    Each part of the residual stream is divided by the final norm's scale as it was and read out alone, so `embed`, all
    `heads` and all `mlps` add up to `logit` (direct logit attribution, Elhage et al. 2021).
    """

    position: int
    token: int
    against: int | None
    embed: float
    heads: Float[np.ndarray, "layer head"]
    mlps: Float[np.ndarray, "layer"]
    logit: float

    def largest(self, top: int = 10) -> list[tuple[str, float]]:
        """(name, contribution) of the parts that weigh most, in either direction: 'embed', 'L3H5', 'MLP 3'."""
        parts = [("embed", self.embed)]
        parts += [(f"L{layer}H{head}", float(x)) for (layer, head), x in np.ndenumerate(self.heads)]
        parts += [(f"MLP {layer}", float(x)) for layer, x in enumerate(self.mlps)]
        return sorted(parts, key=lambda part: -abs(part[1]))[:top]


@dataclass(frozen=True, eq=False)
class Residuals:
    """The residual stream after the embedding and after every block, at some positions, to be read out again and again.

    All positions of 8192 tokens of shard-54m are 218 MB in float32, where a pass over them takes many seconds.
    """

    model: Shard
    ids: Ids
    positions: tuple[int, ...]
    x: Float[Tensor, "layer position d_model"]

    @torch.no_grad()
    def lens(self, positions: Sequence[int] | None = None, top: int = 5) -> LogitLens:
        """Every layer at `positions` (None: all of `self.positions`), read as the last is. Raises MicroscopeError."""
        model = self.model
        if not 1 <= top <= model.config.vocab_size:
            raise MicroscopeError(f"top={top} tokens cannot be shown; use 1 to {model.config.vocab_size}")
        row_of = {position: row for row, position in enumerate(self.positions)}
        places = self.positions if positions is None else [check_position(self.ids, place) for place in positions]
        if missing := [place for place in places if place not in row_of]:
            raise MicroscopeError(
                f"position {missing[0]} was not recorded; name it in residuals(model, ids, positions)"
            )
        rows = torch.tensor([row_of[place] for place in places], dtype=torch.long, device=self.x.device)
        following = torch.cat([self.ids[1:], self.ids.new_full((1,), -1)])
        tokens = following[torch.tensor(places, dtype=torch.long, device=self.x.device)]
        layers = []
        for x in self.x:
            pieces = zip(x[rows].split(LENS_ROWS), tokens.split(LENS_ROWS), strict=True)
            parts = [_read_out(model, piece, token, top) for piece, token in pieces]
            check_finite_activations(*(entropy for _, _, entropy, _, _ in parts))
            layers.append([torch.cat(column) for column in zip(*parts, strict=True)])
        return LogitLens(tuple(places), *(torch.stack(column).cpu().numpy() for column in zip(*layers, strict=True)))


@torch.no_grad()
def residuals(model: Shard, prompt: Prompt, positions: Sequence[int] | None = None) -> Residuals:
    """One pass over a prompt that records the residual stream at `positions` (None: all).

    Raises PromptError, or MicroscopeError for a position that the prompt lacks.
    """
    ids = one_prompt(model, prompt)
    places = list(range(len(ids))) if positions is None else [check_position(ids, place) for place in positions]
    index = torch.tensor(places, dtype=torch.long, device=model.device)
    recorded: list[Tensor] = []

    def record(activation: Tensor, /, *, hook: HookPoint) -> None:
        recorded.append(activation[0, index])

    names = ["hook_embed", *(f"blocks.{layer}.hook_resid_post" for layer in range(model.config.n_layers))]
    with model.hooks(fwd_hooks=[(name, record) for name in names]):
        x = model.hook_embed(model.embed(ids[None]))
        for block in model.blocks:
            x = block(x, attend=attend_in_bands)
    check_finite_activations(*recorded[-1:])
    return Residuals(model, ids, tuple(places), torch.stack(recorded))


def logit_lens(model: Shard, prompt: Prompt, positions: Sequence[int] | None = None, top: int = 5) -> LogitLens:
    """Read every layer at `positions` (None: all) as the last layer is read. Raises as `residuals` does."""
    return residuals(model, prompt, positions).lens(top=top)


@torch.no_grad()
def attribution(
    model: Shard,
    prompt: Prompt,
    position: int = -1,
    token: int | str | None = None,
    against: int | str | None = None,
) -> Attribution:
    """Who wrote the logit of `token` (None: the likeliest) as the one after `position`; -1 is the last position.

    With `against` the logit difference of the two: why this token, not that one. Either may be a text of one token.
    Raises PromptError, or MicroscopeError for a position that the prompt lacks.
    """
    ids = one_prompt(model, prompt)
    position = check_position(ids, position)
    token, against = (
        model.to_single_token(chosen) if isinstance(chosen, str) else chosen for chosen in (token, against)
    )
    check_ids(model, [chosen for chosen in (token, against) if chosen is not None])
    config = model.config
    held: dict[str, Tensor] = {}

    def record(activation: Tensor, /, *, hook: HookPoint) -> None:
        held[hook.name] = activation[0, -1].float()

    names = ["hook_embed", "ln_final.hook_scale"]
    names += [f"blocks.{layer}.{part}" for layer in range(config.n_layers) for part in ("attn.hook_z", "hook_mlp_out")]
    # Nothing after the position can matter to it.
    with model.hooks(fwd_hooks=[(name, record) for name in names]):
        hidden = model.hidden(ids[None, : position + 1])
    check_finite_activations(hidden)
    if token is None:
        token = int(model.unembed(hidden[:, -1:])[0, 0].argmax())
    direction = model.embed.W_E[token].float()
    if against is not None:
        direction = direction - model.embed.W_E[against].float()
    readout = direction * model.ln_final.w.float() / held["ln_final.hook_scale"]
    W_O = torch.stack([block.attn.W_O for block in model.blocks]).float()
    z = torch.stack([held[f"blocks.{layer}.attn.hook_z"] for layer in range(config.n_layers)])
    mlps = torch.stack([held[f"blocks.{layer}.hook_mlp_out"] for layer in range(config.n_layers)])
    written = einsum(W_O, readout, "layer head d_head d_model, d_model -> layer head d_head")
    heads = einsum(z, written, "layer head d_head, layer head d_head -> layer head")
    check_finite_activations(heads, mlps @ readout)
    return Attribution(
        position=position,
        token=token,
        against=against,
        embed=float(held["hook_embed"] @ readout),
        heads=heads.cpu().numpy(),
        mlps=(mlps @ readout).cpu().numpy(),
        logit=float(hidden[0, -1].float() @ direction),
    )


def check_position(ids: Ids, position: int) -> int:
    """The position, counted from the start. Raises MicroscopeError unless the prompt has it."""
    if not -len(ids) <= position < len(ids):
        raise MicroscopeError(f"there is no token {position}; this prompt has tokens 0 to {len(ids) - 1}")
    return position % len(ids)


def _read_out(
    model: Shard, x: Float[Tensor, "pos d_model"], following: Int[Tensor, "pos"], top: int
) -> tuple[Tensor, ...]:
    log_probs = model.unembed(model.ln_final(x[None]))[0].log_softmax(dim=-1)
    best = log_probs.topk(top, dim=-1)
    entropy = torch.special.entr(log_probs.exp()).sum(dim=-1) / np.log(2)
    found = log_probs.gather(1, following.clamp(min=0)[:, None])
    rank = torch.where(following >= 0, (log_probs > found).sum(dim=-1), -1)
    probability = torch.where(following >= 0, found[:, 0].exp(), torch.nan)
    return best.indices, best.values.exp(), entropy, rank, probability
