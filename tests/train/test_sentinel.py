import torch

from shardscope.config import ShardConfig
from shardscope.model.shard import Shard
from shardscope.train.sentinel import report, singular_values


def small_model():
    torch.manual_seed(0)
    return Shard(ShardConfig(vocab_size=60, n_ctx=16, d_model=16, n_layers=2, n_heads=2, d_head=4, d_mlp=24, window=4))


def test_the_sentinel_sees_the_extreme_singular_values_of_every_muon_matrix():
    model = small_model()
    found = {s.name: s for s in singular_values(model)}
    assert len(found) == 14
    with torch.no_grad():
        W_V = model.blocks[1].attn.W_V
        values = torch.linalg.svdvals(torch.cat(list(W_V), dim=1).double())
    assert abs(found["blocks.1.attn.W_V"].largest - values[0]) < 1e-5
    assert abs(found["blocks.1.attn.W_V"].smallest - values[-1]) < 1e-5


def test_a_healthy_model_has_lost_no_rank():
    found = singular_values(small_model())
    assert not any(s.lost_rank for s in found)
    assert report(found).startswith("full rank; smallest ratio ")


def test_a_matrix_with_two_equal_rows_is_reported_as_rank_loss():
    model = small_model()
    with torch.no_grad():
        model.blocks[0].mlp.W_in[3] = model.blocks[0].mlp.W_in[5]
        model.blocks[1].mlp.W_out.zero_()
    lost = [s.name for s in singular_values(model) if s.lost_rank]
    assert lost == ["blocks.0.mlp.W_in", "blocks.1.mlp.W_out"]
    assert report(singular_values(model)).startswith("rank loss in 2 of 14 matrices: blocks.0.mlp.W_in (")


def test_a_matrix_that_is_not_finite_is_reported_too():
    model = small_model()
    with torch.no_grad():
        model.blocks[0].attn.W_K[0, 0, 0] = torch.nan
    assert [s.name for s in singular_values(model) if s.lost_rank] == ["blocks.0.attn.W_K"]
