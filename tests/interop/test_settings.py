"""Other people's configs under every spelling: understood, taken from the weights, or refused by the key."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardscope import ShardConfig
from shardscope.config import ConfigError
from shardscope.interop.restricted import OriginalError, Settings
from shardscope.interop.settings import _SPELLINGS, Seen, read_settings

CONFIG = ShardConfig(
    **{"vocab_size": 300, "n_ctx": 512, "d_model": 64, "n_layers": 4, "n_heads": 4, "d_head": 16, "d_mlp": 96},
    **{"window": 16, "rope_base": 5000.0, "norm_eps": 1e-5, "logit_cap": 20.0},
)
SEEN = Seen(vocab_size=300, d_model=64, n_layers=4, d_mlp=96, attention=64)
PLAIN = {name: getattr(CONFIG, name) for name in _SPELLINGS}


@pytest.mark.parametrize("ours", _SPELLINGS)
def test_every_spelling_of_a_setting_is_understood(ours: str) -> None:
    others = {name: value for name, value in PLAIN.items() if name != ours}
    others = {_SPELLINGS[name][0]: value for name, value in others.items()}
    for name in _SPELLINGS[ours]:
        assert read_settings({**others, name: PLAIN[ours]}, SEEN)[0] == CONFIG, name


def stated(**more: Any) -> dict[str, Any]:
    return {_SPELLINGS[name][0]: value for name, value in PLAIN.items()} | more


@pytest.mark.parametrize(
    "more",
    [
        {"dropout": 0.1, "attn_pdrop": 0.1, "resid_dropout": 0.0, "learning_rate": 3e-4, "muon_lr": 0.02, "seed": 2},
        {"optimizer": "muon", "betas": (0.9, 0.95), "z_loss_weight": 1e-4, "batch_size": 8, "grad_clip": 1.0},
        {"torch_dtype": "bfloat16", "use_cache": True, "architectures": ["A"], "eos_token_id": 2, "init_std": 0.02},
        {"_attn_implementation": "sdpa", "flash_attention": True, "compile": True, "wandb_project": "x"},
        {"num_experts": 0, "moe": False, "engram_enabled": False, "engram_slots": 512, "qk_norm": False},
        {"hidden_act": "silu", "norm_type": "RMSNorm", "bias": False, "tie_word_embeddings": True, "causal": True},
        {"rope_scaling": None, "rotary_pct": 1.0, "attn_logit_softcapping": None, "query_pre_attn_scalar": 16},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "n_kv_heads": 4, "attn_scale": 0.25},
        {
            "softmax_scale": None,
            "sliding_window_pattern": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        {"window_pattern": "SL", "attention_pattern": "gemma4", "embed_scale": 1.0, "mlp_ratio": 1.5},
        {"some_new_thing": None, "another": False, "third": 0, "fourth": [], "train": {"steps": 3, "deep": [[[1]]]}},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_changes_nothing_is_passed_over(more: dict[str, Any]) -> None:
    assert read_settings(stated(**more), SEEN)[0] == CONFIG


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0, which is not understood and could change"),
        ({"qk_clip": 100.0}, "qk_clip=100.0"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"norm_type": "LayerNorm"}, "norm_type='LayerNorm'"),
        ({"n_experts": 8}, "n_experts=8"),
        ({"rotary_pct": 0.5}, "rotary_pct=0.5"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_scaling says type 'yarn', factor 4; a Shard does not"),
        ({"rope_scaling": {"rope_type": "default", "low_freq_factor": 4}}, "rope_scaling.low_freq_factor=4"),
        ({"rope_parameters": {"rope_theta": 100.0}}, "says rope_theta=5000.0 and rope_base=100.0"),
        ({"rope_local_base_freq": 100.0}, "rope_local_base_freq=100.0"),
        ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar=256"),
        ({"attn_scale": 0.5}, "attn_scale=0.5"),
        ({"embed_scale": 22.6}, "embed_scale=22.6"),
        ({"use_rope": False}, "use_rope=False"),
        ({"causal": False}, "causal=False"),
        ({"parallel_residual": True}, "parallel_residual=True"),
        ({"memory_tokens": 16}, "memory_tokens=16"),
        ({"value_residual": True}, "value_residual=True"),
        ({"logit_softcap": 15.0}, "says lm_head_logit_cap=20.0 and logit_softcap=15.0"),
        ({"sliding_window_size": 32}, "says sliding_window=16 and sliding_window_size=32"),
        ({"window_size": (15, 0)}, r"window_size=(15, 0); a Shard needs a whole number above 0"),
        ({"layer_types": ["full_attention"] * 4, "attention_pattern": "gemma4"}, "attention_pattern='gemma4' and"),
        ({"layer_types": ["sliding_attention"] * 4}, "the last layer of a Shard is global"),
        ({"layer_types": ["chunked_attention"] * 4}, "layer_types=['chunked_attention'"),
        ({"layer_types": ["sliding_attention"] * 3}, "is unknown"),
        ({"attention_pattern": "SXG"}, "attention_pattern='SXG' is unknown"),
        ({"num_query_groups": 2}, "num_query_groups=2 for 4 query heads"),
        ({"model": {"dim": 128}}, "says dim twice, 64 and 128"),
        ({"strange": {"a": 1}}, "strange=a dict of 1"),
        ({"strange": "x" * 500}, "strange='xxx"),
        ({"strange": 10**5000}, "strange=a number of"),
    ],
)
def test_what_could_change_the_result_is_refused_by_its_key(more: dict[str, Any], message: str) -> None:
    with pytest.raises(OriginalError) as error:
        read_settings(stated(**more), SEEN)
    assert message in str(error.value)
    assert len(str(error.value)) < 600


def test_a_key_that_the_user_knows_to_be_harmless_is_passed_over_and_reported() -> None:
    config, lines = read_settings(stated(strange_thing=3), SEEN, ignore=["strange_thing"])
    assert config == CONFIG
    assert lines == ["passed over as you asked: strange_thing"]


def test_nanogpt_says_no_width_of_its_mlp_and_the_weights_do() -> None:
    values = {
        "block_size": 512,
        "vocab_size": 300,
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 64,
        "dropout": 0.0,
        "bias": False,
    }
    config, lines = read_settings(values, SEEN)
    assert (config.d_mlp, config.d_head, config.n_ctx, config.window) == (96, 16, 512, 512)
    assert lines == ["not stated, taken from the published model: rope_base 10000.0, norm_eps 1e-06, logit_cap 30.0"]


def test_a_config_may_be_sorted_into_tables() -> None:
    values = stated()
    nested = {"model": Settings({"dim": values.pop("dim")}), "architecture": {"n_layers": values.pop("n_layers")}}
    assert read_settings({**values, **nested, "training": Settings({"lr": 1})}, SEEN)[0] == CONFIG


def test_normalised_queries_and_keys_are_read() -> None:
    assert read_settings(stated(use_qk_norm=True), SEEN)[0].qk_norm


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner), max_leaves=6
)
keys = st.sampled_from(
    [*stated(), "rope_scaling", "rope_parameters", "model", "layer_types", "attn_scale", "n_kv_heads"]
)


@settings(max_examples=150)
@given(st.dictionaries(keys | st.text(max_size=12), anything | st.sampled_from(list(PLAIN.values())), max_size=5))
def test_no_config_raises_anything_but_a_config_error(changes: dict[str, Any]) -> None:
    try:
        config, lines = read_settings(stated(**{str(k): v for k, v in changes.items()}), SEEN)
    except ConfigError as error:
        message = str(error)
        assert len(message) < 2000
    else:
        assert isinstance(config, ShardConfig)
        assert all(isinstance(line, str) for line in lines)
