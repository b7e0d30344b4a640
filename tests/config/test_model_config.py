from __future__ import annotations

from dataclasses import replace

import pytest

from shardscope import ShardConfig
from shardscope.config import PRESETS, ConfigError


def test_the_presets_keep_the_ideas_of_the_published_model() -> None:
    for config in PRESETS.values():
        assert config.layer_kinds[0] == "sliding"
        assert config.layer_kinds[-1] == "global"
        assert config.window <= config.n_ctx / 8
        assert config.logit_cap == 30
    assert PRESETS["shard-nano"].vocab_size == PRESETS["shard-54m"].vocab_size == 8192
    assert 6.5e6 < PRESETS["shard-nano"].n_params < 7.5e6
    assert PRESETS["shard-nano"].n_params * 2 < 15e6, "bf16 weights, tokenizer and card have to stay under 16 MB"
    assert 0.9e6 < PRESETS["shard-pico"].n_params < 1.1e6


def test_the_last_layer_is_global_whatever_the_pattern() -> None:
    assert ShardConfig(n_layers=3, layer_pattern="S").layer_kinds == ("sliding", "sliding", "global")
    assert ShardConfig(n_layers=5, layer_pattern="SSG").layer_kinds == (
        "sliding",
        "sliding",
        "global",
        "sliding",
        "global",
    )
    assert ShardConfig(layer_pattern="G").windows == (None,) * 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_pattern": "SSL"}, r"layer_pattern='SSL' has unknown layer kinds \['L'\]; use S \(sliding\) and G"),
        ({"layer_pattern": ""}, "layer_pattern='' has unknown layer kinds"),
        ({"d_head": 7}, "d_head=7 is odd"),
        ({"window": 9000}, "window=9000 is longer than model.n_ctx=8192"),
        ({"n_layers": 0}, "n_layers=0 is not a positive whole number"),
        ({"vocab_size": 70_000}, "vocab_size=70000 is above 65536"),
        ({"n_ctx": 10**12}, "n_ctx=1000000000000 is above 1048576; the table of rotary angles"),
        ({"n_layers": 10**6}, "n_layers=1000000 is above 1024"),
        ({"d_head": 10**30}, "d_head=1000000000000000000000000000000 is above 65536"),
        ({"norm_eps": 0.0}, "norm_eps=0.0 must be above 0"),
    ],
)
def test_a_model_cannot_exist_in_a_wrong_state(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShardConfig(**change)  # type: ignore[arg-type]


def test_a_config_survives_plain_data() -> None:
    config = ShardConfig.preset("shard-nano", window=128)
    assert ShardConfig.from_dict(config.to_dict()) == config
    assert ShardConfig.from_dict({"preset": "shard-nano", "window": 128}) == config


def test_a_frozen_config_changes_only_by_making_another() -> None:
    config = ShardConfig.preset("shard-pico")
    with pytest.raises(AttributeError):
        config.window = 3  # type: ignore[misc]
    assert replace(config, window=3).window == 3
