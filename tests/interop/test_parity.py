"""`shardscope verify`: passes where all implementations agree, and notices every way in which one could be off."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from shardscope import Shard, ShardConfig
from shardscope.checkpoint import save_checkpoint
from shardscope.cli import main
from shardscope.interop import bridge, export_pretrained, huggingface, parity, rounding, to_transformers, verify
from shardscope.interop.huggingface import InteropError
from shardscope.model import Shard as NativeShard

pytest.importorskip("transformer_lens")


def test_a_trained_checkpoint_gets_its_certificate(
    trained_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(trained_checkpoint)]) == 0
    heading, *rows, legend, verdict = capsys.readouterr().out.splitlines()
    assert heading.split() == ["implementation", "dtype", "prompt", "max", "diff", "mean", "diff", "argmax", "greedy"]
    assert [row.split()[:3] for row in rows] == [
        [name, dtype, f"{prompt},"]
        for dtype in ("float32", "bfloat16")
        for name in ("Shardscope", "TransformerLens", "transformers")
        for prompt in ("short", "long")
    ]
    assert all(row.endswith("  ok") for row in rows)
    assert "float64" in legend
    assert verdict == "all implementations agree"


@pytest.mark.slow
def test_the_built_in_model_gets_its_certificate() -> None:
    """Its logits are ten times a tiny model's, and so is their rounding: every bound must grow with both."""
    certificate = verify(None)
    assert certificate.passed, "\n".join(certificate.lines())
    assert certificate.comparisons[0].tokens == 32


@pytest.mark.parametrize("length", [6, 60], ids=["inside the window", "past the window"])
def test_the_exact_logits_are_those_of_stock_transformers_in_float64(trained_model: Shard, length: int) -> None:
    """What every one is measured by is checked against code that is not ours, far below float32's rounding."""
    tokens = torch.randint(1, 300, (1, length), generator=torch.Generator().manual_seed(0))
    stock = to_transformers(trained_model).double()
    stock.model.rotary_emb.float()  # the angles are float32 everywhere
    kept = dict(trained_model.named_parameters())  # (w - 1) + 1 rounds in float32; in float64 it does not
    stock.model.norm.weight.data = kept["ln_final.w"].detach().double() - 1
    for index, layer in enumerate(stock.model.layers):
        layer.input_layernorm.weight.data = kept[f"blocks.{index}.ln1.w"].detach().double() - 1
        layer.pre_feedforward_layernorm.weight.data = kept[f"blocks.{index}.ln2.w"].detach().double() - 1
    with torch.no_grad(), parity._NoRounding():
        logits = stock(tokens).logits
    exact = parity.exact_logits(trained_model, tokens)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(logits.double(), exact, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_a_random_shard_54m_gets_its_certificate() -> None:
    torch.manual_seed(0)
    model = Shard(ShardConfig.preset("shard-54m"))
    certificate = verify(model)
    assert certificate.passed, "\n".join(certificate.lines())
    assert {comparison.tokens for comparison in certificate.comparisons} == {32, model.config.window + 32}


def test_sharp_heads_that_magnify_every_rounding_are_no_disagreement_and_hide_no_real_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = Shard(ShardConfig(vocab_size=300, n_ctx=128, d_model=64, n_layers=8, n_heads=4, d_mlp=96, window=8)).eval()
    with torch.no_grad():
        model.embed.W_E.mul_(5)
        for block in model.blocks:
            block.attn.W_Q.mul_(8)
            block.attn.W_K.mul_(8)
    certificate = verify(model)
    assert certificate.passed, "\n".join(certificate.lines())
    plain = {c.implementation: c.max_difference for c in certificate.comparisons if c.dtype == "float32"}
    assert min(plain.values()) > parity.TOLERANCE * (1 + model.config.logit_cap), "a bound that does not know the model"
    exact = huggingface.vaultgemma_config

    def one_too_long(config: ShardConfig, *rest: Any) -> Any:
        return exact(dataclasses.replace(config, window=config.window + 1), *rest)

    monkeypatch.setattr(huggingface, "vaultgemma_config", one_too_long)
    assert not verify(model).passed


def test_a_window_that_is_one_too_long_is_noticed_past_the_window_only(
    trained_model: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = huggingface.vaultgemma_config

    def one_too_long(config: ShardConfig, *rest: Any) -> Any:
        return exact(dataclasses.replace(config, window=config.window + 1), *rest)

    monkeypatch.setattr(huggingface, "vaultgemma_config", one_too_long)
    certificate = verify(trained_model)
    found = {(c.implementation, c.prompt): c for c in certificate.comparisons if c.dtype == "float32"}
    # A short prompt's logits do not show it; its greedy text may, because it leaves the window on the way.
    assert found["transformers", "short"].max_difference < 1e-4
    assert found["transformers", "long"].max_difference > 1e-2
    assert not found["transformers", "long"].passed
    assert all(found[name, prompt].passed for name in ("Shardscope", "TransformerLens") for prompt in ("short", "long"))
    assert certificate.lines()[-1] == "the implementations DISAGREE"


def test_a_certificate_that_is_out_of_bounds_fails_the_command(
    trained_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parity, "TOLERANCE", 1e-12)
    monkeypatch.setattr(parity, "NUDGES", 0.01)
    assert main(["verify", str(trained_checkpoint)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "the implementations DISAGREE"


def test_a_home_that_is_a_little_off_is_noticed_there(trained_model: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """One implementation with another epsilon in its norms, the other with the cap applied twice."""
    exact_norm, exact_implementation = bridge.PlainRMSNorm, parity._transformers

    def capped_twice(shard: NativeShard, folder: Path) -> parity.Implementation:
        plain = exact_implementation(shard, folder)
        return dataclasses.replace(plain, logits=lambda tokens: 30 * torch.tanh(plain.logits(tokens) / 30))

    monkeypatch.setattr(bridge, "PlainRMSNorm", lambda weight, eps: exact_norm(weight, eps * 100))
    monkeypatch.setattr(parity, "_transformers", capped_twice)
    before = {name: weight.clone() for name, weight in trained_model.state_dict().items()}
    found = {(c.implementation, c.prompt, c.dtype): c.passed for c in verify(trained_model).comparisons}
    assert not found["TransformerLens", "long", "float32"]
    assert not found["transformers", "short", "float32"]
    assert not found["transformers", "short", "bfloat16"]
    assert all(torch.equal(weight, before[name]) for name, weight in trained_model.state_dict().items())


def test_weights_that_are_not_numbers_fail_everywhere(
    trained_model: Shard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.no_grad():
        trained_model.blocks[1].mlp.W_out[0, 0] = torch.nan
    assert "\n".join(verify(trained_model).lines()).count("OUT OF BOUNDS") == 12
    assert main(["verify", str(save_checkpoint(tmp_path / "broken", trained_model))]) == 1
    assert "blocks.1.mlp.W_out holds a number that is not finite" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "no/such/run"]) == 1
    assert capsys.readouterr().err.startswith("error: no/such/run: no such checkpoint or run")


def test_rounding_once_after_a_float32_sum_is_what_bfloat16_products_are() -> None:
    """The certificate's bfloat16 products are as near to the exact ones as torch's own, and differ by roundings."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(2, 48, 48, generator=generator).bfloat16() for _ in range(2))
    query = left[None].expand(1, 2, 48, 48)
    attend = torch.nn.functional.scaled_dot_product_attention
    with rounding.WideProducts():
        ours = [left[0] @ right[0], left @ right, attend(query, query, query, is_causal=True)]
    torchs = [left[0] @ right[0], left @ right, attend(query, query, query, is_causal=True)]
    wide = query.double()
    exact = [
        left[0].double() @ right[0].double(),
        left.double() @ right.double(),
        attend(wide, wide, wide, is_causal=True),
    ]
    for one, other, truth in zip(ours, torchs, exact, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one, other, rtol=2**-7, atol=2**-7)
        assert (one.double() - truth).abs().mean() <= 1.1 * (other.double() - truth).abs().mean()


def test_normalised_queries_and_keys_agree_in_transformer_lens_and_are_refused_for_transformers(
    trained_model: Shard, tmp_path: Path
) -> None:
    config = dataclasses.replace(trained_model.config, qk_norm=True, qk_gain=1.5)
    model = Shard(config, trained_model.tokenizer)
    model.load_state_dict(trained_model.state_dict())
    certificate = verify(model)
    assert certificate.passed, certificate.lines()
    assert {c.implementation for c in certificate.comparisons} == {"Shardscope", "TransformerLens"}
    with torch.no_grad():
        tokens = torch.randint(1, 300, (1, 40), generator=torch.Generator().manual_seed(0))
        assert not torch.allclose(model(tokens), trained_model(tokens), atol=0.1), "the normalisation does nothing here"
    for export in (to_transformers, lambda shard: export_pretrained(shard, tmp_path / "out")):
        with pytest.raises(InteropError, match=r"model\.qk_norm.*which no stock model of transformers does"):
            export(model.eval())
    assert not (tmp_path / "out").exists()
