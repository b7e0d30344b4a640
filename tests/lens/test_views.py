from __future__ import annotations

import numpy as np
import pytest
import torch

from shardscope import Shard
from shardscope.lens.views import (
    LayerAttention,
    ViewError,
    attention_view,
    head_map,
    query_row,
    read_layer,
    summarize_heads,
)

IDS = torch.arange(50) * 7 % 300


def dense_pattern(model: Shard, layer: int) -> torch.Tensor:
    """The pattern as the model's own hook writes it out, [head query key]."""
    name = f"blocks.{layer}.attn.hook_pattern"
    _, cache = model.run_with_cache(IDS[None], names_filter=name)
    return cache[name][0]


@pytest.mark.parametrize("layer", range(4))
def test_the_exact_map_is_the_pattern_of_the_models_own_hook(tiny_model: Shard, layer: int) -> None:
    for head in range(4):
        view = attention_view(tiny_model, IDS, layer, head)
        assert view.exact
        np.testing.assert_allclose(view.weights, dense_pattern(tiny_model, layer)[head].numpy(), atol=1e-6)


def test_a_view_tells_sliding_layers_from_global_ones(tiny_model: Shard) -> None:
    views = [attention_view(tiny_model, IDS, layer, 0) for layer in range(4)]
    assert [(view.kind, view.window) for view in views] == [
        ("sliding", 8),
        ("global", None),
        ("sliding", 8),
        ("global", None),
    ]


def test_the_window_edge_is_the_first_key_a_query_has_weight_on(tiny_model: Shard) -> None:
    view = attention_view(tiny_model, IDS, 2, 1)
    assert (view.weights > 0).argmax(axis=1).tolist() == view.edge().tolist()
    assert attention_view(tiny_model, IDS, 3, 1).edge() is None


@pytest.mark.parametrize("max_cells", [7, 10, 25, 49])
def test_a_pooled_map_holds_the_mass_of_the_exact_one(tiny_model: Shard, max_cells: int) -> None:
    exact = dense_pattern(tiny_model, 3)[2].numpy()
    view = attention_view(tiny_model, IDS, 3, 2, max_cells=max_cells)
    assert max(view.weights.shape) <= max_cells
    for query_cell, row in enumerate(view.weights):
        for key_cell, weight in enumerate(row):
            square = exact[
                query_cell * view.cell : (query_cell + 1) * view.cell, key_cell * view.cell : (key_cell + 1) * view.cell
            ]
            assert weight == pytest.approx(square.sum() / len(square), abs=1e-6)


def test_a_prompt_of_many_query_blocks_is_pooled_without_seams() -> None:
    torch.manual_seed(0)
    n_tokens = 1100
    attention = LayerAttention(0, 100, torch.randn(n_tokens, 1, 4), torch.randn(n_tokens, 1, 4))
    scores = (attention.q[:, 0] @ attention.k[:, 0].T) / 2
    visible = torch.ones(n_tokens, n_tokens).tril().triu(-99).bool()
    exact = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    # 1100 tokens in cells of 5, which a block of 256 queries does not divide.
    pooled = exact.reshape(220, 5, 220, 5).sum(dim=(1, 3)) / 5
    np.testing.assert_allclose(head_map(attention, 0, max_cells=220).weights, pooled.numpy(), atol=1e-5)


def test_a_row_is_what_one_query_reads(tiny_model: Shard) -> None:
    row = query_row(read_layer(tiny_model, IDS, 1), 3, 20)
    np.testing.assert_allclose(row, dense_pattern(tiny_model, 1)[3, 20].numpy(), atol=1e-6)


def test_head_numbers_are_those_of_the_dense_pattern(tiny_model: Shard) -> None:
    summaries = {(summary.layer, summary.head): summary for summary in summarize_heads(tiny_model, IDS)}
    assert len(summaries) == 16
    distance = torch.arange(50)[:, None] - torch.arange(50)
    for (layer, head), summary in summaries.items():
        pattern = dense_pattern(tiny_model, layer)[head]
        later = pattern[1:]
        assert summary.first_token == pytest.approx(later[:, 0].mean().item(), abs=1e-5)
        assert summary.previous_token == pytest.approx(pattern.diagonal(-1).mean().item(), abs=1e-5)
        assert summary.distance == pytest.approx((later * distance[1:]).sum(1).mean().item(), abs=1e-4)
        assert summary.past_window == pytest.approx(later[distance[1:] >= 8].sum().item() / 49, abs=1e-5)
        entropies = [torch.distributions.Categorical(row).entropy().item() / np.log(2) for row in later]
        assert summary.entropy == pytest.approx(np.mean(entropies), abs=1e-4)
        assert summary.thumbnail.sum() == pytest.approx(len(summary.thumbnail), abs=1e-4)


def test_a_sliding_head_has_exactly_nothing_past_its_window(tiny_model: Shard) -> None:
    past = {
        kind: [s.past_window for s in summarize_heads(tiny_model, IDS) if s.kind == kind]
        for kind in ("sliding", "global")
    }
    assert past["sliding"] == [0.0] * 8
    assert min(past["global"]) > 0


def test_equal_keys_share_the_attention_of_a_query_equally() -> None:
    attention = LayerAttention(0, None, torch.zeros(4, 1, 2), torch.zeros(4, 1, 2))
    view = head_map(attention, 0)
    np.testing.assert_allclose(view.weights[3], [0.25] * 4)
    np.testing.assert_allclose(view.weights[1], [0.5, 0.5, 0, 0])


def test_a_single_token_reads_itself(tiny_model: Shard) -> None:
    assert attention_view(tiny_model, IDS[:1], 0, 0).weights.tolist() == [[1.0]]
    assert {summary.first_token for summary in summarize_heads(tiny_model, IDS[:1])} == {1.0}


def test_a_view_reads_one_layer_and_leaves_no_hook_behind(tiny_model: Shard) -> None:
    ran = []
    for layer, block in enumerate(tiny_model.blocks):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    read_layer(tiny_model, IDS, 1)
    assert ran == [0, 1]
    assert not any(point.watched for point in tiny_model.hook_dict.values())


@pytest.mark.parametrize(
    ("ids", "layer", "head", "says"),
    [
        (IDS, 4, 0, "there is no layer 4; this model has layers 0 to 3"),
        (IDS, -1, 0, "there is no layer -1"),
        (IDS, 0, 4, "there is no head 4; layer 0 has heads 0 to 3"),
        (IDS[:0], 0, 0, "the prompt is empty"),
        (
            torch.zeros(65, dtype=torch.long),
            0,
            0,
            "65 tokens and this model's context holds 64; shorten it by at least 1 ",
        ),
    ],
)
def test_an_impossible_view_is_refused_in_one_sentence(
    tiny_model: Shard, ids: torch.Tensor, layer: int, head: int, says: str
) -> None:
    with pytest.raises(ViewError, match=says):
        attention_view(tiny_model, ids, layer, head)
