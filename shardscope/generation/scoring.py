"""Log-likelihoods of continuations. Every context passes through the model once, however many continuations it has.

A batch of contexts first shares what all of them begin with (the examples of a few-shot prompt, say), then each reads
its own rest, then its cache is copied for each of its continuations. Nothing is padded on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shardscope.generation.forward import UNSPLIT, Decoder, Packed
from shardscope.model import Prompt, PromptError, Prompts, Shard
from shardscope.model.prompts import is_one, token_rows

Ids = Sequence[int]

LOGITS_AT_ONCE = 2**25  # 128 MiB of float32


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
    space. Together they fit the model's context, the last token not counted: it is never read. Raises PromptError.
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


@torch.inference_mode()
def score_groups(
    model: Shard, groups: Sequence[tuple[Ids, Sequence[Ids]]], packed: Packed | None = None
) -> list[list[ContinuationScore]]:
    """For each of many contexts and its continuations (token ids, none empty) the score of every continuation.

    Context and continuation together fit the model's context, as for `score`; nothing is checked here. `packed` are
    the model's weights, packed before.
    """
    contexts = [list(context) for context, _ in groups]
    targets = [list(continuation) for _, continuations in groups for continuation in continuations]
    owner = [index for index, (_, continuations) in enumerate(groups) for _ in continuations]
    longest = max(len(contexts[of]) + len(target) - 1 for of, target in zip(owner, targets, strict=True))
    shared = _shared_prefix(contexts, UNSPLIT.get(model.device.type, 0))
    decoder = Decoder(model, 1 if shared else len(contexts), longest, packed)
    if shared:
        decoder.prefill([contexts[0][:shared]])
        decoder.keep([0] * len(contexts))
    found = _Sums(len(targets), model.device)
    logits = decoder.prefill([context[shared:] for context in contexts])
    first = torch.tensor([target[0] for target in targets], device=model.device)
    found.add(logits[torch.tensor(owner, device=model.device)], first, torch.arange(len(targets), device=model.device))

    longer = [row for row, target in enumerate(targets) if len(target) > 1]
    if longer:
        decoder.keep([owner[row] for row in longer])
        slice_size = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
        for piece in decoder.feed([targets[row][:-1] for row in longer]):
            # (place in the chunk, position in it) of everything that is no padding, with the token that follows it.
            at = [(index, pos) for index, count in enumerate(piece.counts) for pos in range(count)]
            follows = [targets[longer[piece.rows[index]]][piece.first + pos + 1] for index, pos in at]
            rows = [longer[piece.rows[index]] for index, _ in at]
            index, pos, next_token, row = torch.tensor(
                [[i, j, token, r] for (i, j), token, r in zip(at, follows, rows, strict=True)], device=model.device
            ).T
            for part in torch.arange(len(at), device=model.device).split(slice_size):
                hidden = piece.hidden[index[part], pos[part]]
                found.add(decoder.logits(hidden[:, None])[:, 0], next_token[part], row[part])
    scores = iter(found.scores())
    return [[next(scores) for _ in continuations] for _, continuations in groups]


class _Sums:
    """For every continuation the sum of its tokens' log-probabilities, and whether all of them were likeliest."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.logprob = torch.zeros(rows, dtype=torch.float64, device=device)
        self.misses = torch.zeros(rows, dtype=torch.int64, device=device)

    def add(self, logits: Float[Tensor, "n vocab"], token: Int[Tensor, "n"], row: Int[Tensor, "n"]) -> None:
        logprob = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(dim=-1)
        self.logprob.index_add_(0, row, logprob.double())
        self.misses.index_add_(0, row, (logits.argmax(dim=-1) != token).long())

    def scores(self) -> list[ContinuationScore]:
        pairs = zip(self.logprob.tolist(), self.misses.tolist(), strict=True)
        return [ContinuationScore(logprob, misses == 0) for logprob, misses in pairs]


def _shared_prefix(contexts: Sequence[list[int]], worth: int) -> int:
    """How many tokens all contexts begin with; each keeps at least one of its own.

    0 where reading them once saves fewer than `worth` tokens: their own call reads all weights, however few they are.
    """
    # What the first and the last in lexical order share, all between them share.
    differ = (at for at, (a, b) in enumerate(zip(min(contexts), max(contexts), strict=False)) if a != b)
    shortest = min(map(len, contexts))
    shared = min(next(differ, shortest), shortest - 1)
    return shared if shared * (len(contexts) - 1) >= max(worth, 1) else 0
