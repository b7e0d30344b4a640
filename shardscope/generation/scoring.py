"""Log-likelihoods of continuations: of equal requests equal numbers, whatever else they are asked with."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import NamedTuple, overload

import numpy as np
import torch

from shardscope.generation.forward import Packed
from shardscope.generation.sampling import check_finite
from shardscope.generation.tree import Tree, in_tiles, tree_hidden
from shardscope.model import Prompt, PromptError, Prompts, Shard
from shardscope.model.prompts import is_one, token_rows

Ids = Sequence[int]


class ContinuationScore(NamedTuple):
    """`logprob`: ln p(continuation | context), in nats. `greedy`: every token was the likeliest one."""

    logprob: float
    greedy: bool


@overload
def score(model: Shard, context: Prompt, continuations: str | Sequence[int]) -> float: ...  # type: ignore[overload-overlap]
@overload
def score(model: Shard, context: Prompt, continuations: Sequence[Prompt]) -> list[float]: ...
def score(model: Shard, context: Prompt, continuations: Prompts) -> float | list[float]:
    """ln p(continuation | context) in nats, of one continuation or of each of several.

    A context's text begins with `<|endoftext|>`; a continuation's is tokenized by itself, so it usually begins with a
    space. Together they fit the model's context, the last token not counted: it is never read. Raises PromptError, or
    NotFiniteError for a model whose logits are not finite.
    """
    if not is_one(context):
        raise PromptError("several contexts came, and each continuation follows one; call score once for each")
    [ids] = token_rows(model, context, what="context")
    rows = token_rows(model, continuations, prepend_bos=False, what="continuation")
    room = model.config.n_ctx + 1 - len(ids)
    for number, row in enumerate(rows):
        if len(row) > room:
            raise PromptError(
                f"continuation {number} has {len(row)} tokens, and after a context of {len(ids)} this model's "
                f"{model.config.n_ctx} hold {room}; shorten one of them"
            )
    [found] = score_groups(model, [(ids, rows)])
    logprobs = [continuation.logprob for continuation in found]
    return logprobs[0] if is_one(continuations) else logprobs


def score_groups(
    model: Shard, groups: Sequence[tuple[Ids, Sequence[Ids]]], packed: Packed | None = None
) -> list[list[ContinuationScore]]:
    """For each context and its continuations (token ids, none empty) a score for each continuation.

    Context and continuation together fit the model's context, the last token not counted: it is never read. What texts
    begin with alike is computed once. `packed` are the model's weights, packed before. While hooks are attached, each
    text passes through the model by itself, so that they see what they see in an uncached call.
    """
    pairs = [(tuple(context), tuple(continuation)) for context, own in groups for continuation in own]
    found = _watched_scores(model, pairs) if model.watched else _tree_scores(packed or Packed(model), model, pairs)
    check_finite([score.logprob for score in found])
    scores = iter(found)
    return [[next(scores) for _ in continuations] for _, continuations in groups]


def _watched_scores(model: Shard, pairs: Sequence[tuple[Ids, Ids]]) -> list[ContinuationScore]:
    found: dict[tuple[Ids, Ids], ContinuationScore] = {}
    for context, continuation in pairs:
        if (context, continuation) in found:
            continue
        with torch.no_grad():
            logits = model(torch.tensor([[*context, *continuation[:-1]]], device=model.device))
            logits = logits[0, len(context) - 1 :].float()
            target = torch.tensor(continuation, device=model.device)
            logprobs = logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(dim=-1)
            greedy = bool((logits.argmax(dim=-1) == target).all())
        found[context, continuation] = ContinuationScore(fsum(logprobs.tolist()), greedy)
    return [found[pair] for pair in pairs]


@torch.inference_mode()
def _tree_scores(packed: Packed, model: Shard, pairs: Sequence[tuple[Ids, Ids]]) -> list[ContinuationScore]:
    tree = Tree.of([(*context, *continuation[:-1]) for context, continuation in pairs])
    hidden = tree_hidden(packed, tree, model.device)
    # The nodes that are asked what comes next, and for every question its node's row among them and the token.
    asked = [path[len(context) - 1 :] for path, (context, _) in zip(tree.paths, pairs, strict=True)]
    nodes, rows = np.unique(np.concatenate(asked), return_inverse=True)
    tokens = np.concatenate([np.asarray(continuation) for _, continuation in pairs])
    row, token = (torch.from_numpy(of_questions).to(model.device) for of_questions in (rows, tokens))
    chosen = torch.empty(len(rows), device=model.device)
    likeliest = torch.empty(len(rows), dtype=torch.bool, device=model.device)
    tiles = in_tiles(hidden[torch.from_numpy(nodes).to(model.device)])
    for number, tile in enumerate(tiles.split(1)):
        logits = packed.logits(tile)[0]
        here = (row // tile.shape[1] == number).nonzero()[:, 0]
        at = row[here] % tile.shape[1]
        chosen[here] = logits[at, token[here]] - logits.logsumexp(dim=-1)[at]
        likeliest[here] = logits.argmax(dim=-1)[at] == token[here]
    ends = np.cumsum([len(continuation) for _, continuation in pairs])[:-1]
    sums = [fsum(part.tolist()) for part in np.split(chosen.cpu().numpy(), ends)]
    greedy = [bool(part.all()) for part in np.split(likeliest.cpu().numpy(), ends)]
    return [ContinuationScore(*answer) for answer in zip(sums, greedy, strict=True)]
