"""Scores with shared contexts against the plain uncached sum of log-probabilities."""

from __future__ import annotations

import pytest
import torch

from shardscope import Shard
from shardscope.generation import Decoder, Packed, score_groups
from shardscope.generation.scoring import Ids


def ids(length: int, seed: int) -> list[int]:
    return torch.randint(1, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def by_hand(model: Shard, context: Ids, continuation: Ids) -> tuple[float, bool]:
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *continuation][:-1]]))[0, len(context) - 1 :].double()
    expected = logits.log_softmax(dim=-1).gather(1, torch.tensor(continuation)[:, None]).sum()
    return float(expected), logits.argmax(dim=-1).tolist() == list(continuation)


def check(model: Shard, groups: list[tuple[Ids, list[Ids]]], packed: Packed | None = None) -> None:
    for (context, continuations), scores in zip(groups, score_groups(model, groups, packed), strict=True):
        for continuation, found in zip(continuations, scores, strict=True):
            logprob, greedy = by_hand(model, context, continuation)
            assert found.logprob == pytest.approx(logprob, abs=1e-4)
            assert found.greedy == greedy


def test_unequal_contexts_with_unequal_continuations_get_the_uncached_sums(tiny_model: Shard) -> None:
    groups = [(ids(n, n), [ids(k, 100 * n + k) for k in (1, 5, 12, 1)]) for n in (1, 30, 9, 17)]
    check(tiny_model, groups)
    check(tiny_model, [groups[1]], Packed(tiny_model))


def test_a_beginning_that_all_contexts_share_changes_nothing(tiny_model: Shard) -> None:
    few_shot = ids(25, 1)
    groups = [([*few_shot, *ids(n, n)], [ids(k, k + n) for k in (3, 2)]) for n in (1, 6, 14)]
    check(tiny_model, [(few_shot, [ids(3, 8)]), *groups])  # one of them has nothing of its own


def test_a_continuation_as_long_as_the_context_allows(tiny_model: Shard) -> None:
    n_ctx = tiny_model.config.n_ctx
    check(tiny_model, [([0], [ids(n_ctx, 5)]), (ids(n_ctx, 6), [ids(1, 7), ids(1, 8)])])


def test_what_the_model_would_have_said_is_greedy(tiny_model: Shard) -> None:
    context, said = ids(10, 3), []
    with torch.no_grad():
        for _ in range(6):
            said.append(int(tiny_model(torch.tensor([[*context, *said]]))[0, -1].argmax()))
    ((right, wrong),) = score_groups(tiny_model, [(context, [said, [*said[:-1], (said[-1] + 1) % 300]])])
    assert (right.greedy, wrong.greedy) == (True, False)


def test_a_context_is_computed_once_for_all_its_continuations(
    tiny_model: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = Decoder.hidden

    def counting(self: Decoder, tokens: torch.Tensor, counts: list[int], rows: list[int] | None = None) -> torch.Tensor:
        seen.append(sum(counts))
        return real(self, tokens, counts, rows)

    monkeypatch.setattr(Decoder, "hidden", counting)
    shared = ids(24, 1)
    score_groups(tiny_model, [([*shared, *ids(8, n)], [ids(4, k) for k in range(4)]) for n in (2, 3, 4)])
    # The shared beginning once, three rests of 8, twelve continuations of 4 whose last token is never read.
    assert sum(seen) == 24 + 3 * 8 + 12 * 3
    # A beginning so short is read with every context: a call of its own would cost more than it saves.
    seen.clear()
    score_groups(tiny_model, [([*shared[:5], *ids(8, n)], [ids(4, k) for k in range(4)]) for n in (2, 3, 4)])
    assert sum(seen) == 3 * (5 + 8) + 12 * 3
