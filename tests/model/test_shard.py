from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from einops import rearrange
from rounding import A_LOGIT

from shardscope import Shard, ShardConfig, score
from shardscope.config import InitConfig
from shardscope.generation import Decoder, SamplingConfig
from shardscope.generation.graphs import graph_steps
from shardscope.generation.sampling import Sampler
from shardscope.microscope import residuals
from shardscope.model.attention import attention_scores, banded_attention, fused_attention, visible_keys
from shardscope.model.shard import MLP


def as_vaultgemma(model: Shard) -> torch.nn.Module:
    """The same weights in transformers' own VaultGemma: an implementation that none of us wrote."""
    from transformers import VaultGemmaConfig, VaultGemmaForCausalLM

    c = model.config
    config = VaultGemmaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.d_mlp,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_heads,
        head_dim=c.d_head,
        hidden_activation="silu",
        max_position_embeddings=c.n_ctx,
        rms_norm_eps=c.norm_eps,
        query_pre_attn_scalar=c.d_head,
        sliding_window=c.window,
        layer_types=["sliding_attention" if kind == "sliding" else "full_attention" for kind in c.layer_kinds],
        final_logit_softcapping=c.logit_cap,
        attn_logit_softcapping=None,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
        attn_implementation="eager",
    )
    peer = VaultGemmaForCausalLM(config).eval()
    weights = {
        "model.embed_tokens.weight": model.embed.W_E / c.d_model**0.5,
        "lm_head.weight": model.embed.W_E,
        "model.norm.weight": model.ln_final.w - 1,
    }
    for layer, block in enumerate(model.blocks):
        at = f"model.layers.{layer}."
        for ours, theirs in (("W_Q", "q_proj"), ("W_K", "k_proj"), ("W_V", "v_proj")):
            weights[f"{at}self_attn.{theirs}.weight"] = rearrange(getattr(block.attn, ours), "h m d -> (h d) m")
        weights[f"{at}self_attn.o_proj.weight"] = rearrange(block.attn.W_O, "h d m -> m (h d)")
        weights[f"{at}mlp.gate_proj.weight"] = block.mlp.W_gate.T
        weights[f"{at}mlp.up_proj.weight"] = block.mlp.W_in.T
        weights[f"{at}mlp.down_proj.weight"] = block.mlp.W_out.T
        weights[f"{at}input_layernorm.weight"] = block.ln1.w - 1
        weights[f"{at}pre_feedforward_layernorm.weight"] = block.ln2.w - 1
    peer.load_state_dict(weights)
    return peer


def test_the_published_model_has_exactly_54538752_parameters() -> None:
    config = ShardConfig.preset("shard-54m")
    with torch.device("meta"):
        model = Shard(config)
    assert model.n_params == config.n_params == 54_538_752
    assert config.layer_kinds == ("sliding", "global") * 6


@pytest.mark.parametrize("pos", [5, 8, 9, 40, 64])
def test_logits_agree_with_an_independent_implementation(tiny_model: Shard, pos: int) -> None:
    ids = torch.randint(0, 300, (2, pos), generator=torch.Generator().manual_seed(pos))
    with torch.no_grad():
        ours, theirs = tiny_model(ids), as_vaultgemma(tiny_model)(ids).logits
    assert ours.std() > 0.5, "logits this flat would agree whatever the attention did"
    torch.testing.assert_close(ours, theirs, atol=A_LOGIT, rtol=1e-5)


def test_the_full_size_model_agrees_with_an_independent_implementation_past_the_window() -> None:
    torch.manual_seed(0)
    model = Shard(ShardConfig.preset("shard-54m", n_ctx=1100)).eval()
    ids = torch.randint(0, 8192, (1, 1100))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), as_vaultgemma(model)(ids).logits, atol=A_LOGIT, rtol=1e-5)


def as_qwen3(model: Shard) -> torch.nn.Module:
    """The same weights in transformers' Qwen3, which normalises queries and keys, and has no cap on its logits."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    c = model.config
    config = Qwen3Config(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.d_mlp,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_heads,
        head_dim=c.d_head,
        max_position_embeddings=c.n_ctx,
        rms_norm_eps=c.norm_eps,
        use_sliding_window=True,
        sliding_window=c.window,
        layer_types=["sliding_attention" if kind == "sliding" else "full_attention" for kind in c.layer_kinds],
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    peer = Qwen3ForCausalLM(config).eval()
    weights = {"model.embed_tokens.weight": model.embed.W_E, "model.norm.weight": model.ln_final.w}
    for layer, block in enumerate(model.blocks):
        at = f"model.layers.{layer}."
        for ours, theirs in (("W_Q", "q_proj"), ("W_K", "k_proj"), ("W_V", "v_proj")):
            weights[f"{at}self_attn.{theirs}.weight"] = rearrange(getattr(block.attn, ours), "h m d -> (h d) m")
        weights[f"{at}self_attn.o_proj.weight"] = rearrange(block.attn.W_O, "h d m -> m (h d)")
        for name in ("q_norm", "k_norm"):
            weights[f"{at}self_attn.{name}.weight"] = torch.full((c.d_head,), c.qk_gain)
        weights[f"{at}mlp.gate_proj.weight"] = block.mlp.W_gate.T
        weights[f"{at}mlp.up_proj.weight"] = block.mlp.W_in.T
        weights[f"{at}mlp.down_proj.weight"] = block.mlp.W_out.T
        weights[f"{at}input_layernorm.weight"] = block.ln1.w
        weights[f"{at}post_attention_layernorm.weight"] = block.ln2.w
    peer.load_state_dict(weights, strict=False)
    return peer


@pytest.mark.parametrize("gain", [1.0, 1.2])
def test_normalised_queries_and_keys_are_those_of_an_independent_implementation(tiny_model: Shard, gain: float) -> None:
    model = Shard.of_weights(
        replace(tiny_model.config, qk_norm=True, qk_gain=gain), tiny_model.state_dict(), torch.float32
    )
    ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = 30 * torch.tanh(as_qwen3(model)(ids).logits / 30)
        torch.testing.assert_close(model(ids), theirs, atol=A_LOGIT, rtol=1e-5)
        assert (model(ids) - tiny_model(ids)).abs().max() > 0.1, "normalising must matter here"


def test_zero_initialised_outputs_make_every_block_the_identity(tiny_config: ShardConfig) -> None:
    model = Shard(tiny_config, init=InitConfig(output="zero", embedding=0.05))
    x = torch.randn(1, 9, tiny_config.d_model)
    with torch.no_grad():
        assert all(torch.equal(block(x), x) for block in model.blocks)
    assert model.embed.W_E.std().item() == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("layer", range(4))
def test_a_sliding_layer_sees_exactly_its_window_and_a_global_layer_everything(tiny_model: Shard, layer: int) -> None:
    """Perturb one token's residual; only positions that see it may change, and all of those must."""
    block, window = tiny_model.blocks[layer], tiny_model.config.windows[layer]
    x = torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(1))
    perturbed = x.clone()
    perturbed[0, 11] += 1.0
    with torch.no_grad():
        changed = (block(x) != block(perturbed)).any(dim=-1)[0]
    last = 39 if window is None else 11 + window - 1
    assert changed.nonzero().flatten().tolist() == list(range(11, last + 1))


def test_each_query_of_a_sliding_layer_sees_window_keys_its_own_included() -> None:
    seen = visible_keys(32, window=8).sum(dim=-1).flatten()
    assert seen.tolist() == [min(pos + 1, 8) for pos in range(32)]


@pytest.mark.parametrize("window", [1, 3, 8, 40, 41, 100, None])
@pytest.mark.parametrize("documents", [False, True])
def test_fused_and_explicit_attention_agree(window: int | None, documents: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 41, 3, 8) * 2 for _ in range(3))
    starts = torch.tensor([[0] * 7 + [7] * 20 + [27] * 14, [0] * 41]) if documents else None
    pattern = attention_scores(q, k, window, starts).softmax(dim=-1)
    explicit = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
    torch.testing.assert_close(fused_attention(q, k, v, window, starts), explicit, atol=1e-5, rtol=1e-5)


def test_banded_attention_has_the_gradients_of_the_explicit_one() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 21, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    banded = torch.autograd.grad(banded_attention(q, k, v, 5).pow(2).sum(), (q, k, v))
    pattern = attention_scores(q, k, 5).softmax(dim=-1)
    explicit = torch.autograd.grad(torch.einsum("bhqk,bkhd->bqhd", pattern, v).pow(2).sum(), (q, k, v))
    for ours, theirs in zip(banded, explicit, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_change_of_the_block_is_a_change_of_training_decoding_scoring_and_the_microscope(
    tiny_model: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one block: another activation function, put into it, is found by everything that runs the model."""
    ids = torch.randint(1, 300, (1, 30), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = tiny_model(ids)[0, -1]
        monkeypatch.setattr(MLP, "forward", lambda self, x: (x @ self.W_gate).relu() * (x @ self.W_in) @ self.W_out)
        expected = tiny_model(ids)[0, -1]
        stream = residuals(tiny_model, ids, [-1]).x[-1][None]
        seen = tiny_model.unembed(tiny_model.ln_final(stream))[0, 0]
    assert (expected - before).abs().max() > 0.1, "the change must matter here"
    decoder, captured = (Decoder(tiny_model, 1, 40) for _ in range(2))
    decoder.prefill([ids[0, :-1].tolist()])
    logits = captured.prefill([ids[0].tolist()])
    first, sampler = logits.argmax(dim=-1), Sampler(SamplingConfig(), [ids[0].tolist()], [0], logits)
    for logits in (tiny_model(ids)[0, -1], decoder.step([int(ids[0, -1])])[0], seen):
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    following = torch.cat([ids, first[:, None]], dim=1)
    [(second,), (logprob,)] = next(graph_steps(captured, first, 1, sampler))
    for token, context, found in ((7, ids, score(tiny_model, ids, [7])), (second, following, logprob)):
        assert found == pytest.approx(tiny_model(context)[0, -1].log_softmax(dim=-1)[token].item(), abs=1e-4)


def test_a_document_is_read_as_if_it_were_alone(tiny_model: Shard) -> None:
    ids = torch.randint(0, 300, (1, 30), generator=torch.Generator().manual_seed(2))
    starts = torch.tensor([[0] * 12 + [12] * 18])
    with torch.no_grad():
        packed = tiny_model(ids, document_start=starts)
    # Rotary attention depends on distances alone, so the second document's logits are those it has alone.
    with torch.no_grad():
        torch.testing.assert_close(packed[:, 12:], tiny_model(ids[:, 12:]), atol=1e-4, rtol=1e-4)


def test_positions_stay_sharp_in_a_bfloat16_model(tiny_config: ShardConfig) -> None:
    rotary = Shard(tiny_config).bfloat16().blocks[0].attn.rotary
    fresh = Shard(tiny_config).blocks[0].attn.rotary
    assert rotary.cos.dtype == torch.float32
    assert torch.equal(rotary.cos, fresh.cos)


def test_logits_never_pass_the_cap(tiny_model: Shard) -> None:
    with torch.no_grad():
        tiny_model.embed.W_E.mul_(50)
        assert tiny_model(torch.arange(60)[None]).abs().max() <= 30


def test_more_tokens_than_the_context_are_refused_with_both_numbers(tiny_model: Shard) -> None:
    with pytest.raises(ValueError, match="65 tokens do not fit this model's context of 64"):
        tiny_model(torch.zeros(1, 65, dtype=torch.long))
