"""What a probe measures, against the microscope, TransformerLens, singular value decompositions and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from shardscope import Shard, ShardConfig
from shardscope.config import ConfigError
from shardscope.data import HoldoutBatch
from shardscope.microscope import head_scores, read
from shardscope.train.muon import as_matrix, split_parameters
from shardscope.train.probes import (
    TEXT_SCORES,
    check_lags,
    default_lags,
    induction,
    loss_by_position,
    measure_heads,
    position_edges,
    repeated_blocks,
)
from shardscope.train.sentinel import singular_values

COPY_TEXT = "K7QZ2M9XB4WJ" * 3


def test_head_scores_are_the_microscopes(tiny_model: Shard) -> None:
    ids = torch.arange(60) * 7 % 23
    found = measure_heads(tiny_model, [ids], [])
    assert tuple(found) == TEXT_SCORES
    for score in head_scores(read(tiny_model, ids)):
        for name in TEXT_SCORES:
            ours = found[name][score.layer, score.head].item()
            assert ours == pytest.approx(getattr(score, name), rel=1e-4, abs=1e-5), name


def test_scores_of_several_texts_are_their_mean(tiny_model: Shard) -> None:
    texts = [torch.arange(60) * step % 23 for step in (3, 7)]
    both = measure_heads(tiny_model, texts, [])
    alone = [measure_heads(tiny_model, [text], []) for text in texts]
    for name in TEXT_SCORES:
        torch.testing.assert_close(both[name], (alone[0][name] + alone[1][name]) / 2)


def test_scores_agree_with_transformer_lens_head_detector(trained_model: Shard) -> None:
    pytest.importorskip("transformer_lens")
    from transformer_lens.head_detector import detect_head

    from shardscope.interop import to_transformer_lens

    bridge = to_transformer_lens(trained_model)
    ids = bridge.to_tokens(COPY_TEXT)[0]
    found = measure_heads(trained_model, [ids], [])
    names = {"induction_head": "induction", "previous_token_head": "previous", "duplicate_token_head": "duplicate"}
    for theirs, ours in names.items():
        # Theirs is a mean over all queries, ours leaves out the first, which scores 0.
        detected = detect_head(bridge, COPY_TEXT, theirs).numpy() * len(ids) / (len(ids) - 1)
        np.testing.assert_allclose(found[ours].numpy(), detected, atol=1e-5)


def test_induction_at_a_lag_is_the_microscopes_over_the_queries_that_repeat(tiny_model: Shard) -> None:
    """With one pair of blocks and no token twice in a block, only those queries have an earlier occurrence."""
    blocks = repeated_blocks(lag=20, n_tokens=41, vocab_size=300, bos_id=0)
    ids = blocks.ids
    assert ids[1:21].tolist() == ids[21:41].tolist()
    assert len(set(ids.tolist())) == 21
    found = measure_heads(tiny_model, [], [blocks])["induction 20"]
    for score in head_scores(read(tiny_model, ids)):
        expected = score.induction * 40 / 20
        assert found[score.layer, score.head].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_sliding_head_scores_nothing_at_a_lag_past_its_window(tiny_model: Shard) -> None:
    both = [repeated_blocks(lag, 2 * lag + 1, 300, 0) for lag in (8, 9)]
    found = measure_heads(tiny_model, [], both)  # the window is 8: the key lies lag - 1 tokens back
    sliding = [layer for layer, kind in enumerate(tiny_model.config.layer_kinds) if kind == "sliding"]
    assert (found["induction 8"] > 0).all()
    assert (found["induction 9"][sliding] == 0).all()


@pytest.mark.parametrize(("lag", "n_tokens", "vocab"), [(8, 193, 300), (96, 193, 300), (96, 150, 30), (2, 7, 3)])
def test_every_second_block_repeats_the_one_before(lag: int, n_tokens: int, vocab: int) -> None:
    blocks = repeated_blocks(lag, n_tokens, vocab, bos_id=0)
    ids, queries = blocks.ids, blocks.copied
    assert len(ids) == n_tokens
    assert ids[0] == 0
    assert (ids[1:] > 0).all()
    assert int(ids.max()) < vocab
    assert queries.tolist() == [t for t in range(1, n_tokens) if (t - 1) % (2 * lag) >= lag]
    assert (ids[queries] == ids[queries - lag]).all()
    assert ids.equal(repeated_blocks(lag, n_tokens, vocab, bos_id=0).ids)


def test_a_head_that_does_it_perfectly_scores_one_and_one_that_does_not_scores_nothing() -> None:
    queries = repeated_blocks(16, 65, 300, bos_id=0).copied
    pattern = torch.zeros(1, 2, 65, 65)
    pattern[0, 0, queries, queries - 15] = 1
    pattern[0, 1, queries, queries - 16] = 1  # the duplicate itself, and not the token after it
    assert induction(pattern, queries, 16).tolist() == [1.0, 0.0]


def test_the_lags_reach_past_the_window_where_the_sequences_do() -> None:
    published = ShardConfig()
    assert default_lags(published, 2048) == (8, 512, 1024, 1536)
    assert default_lags(published, 256) == (8,)
    assert default_lags(ShardConfig(n_ctx=16, window=1), 4) == ()
    check_lags((384,), 512)
    with pytest.raises(ConfigError, match=r"probe\.lags: 385 is too far for data\.seq_len=512; use at most 384"):
        check_lags((8, 385), 512)


def test_singular_values_and_stable_ranks_are_those_of_a_decomposition(trained_model: Shard) -> None:
    matrices = {name: as_matrix(name, p.detach()).double() for name, p in split_parameters(trained_model)[0].items()}
    found = singular_values(trained_model)
    assert [value.name for value in found] == list(matrices)
    for value in found:
        exact = torch.linalg.svdvals(matrices[value.name])
        assert value.largest == pytest.approx(exact[0].item(), rel=1e-6)
        assert value.smallest == pytest.approx(exact[-1].item(), rel=1e-5, abs=1e-7 * exact[0].item())
        assert value.stable_rank == pytest.approx((exact.square().sum() / exact[0].square()).item(), rel=1e-6)


def test_the_loss_by_position_is_that_of_a_plain_loop(tiny_model: Shard) -> None:
    torch.manual_seed(1)
    batches = [
        HoldoutBatch(torch.randint(300, (rows, 49)), torch.randint(0, 3, (rows, 48)))  # a third is not scored
        for rows in (3, 2)
    ]
    edges = position_edges(48, tiny_model.config.window)
    assert edges == [0, 1, 2, 4, 8, 16, 32, 48]
    mean, by_bin = loss_by_position(tiny_model, batches, edges, torch.device("cpu"))
    nats: dict[int, list[float]] = {place: [] for place in range(len(edges) - 1)}
    with torch.no_grad():
        for batch in batches:
            for row, scored in zip(batch.tokens, batch.bytes, strict=True):
                logits = tiny_model(row[:-1])[0].double()
                for pos in range(48):
                    if scored[pos]:
                        place = max(i for i, edge in enumerate(edges) if edge <= pos)
                        nats[place].append(F.cross_entropy(logits[pos], row[pos + 1]).item())
    everything = [value for values in nats.values() for value in values]
    assert mean == pytest.approx(math.fsum(everything) / len(everything), rel=1e-5)
    assert by_bin == pytest.approx([sum(values) / len(values) for values in nats.values()], rel=1e-5)


def test_the_windows_edge_is_an_edge_of_the_positions() -> None:
    assert position_edges(100, 10) == [0, 1, 2, 4, 8, 10, 16, 32, 64, 100]
    assert position_edges(8, 10) == [0, 1, 2, 4, 8]
