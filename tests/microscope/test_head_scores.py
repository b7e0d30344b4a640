"""Head scores against the dense pattern, and against TransformerLens's head detector."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shardscope import Shard, ShardConfig
from shardscope.interop import to_transformer_lens
from shardscope.microscope import (
    SCORES,
    HeadScores,
    LayerReading,
    MicroscopeError,
    Reading,
    find_heads,
    head_scores,
    read,
)
from shardscope.microscope.heads import distance_edges
from shardscope.microscope.reading import BLOCK_ROWS
from shardscope.model import PromptError
from shardscope.tokenizer import Tokenizer

# Twelve characters that are a token each, over and over: what the model was trained to continue.
COPY_TEXT = "K7QZ2M9XB4WJ" * 3
CONFIG = ShardConfig(vocab_size=300, n_ctx=1024, d_model=8, n_layers=2, n_heads=2, d_head=16, d_mlp=8, window=203)


def reading_of(n: int, vocab: int) -> Reading:
    """Peaked random attention over `n` random tokens of a small vocabulary."""
    torch.manual_seed(n)
    layers = [
        LayerReading(layer, window, torch.randn(n, 2, 16), 2 * torch.randn(n, 2, 16))
        for layer, window in enumerate(CONFIG.windows)
    ]
    return Reading(CONFIG, torch.randint(vocab, (n,)), layers)


def pattern_of(layer: LayerReading, head: int) -> torch.Tensor:
    n = layer.n_tokens
    return torch.tensor(layer.tile(head, range(n), range(n))).double()


def test_heads_are_scored_over_a_prompt_of_any_kind_or_a_reading(tiny_model: Shard, tiny_tokenizer: Tokenizer) -> None:
    tiny_model.tokenizer = tiny_tokenizer
    text = "a clockmaker who counted"
    ids = tiny_model.to_tokens(text)
    expected = head_scores(read(tiny_model, text))
    for prompt in (text, ids[0].tolist(), tuple(ids[0].tolist()), ids[0], ids, ids.numpy()):
        for score, same in zip(head_scores(tiny_model, prompt), expected, strict=True):
            assert all(getattr(score, name) == getattr(same, name) for name in ("layer", "head", *SCORES))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (lambda model, reading: (model,), "lacks a prompt; use head_scores"),
        (lambda model, reading: (reading, "text"), "a reading has its prompt already"),
        (lambda model, reading: ("text",), "takes a model and a prompt, or a reading, not str"),
        (lambda model, reading: (model, torch.zeros(2, 3, dtype=torch.long)), "several prompts, and this looks at one"),
    ],
    ids=["no prompt", "two prompts", "no model", "several prompts"],
)
def test_what_cannot_be_scored_is_refused_in_one_sentence(tiny_model: Shard, arguments: Any, says: str) -> None:
    with pytest.raises((MicroscopeError, PromptError), match=says):
        head_scores(*arguments(tiny_model, reading_of(5, 4)))
    with pytest.raises(MicroscopeError, match="max_cells=0 leaves nothing to draw"):
        head_scores(reading_of(5, 4), max_cells=0)


@pytest.mark.parametrize(("n", "vocab"), [(700, 40), (700, 1), (300, 300), (61, 5), (2, 1)])
def test_scores_are_those_of_the_dense_pattern(n: int, vocab: int) -> None:
    reading = reading_of(n, vocab)
    distance = torch.arange(n)[:, None] - torch.arange(n)
    duplicate = (reading.ids[:, None] == reading.ids) & (distance > 0)
    after_duplicate = torch.zeros(n, n, dtype=torch.bool)
    after_duplicate[:, 1:] = duplicate[:, :-1]
    for score in head_scores(reading):
        pattern = pattern_of(reading.layers[score.layer], score.head)
        later = pattern[1:]  # the first query has nothing to choose
        entropies = torch.special.entr(later).sum(dim=1) / np.log(2)
        expected = {
            "entropy": entropies.mean().item(),
            "sink": later[:, 0].mean().item(),
            "previous": pattern.diagonal(-1).mean().item(),
            "duplicate": (pattern * duplicate).sum().item() / (n - 1),
            "induction": (pattern * after_duplicate).sum().item() / (n - 1),
            "reach": (pattern * (distance >= 203)).sum().item() / (n - 1),
            "distance": (pattern * distance).sum().item() / (n - 1),
        }
        assert expected.keys() == SCORES.keys()
        for name, value in expected.items():
            assert getattr(score, name) == pytest.approx(value, rel=1e-5, abs=1e-5), name
        by_bin = [
            (later * ((distance >= first) & (distance < stop))[1:]).sum().item() / (n - 1)
            for first, stop in zip(score.distance_edges, score.distance_edges[1:], strict=False)
        ]
        np.testing.assert_allclose(score.mass_by_distance, by_bin, atol=1e-5)


@pytest.mark.parametrize("n", [700, 65, 7])
def test_a_score_comes_with_the_map_of_its_head(n: int) -> None:
    reading = reading_of(n, 50)
    for cells in (32, 200):
        for score in head_scores(reading, max_cells=cells):
            expected = reading.layers[score.layer].pooled(score.head, cells)
            assert (score.map.queries, score.map.keys, score.map.cell) == (range(n), range(n), expected.cell)
            np.testing.assert_allclose(score.map.mean, expected.mean, atol=1e-7)
            np.testing.assert_allclose(score.map.max, expected.max, atol=1e-6)


def test_a_sliding_head_reaches_exactly_nothing_past_its_window(tiny_model: Shard) -> None:
    scores = head_scores(read(tiny_model, torch.arange(60) * 7 % 300))
    reach = {kind: [score.reach for score in scores if score.kind == kind] for kind in ("sliding", "global")}
    assert reach["sliding"] == [0.0] * 8
    assert min(reach["global"]) > 0
    for score in scores:
        past = score.mass_by_distance[score.distance_edges[:-1] >= 8]
        assert past.sum() == pytest.approx(score.reach)
        assert score.kind == "global" or (past == 0).all()


def test_scores_agree_with_transformer_lens_head_detector(trained_model: Shard) -> None:
    pytest.importorskip("transformer_lens")
    from transformer_lens.head_detector import detect_head

    bridge = to_transformer_lens(trained_model)
    ids = bridge.to_tokens(COPY_TEXT)[0]
    n, scores = len(ids), head_scores(read(trained_model, ids))
    for theirs, ours in (
        ("induction_head", "induction"),
        ("previous_token_head", "previous"),
        ("duplicate_token_head", "duplicate"),
    ):
        # Theirs is a mean over all queries, ours leaves out the first, which scores 0.
        detected = detect_head(bridge, COPY_TEXT, theirs).numpy() * n / (n - 1)
        by_head = np.array([getattr(score, ours) for score in scores]).reshape(4, 4)
        np.testing.assert_allclose(by_head, detected, atol=1e-5)
    assert find_heads(scores, "induction")[0].induction > 0.4, "the trained model has no induction head"


def test_induction_is_seen_at_any_lag() -> None:
    """A head that always reads the token after the last occurrence of its own, near or hundreds of tokens back."""
    n, lag = 600, 400
    ids = torch.arange(n) % lag
    key = torch.arange(n).clone()
    key[lag:] = torch.arange(lag, n) - lag + 1
    directions = torch.nn.functional.one_hot(torch.arange(n)).float()
    layer = LayerReading(0, None, 1000 * directions[key][:, None], directions[:, None])
    (score,) = head_scores(Reading(CONFIG, ids, [layer]))
    assert score.induction == pytest.approx((n - lag) / (n - 1), abs=1e-4)
    assert score.duplicate == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("n", "window", "edges"),
    [
        (10, 4, [0, 1, 2, 4, 8, 10]),
        (10, 6, [0, 1, 2, 4, 6, 8, 10]),
        (3, 1024, [0, 1, 2, 3]),
        (8, 8, [0, 1, 2, 4, 8]),
        (1, 8, [0, 1]),
        (1025, 1024, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1025]),
    ],
)
def test_distances_double_and_the_window_is_an_edge(n: int, window: int, edges: list[int]) -> None:
    assert distance_edges(n, window).tolist() == edges


def test_a_prompt_of_one_token_is_scored_by_the_query_it_has(tiny_model: Shard) -> None:
    for score in head_scores(read(tiny_model, torch.tensor([7]))):
        assert (score.sink, score.entropy, score.distance, score.induction) == (1.0, 0.0, 0.0, 0.0)
        assert score.mass_by_distance.tolist() == [1.0]


def test_the_size_of_a_block_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = reading_of(300, 40)
    whole = head_scores(reading)
    monkeypatch.setitem(BLOCK_ROWS, "cpu", 17)
    for score, again in zip(whole, head_scores(reading), strict=True):
        for name in SCORES:
            assert getattr(again, name) == pytest.approx(getattr(score, name), rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(again.map.mean, score.map.mean, atol=1e-7)


def test_scoring_reports_its_progress() -> None:
    told: list[float] = []
    head_scores(reading_of(61, 5), progress=lambda share, words: told.append(share))
    assert told == [0.5, 1.0]


@pytest.fixture(scope="module")
def scored() -> list[HeadScores]:
    return head_scores(reading_of(300, 40))


@pytest.mark.parametrize("by", SCORES)
def test_a_search_puts_the_largest_first(scored: list[HeadScores], by: str) -> None:
    found = [getattr(score, by) for score in find_heads(scored, by)]
    assert found == sorted((getattr(score, by) for score in scored), reverse=True)
    assert [getattr(score, by) for score in find_heads(scored, by, top=1)] == found[:1]
    assert {score.kind for score in find_heads(scored, by, kind="sliding")} == {"sliding"}


def test_a_search_that_cannot_be_made_is_refused(scored: list[HeadScores]) -> None:
    with pytest.raises(MicroscopeError, match="there is no score 'inductoin'; did you mean 'induction'"):
        find_heads(scored, "inductoin")
    with pytest.raises(MicroscopeError, match="top=0 finds nothing"):
        find_heads(scored, top=0)
