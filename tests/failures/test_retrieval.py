"""A planted retrieval head is found at any distance, and what lies past the window is out of a cut model's reach."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import planted
import pytest
import torch
from planted import induction_model
from torch.nn import functional as F

from shardscope import Shard, ShardConfig
from shardscope.cli import main
from shardscope.failures.held_out import held_out_ids, windows
from shardscope.failures.retrieval import RetrievalError, cut_to_window, long_context, loss_by_position

WINDOW = planted.CONFIG.window


def test_a_planted_head_retrieves_at_any_distance_and_a_cut_model_within_the_window() -> None:
    model = induction_model((0, 1), (1, 2))
    found = long_context(model, distances=[16, WINDOW - 1, WINDOW, 500], samples=6)
    assert [recall.recalled for recall in found.whole] == [1, 1, 1, 1]
    assert [recall.recalled for recall in found.cut] == [1, 1, 0, 0]
    assert all(recall.lift > 3 for recall in found.whole)
    assert [recall.lift > 1 for recall in found.cut] == [True, True, False, False]
    assert (found.reach, found.reach_cut) == (500, WINDOW - 1)
    lost = {head.name: head.lift_lost for head in found.heads}
    assert list(lost) == ["L1H0", "L1H1", "L1H2", "L1H3"]  # the global layer's
    assert min(lost["L1H2"]) > 3
    assert max(abs(change) for name in lost if name != "L1H2" for change in lost[name]) < 0.2
    assert [head.recalled for head in found.heads if head.name == "L1H2"] == [[0, 0, 0, 0]]


def test_a_model_that_copies_nothing_has_no_reach() -> None:
    found = long_context(planted.blank(), distances=[16, 128], samples=6, heads=False)
    assert (found.reach, found.reach_cut, found.heads) == (0, 0, [])


def test_distances_go_up_to_the_context() -> None:
    found = long_context(planted.blank(), samples=1, heads=False)
    assert [recall.distance for recall in found.whole] == [64, 128, 256, 508]
    assert json.loads(json.dumps(found.to_dict()))["reach"] == 0


def test_a_cut_model_is_one_whose_layers_all_slide(tiny_model: Shard) -> None:
    tokens = torch.randint(300, (1, 40))
    local = Shard(ShardConfig(**{**tiny_model.config.to_dict(), "window": 8}))
    local.load_state_dict(tiny_model.state_dict())
    before = [block.attn.window for block in tiny_model.blocks]
    with cut_to_window(tiny_model):
        cut = tiny_model(tokens)
        # A token past all layers' windows is out of reach, through any number of hops.
        tokens[0, 0] = (tokens[0, 0] + 1) % 300
        hops = tiny_model.config.n_layers * (tiny_model.config.window - 1)
        changed = (tiny_model(tokens) - cut).abs().amax(dim=-1)[0]
    assert [block.attn.window for block in tiny_model.blocks] == before != [8, 8, 8, 8]
    assert changed[: hops + 1].max() > 0
    assert changed[hops + 1 :].max() == 0


def test_losses_by_position_are_means_over_their_range(tiny_model: Shard) -> None:
    losses = loss_by_position(tiny_model, count=2)
    assert [(part.first, part.last) for part in losses] == [(0, 31), (32, 62)]
    tokens = windows(held_out_ids(tiny_model), 2, 64)
    each = F.cross_entropy(tiny_model(tokens[:, :-1]).detach().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    np.testing.assert_allclose(losses[1].whole, each.view(2, 63)[:, 32:].mean(), rtol=1e-4)
    assert losses[1].cut != losses[1].whole


@pytest.mark.parametrize("distance", [1, 509])
def test_a_distance_that_does_not_fit_is_refused(distance: int) -> None:
    with pytest.raises(RetrievalError, match=f"a fact {distance} tokens back .* has room for 8 to 508"):
        long_context(planted.blank(), distances=[distance])


def test_the_command_prints_a_table_or_writes_the_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["longcontext", "--device", "cpu", "--samples", "2", "--distance", "64", "--no-heads"]
    assert main([*words, "--json", str(tmp_path / "reach.json")]) == 0
    found = json.loads((tmp_path / "reach.json").read_text())
    assert found["whole"][0]["distance"] == 64
    assert found["whole"][0]["chosen"] > found["chance"]  # the built-in model can do this much
    assert main([*words, "--distance", "9999"]) == 1
    assert "a fact 9999 tokens back cannot be asked for" in capsys.readouterr().err
