"""Scores with shared contexts against the plain uncached sum of log-probabilities."""

from __future__ import annotations

from math import fsum

import pytest
import torch

from shardscope import Shard
from shardscope.generation import Packed, score_groups, scoring
from shardscope.generation.scoring import Ids
from shardscope.generation.tree import Tree


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
            assert found.logprob == pytest.approx(logprob, rel=1e-5, abs=1e-5 * len(continuation))
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


def test_what_texts_begin_with_alike_is_computed_once(tiny_model: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = scoring.tree_hidden

    def counting(packed: Packed, tree: Tree, device: torch.device) -> torch.Tensor:
        seen.append(len(tree.tokens))
        return real(packed, tree, device)

    monkeypatch.setattr(scoring, "tree_hidden", counting)
    shared = ids(24, 1)
    groups = [([*shared, *ids(8, n)], [[n, *ids(4, k)] for k in range(4)]) for n in (2, 3, 4)]
    score_groups(tiny_model, groups)
    # The beginning, three rests of 8, each one's first token n, twelve ends of 4 whose last token is never read.
    assert seen == [24 + 3 * (8 + 1 + 4 * 3)]
    score_groups(tiny_model, groups * 5)
    assert seen[1] == seen[0]


def texts_of_all_lengths() -> list[tuple[Ids, list[Ids]]]:
    """Contexts that share a beginning or do not, shorter and longer than a block, and continuations of any length."""
    shared = ids(30, 1)
    alone = [(ids(n, n), [ids(k, 50 * n + k) for k in (1, 1, 4, 9, 2)]) for n in (1, 2, 7, 31, 32, 33, 40, 55)]
    few_shot = [([*shared, *ids(n, n + 9)], [ids(k, n + k) for k in (3, 1, 12)]) for n in (1, 2, 3, 14)]
    return [*alone, *few_shot, (shared, [ids(34, 3), ids(34, 3), ids(2, 4)])]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_equal_requests_get_equal_numbers_whatever_the_batch(tiny_model: Shard, threads: int) -> None:
    groups, packed, before = texts_of_all_lengths(), Packed(tiny_model), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        alone = [
            [score_groups(tiny_model, [(context, [each])], packed)[0][0] for each in own] for context, own in groups
        ]
        for batch in (3, len(groups)):
            cuts = range(0, len(groups), batch)
            together = [
                scores for first in cuts for scores in score_groups(tiny_model, groups[first : first + batch], packed)
            ]
            assert together == alone  # to the last bit
        assert score_groups(tiny_model, groups[::-1], packed)[::-1] == alone
    finally:
        torch.set_num_threads(before)


def test_a_texts_number_does_not_depend_on_where_it_is_cut_into_context_and_continuation(tiny_model: Shard) -> None:
    """Each token's log-probability is one number, so that of two tokens is the sum of theirs, exactly."""
    text = ids(60, 2)
    one_by_one = [score_groups(tiny_model, [(text[:at], [[text[at]]])])[0][0].logprob for at in range(1, 60)]
    for cut in (1, 17, 32, 58):
        assert score_groups(tiny_model, [(text[:cut], [text[cut:]])])[0][0].logprob == fsum(one_by_one[cut - 1 :])


def test_under_hooks_a_text_is_scored_as_an_uncached_call_scores_it(tiny_model: Shard) -> None:
    groups = texts_of_all_lengths()[:3]
    untouched = score_groups(tiny_model, groups)

    def ablate(z: torch.Tensor, hook: object) -> torch.Tensor:
        assert z.shape[0] == 1
        z = z.clone()
        z[:, 3:, 2] = 0  # by position: no hook sees a part of a text
        return z

    with tiny_model.hooks([("blocks.1.attn.hook_z", ablate)]):
        check(tiny_model, groups)
        assert score_groups(tiny_model, groups) != untouched
    assert score_groups(tiny_model, groups) == untouched
