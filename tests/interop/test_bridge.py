"""The bridge computes what the native model computes, on the native model's own weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rounding import A_LOGIT

from shardscope import Shard, ShardConfig, load
from shardscope.interop import to_transformer_lens
from shardscope.interop.bridge import ARCHITECTURE, ShardArchitectureAdapter, shared_module

pytest.importorskip("transformer_lens")

SENTENCES = ["Once upon a time, in a small village, there lived a clockmaker.", "The capital of France is Paris."]
CLOSE = {"rtol": 1e-5, "atol": A_LOGIT}


def tokens_of(length: int, vocab: int = 300, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(1, vocab, (batch, length), generator=generator)


def assert_equal_to_rounding(theirs: torch.Tensor, ours: torch.Tensor, name: str) -> None:
    """Within 1e-5 of 1 + the row's largest value: a small value is a difference of large ones, and rounds as they do.

    Masked scores, -inf here and the lowest float there, are masked in both.
    """
    assert theirs.shape == ours.shape, name
    visible = ours.isfinite()
    assert (theirs[~visible] < -1e30).all(), name
    difference = (theirs - ours).abs().masked_fill(~visible, 0)
    bound = 1e-5 * (1 + ours.abs().masked_fill(~visible, 0).amax(dim=-1, keepdim=True))
    assert (difference <= bound).all(), f"{name}: off by {(difference / bound).max():.1f} times what is allowed"


def assert_same_activations(native: Shard, tokens: torch.Tensor) -> int:
    """Every activation that both name."""
    bridge = to_transformer_lens(native)
    bridge.set_use_attn_result(True)
    with torch.no_grad():
        ours, ours_cache = native.run_with_cache(tokens)
        theirs, theirs_cache = bridge.run_with_cache(tokens)
    torch.testing.assert_close(theirs, ours, **CLOSE)
    missing = set(ours_cache) - set(theirs_cache.keys())
    assert not missing, f"the bridge does not name {sorted(missing)}"
    for name, activation in ours_cache.items():
        assert_equal_to_rounding(theirs_cache[name], activation, name)
    return len(ours_cache)


@pytest.mark.parametrize("length", [5, 60], ids=["inside the window", "past the window"])
def test_every_activation_that_both_name_is_equal_on_a_trained_model(trained_model: Shard, length: int) -> None:
    compared = assert_same_activations(trained_model, tokens_of(length, batch=2))
    assert compared == len(trained_model.hook_dict)


@pytest.mark.slow
def test_every_activation_that_both_name_is_equal_on_a_random_shard_54m_past_its_window() -> None:
    """Of every name the last 64 positions are kept (rows of scores and patterns), all of them past the window."""
    torch.manual_seed(0)
    native = Shard(ShardConfig.preset("shard-54m", n_ctx=2048)).eval()
    bridge = to_transformer_lens(native)
    bridge.set_use_attn_result(True)
    tokens = tokens_of(native.config.window + 64, vocab=8192)
    names = list(native.hook_dict)
    ours, theirs = last_rows(native, tokens, names), last_rows(bridge, tokens, names)
    assert ours.keys() == theirs.keys() == {*names, "logits"}
    for name, activation in ours.items():
        assert_equal_to_rounding(theirs[name], activation, name)


def last_rows(model: Any, tokens: torch.Tensor, names: list[str], rows: int = 64) -> dict[str, torch.Tensor]:
    kept = {}

    def keeper(name: str) -> Callable[..., None]:
        queries = 2 if name.endswith(("hook_attn_scores", "hook_pattern")) else 1

        def keep(activation: torch.Tensor, hook: object) -> None:
            kept[name] = activation.narrow(queries, activation.shape[queries] - rows, rows).clone()

        return keep

    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[(name, keeper(name)) for name in names])
    return {**kept, "logits": logits[:, -rows:]}


def test_more_tokens_than_the_context_are_refused_as_natively(trained_model: Shard) -> None:
    bridge, n_ctx = to_transformer_lens(trained_model), trained_model.config.n_ctx
    message = f"{n_ctx + 1} tokens do not fit this model's context of {n_ctx}"
    for model in (trained_model, bridge):
        with pytest.raises(ValueError, match=message):
            model(tokens_of(n_ctx + 1))
    full = tokens_of(n_ctx - 1)
    greedy = {"do_sample": False, "stop_at_eos": False, "return_type": "tokens", "verbose": False}
    assert bridge.generate(full, max_new_tokens=1, **greedy).shape == (1, n_ctx)
    with pytest.raises(ValueError, match="do not fit this model's context"):
        bridge.generate(full, max_new_tokens=4, **greedy)


def test_a_sliding_layer_of_the_bridge_sees_exactly_its_window(trained_model: Shard) -> None:
    _, cache = to_transformer_lens(trained_model).run_with_cache(tokens_of(40))
    for layer, window in enumerate(trained_model.config.windows):
        seen = (cache["pattern", layer] > 0).sum(dim=-1)
        assert (seen == torch.tensor([min(pos + 1, window or 40) for pos in range(40)])).all(), layer


def test_the_soft_cap_is_applied_once(tiny_model: Shard) -> None:
    with torch.no_grad():
        tiny_model.ln_final.w.mul_(40)
        native = tiny_model(tokens_of(12))
    assert native.abs().max() > 0.8 * tiny_model.config.logit_cap, "the cap must bite for this test to mean anything"
    torch.testing.assert_close(to_transformer_lens(tiny_model)(tokens_of(12)), native, rtol=1e-4, atol=1e-4)


def test_weights_are_shared_except_those_whose_layout_forbids_it(tiny_model: Shard) -> None:
    module = shared_module(tiny_model)
    owned = {parameter.data_ptr() for parameter in tiny_model.parameters()}
    copied = {name for name, parameter in module.named_parameters() if parameter.data_ptr() not in owned}
    assert copied == {
        f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in range(4) for part in ("q", "k", "v")
    }
    bridge = to_transformer_lens(tiny_model)
    with torch.no_grad():
        tiny_model.blocks[2].mlp.W_out.zero_()
        tiny_model.embed.W_E.mul_(0.5)
    torch.testing.assert_close(bridge(tokens_of(9)), tiny_model(tokens_of(9)), **CLOSE)


def test_the_bridge_shows_the_weights_in_transformer_lens_shapes(tiny_model: Shard) -> None:
    bridge = to_transformer_lens(tiny_model)
    for layer, block in enumerate(tiny_model.blocks):
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            assert torch.equal(getattr(bridge, name)[layer], getattr(block.attn, name)), name
            assert torch.equal(getattr(bridge.blocks[layer].attn, name), getattr(block.attn, name)), name
        for name in ("W_in", "W_gate", "W_out"):
            assert torch.equal(getattr(bridge, name)[layer], getattr(block.mlp, name)), name
    assert torch.equal(bridge.W_E, tiny_model.embed.W_E)
    assert torch.equal(bridge.W_U, tiny_model.W_U)


def test_an_edit_through_a_hook_changes_both_alike(trained_model: Shard) -> None:
    bridge, tokens = to_transformer_lens(trained_model), tokens_of(50)

    def ablate(z: torch.Tensor, hook: object) -> torch.Tensor:
        z = z.clone()
        z[:, :, 1] = 0
        return z

    with torch.no_grad():
        plain = trained_model(tokens)
        ours = trained_model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", ablate)])
        theirs = bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", ablate)])
    assert (ours - plain).abs().max() > 1e-2
    torch.testing.assert_close(theirs, ours, **CLOSE)


def test_text_is_tokenized_with_the_begin_of_document_token(tiny_model: Shard, tiny_checkpoint: Path) -> None:
    bridge = to_transformer_lens(tiny_checkpoint)
    tokenizer = bridge.tokenizer
    text = SENTENCES[0]
    native = load(tiny_checkpoint).tokenizer
    assert bridge.to_tokens(text)[0].tolist() == native.encode(text, bos=True)
    assert bridge.to_tokens(text, prepend_bos=False)[0].tolist() == native.encode(text)
    assert bridge.to_string(bridge.to_tokens(text)[0, 1:]) == text
    assert bridge.to_str_tokens("12")[0] == "<|endoftext|>"
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == native.bos_id
    literal = "it ends <|endoftext|> here"
    assert bridge.to_tokens(literal)[0].tolist() == native.encode(literal, bos=True)


def test_a_batch_of_unequal_prompts_gives_each_its_own_logits(tiny_checkpoint: Path) -> None:
    bridge = to_transformer_lens(tiny_checkpoint)
    long, short = SENTENCES[1], SENTENCES[1][:20]
    alone = bridge(short)
    together = bridge([long, short])
    torch.testing.assert_close(together[1, : alone.shape[1]], alone[0], rtol=1e-4, atol=1e-4)


def test_generate_writes_the_native_models_greedy_text_past_the_window(trained_model: Shard) -> None:
    tokens = tokens_of(6, vocab=64)
    written = to_transformer_lens(trained_model).generate(
        tokens, max_new_tokens=60, do_sample=False, stop_at_eos=False, return_type="tokens", verbose=False
    )
    with torch.no_grad():
        likeliest = trained_model(written[:, :-1]).argmax(dim=-1)
    assert written.shape == (1, 66)
    assert torch.equal(likeliest[:, 5:], written[:, 6:])


def test_compatibility_mode_folds_the_norms_and_keeps_the_logits(trained_model: Shard) -> None:
    before = {name: weight.clone() for name, weight in trained_model.state_dict().items()}
    tokens = tokens_of(60, batch=2)
    bridge = to_transformer_lens(trained_model)
    bridge.enable_compatibility_mode(disable_warnings=True)
    with torch.no_grad():
        native = trained_model(tokens)
        torch.testing.assert_close(bridge(tokens), native, rtol=3e-5, atol=A_LOGIT)
    for norm in [bridge.ln_final, *(getattr(block, name) for block in bridge.blocks for name in ("ln1", "ln2"))]:
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
    folded = trained_model.blocks[0].attn.W_Q * trained_model.blocks[0].ln1.w[None, :, None]
    torch.testing.assert_close(bridge.W_Q[0], folded)
    torch.testing.assert_close(bridge.W_U, trained_model.W_U * trained_model.ln_final.w[:, None])
    for name, weight in trained_model.state_dict().items():
        assert torch.equal(weight, before[name]), f"compatibility mode changed the Shard's own {name}"


def test_centring_is_skipped_where_rms_norm_would_notice(trained_model: Shard) -> None:
    """A mean taken off the residual stream is invisible to LayerNorm, not to RMSNorm: centring changes the model."""
    bridge = to_transformer_lens(trained_model)
    bridge.enable_compatibility_mode(disable_warnings=True, center_writing_weights=True)
    torch.testing.assert_close(bridge.W_O[0], trained_model.blocks[0].attn.W_O)
    centred = Shard(trained_model.config)
    centred.load_state_dict(trained_model.state_dict())
    with torch.no_grad():
        for block in centred.blocks:
            block.attn.W_O.sub_(block.attn.W_O.mean(dim=-1, keepdim=True))
        change = (centred(tokens_of(30)) - trained_model(tokens_of(30))).abs().max()
    assert change > 1e-3


def test_the_adapter_is_declared_as_an_entry_point() -> None:
    from importlib.metadata import entry_points

    found = [ep for ep in entry_points(group="transformer_lens.architectures") if ep.name == ARCHITECTURE]
    assert [ep.load() for ep in found] == [ShardArchitectureAdapter]


def test_importing_the_lens_brings_no_heavy_guest() -> None:
    code = "import sys, shardscope.interop; print({'transformer_lens', 'transformers', 'pandas'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
