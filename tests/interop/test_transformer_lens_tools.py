"""TransformerLens's own tools, unmodified, give the right answers on a bridge: each is checked by other means."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from shardscope import Shard
from shardscope.interop import to_transformer_lens
from shardscope.tokenizer import Tokenizer

pytest.importorskip("transformer_lens")

from transformer_lens import patching
from transformer_lens.head_detector import detect_head
from transformer_lens.SVDInterpreter import SVDInterpreter
from transformer_lens.tools.analysis import attribution_patch, direct_logit_attribution, logit_lens

SENTENCES = ["Once upon a time, in a small village, there lived a clockmaker.", "The capital of France is Paris."]
PERIOD, OTHER = 12, 60
# Twelve characters that are a token each, over and over: what the trained model has learnt to continue.
COPY_TEXT = "K7QZ2M9XB4WJ" * 3


@pytest.fixture(params=["trained", "random shard-54m"])
def model(request: pytest.FixtureRequest, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Shard:
    """A small model that has learnt something, and the published size, whose every head and layer does something."""
    if request.param == "trained":
        return request.getfixturevalue("trained_model")
    model = request.getfixturevalue("random_shard_54m")
    monkeypatch.setattr(model, "tokenizer", tiny_tokenizer)
    return model


def uncapped(logits: Tensor, cap: float = 30.0) -> Tensor:
    return cap * torch.atanh(logits.double() / cap).float()


@dataclass(frozen=True)
class Pair:
    """A prompt, and the same with one token exchanged."""

    clean: Tensor
    corrupt: Tensor
    exchanged: int

    def preference(self, logits: Tensor) -> Tensor:
        """How much they prefer the clean prompt's token over the one it was exchanged for, at the last position."""
        here = (0, self.exchanged)
        return logits[0, -1, self.clean[here]] - logits[0, -1, self.corrupt[here]]


@pytest.fixture
def pair(model: Shard) -> Pair:
    """Of the trained model's repeated text a token of the first round, which it recalls at the end of the prompt. Of a
    random shard-54m three tokens: patching runs it anew for each of them in each layer."""
    whole = to_transformer_lens(model).to_tokens(COPY_TEXT)
    length, exchanged = (1 + PERIOD + 6, 7) if model.config.n_layers == 4 else (3, 1)
    clean = whole[:, :length]
    assert length < PERIOD or clean[0, -1] == clean[0, exchanged - 1]
    assert OTHER not in clean
    corrupt = clean.clone()
    corrupt[0, exchanged] = OTHER
    return Pair(clean, corrupt, exchanged)


def cached(model: Shard, tokens: Tensor, names: list[str]) -> dict[str, Tensor]:
    with torch.no_grad():
        return model.run_with_cache(tokens, names_filter=names)[1]


def test_patching_the_residual_stream_agrees_with_our_own_hooks(model: Shard, pair: Pair) -> None:
    clean, corrupt, n_layers = pair.clean, pair.corrupt, model.config.n_layers
    bridge = to_transformer_lens(model)
    _, clean_cache = bridge.run_with_cache(clean)
    with torch.no_grad():
        theirs = patching.get_act_patch_resid_pre(bridge, corrupt, clean_cache, pair.preference)
        native_cache = cached(model, clean, [f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)])
        ours = torch.zeros(n_layers, clean.shape[1])
        for layer in range(ours.shape[0]):
            for pos in range(ours.shape[1]):
                name = f"blocks.{layer}.hook_resid_pre"

                def put(x: Tensor, hook: object, name: str = name, pos: int = pos) -> Tensor:
                    x = x.clone()
                    x[:, pos] = native_cache[name][:, pos]
                    return x

                ours[layer, pos] = pair.preference(model.run_with_hooks(corrupt, fwd_hooks=[(name, put)]))
        before = pair.preference(model(corrupt))
        gain = pair.preference(model(clean)) - before
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    # Only the exchanged token differs at the input, so restoring it there restores everything.
    assert abs(gain) > 1
    restored = theirs - before
    torch.testing.assert_close(restored[0, pair.exchanged], gain, rtol=1e-3, atol=1e-3)
    elsewhere = [pos for pos in range(clean.shape[1]) if pos != pair.exchanged]
    torch.testing.assert_close(restored[0, elsewhere], torch.zeros(len(elsewhere)), rtol=0, atol=1e-4)


def test_the_head_detector_finds_the_heads_that_do_it(model: Shard) -> None:
    bridge = to_transformer_lens(model)
    tokens = bridge.to_tokens(COPY_TEXT)
    assert tokens.shape == (1, 1 + 3 * PERIOD), "every character must be a token of its own"
    layers = range(model.config.n_layers)
    cache = cached(model, tokens, [f"blocks.{layer}.attn.hook_pattern" for layer in layers])
    patterns = torch.stack([cache["pattern", layer][0] for layer in layers])

    follows_duplicate = torch.zeros(37, 37)
    for query in range(37):
        for key in range(1, query):
            follows_duplicate[query, key] = float(tokens[0, key - 1] == tokens[0, query])
    previous = torch.diag(torch.ones(36), -1)
    for name, wanted in (("induction_head", follows_duplicate), ("previous_token_head", previous)):
        scores = detect_head(bridge, COPY_TEXT, name)
        by_hand = (patterns * wanted).sum(dim=(-1, -2)) / 37
        torch.testing.assert_close(scores, by_hand, rtol=1e-4, atol=1e-5)
        # Nobody has taught random heads to look there: they stay near what attention to all alike would give.
        learnt = model.config.n_layers == 4
        assert scores.max() > 0.25 if learnt else scores.max() < 0.25


def test_the_cache_decomposes_the_residual_stream_without_remainder(model: Shard) -> None:
    n_layers, n_heads = model.config.n_layers, model.config.n_heads
    bridge = to_transformer_lens(model)
    tokens = bridge.to_tokens(SENTENCES[0])
    with torch.no_grad():
        _, cache = bridge.run_with_cache(tokens)
    native = cached(model, tokens, [f"blocks.{n_layers - 1}.hook_resid_post", "blocks.2.attn.hook_result"])
    final = native["resid_post", n_layers - 1]
    parts, labels = cache.decompose_resid(return_labels=True)
    assert labels[0] == "embed"
    assert len(labels) == 1 + 2 * n_layers
    torch.testing.assert_close(parts.sum(dim=0), final, rtol=1e-4, atol=1e-4)
    heads, labels = cache.stack_head_results(layer=-1, incl_remainder=True, return_labels=True)
    assert labels[:2] == ["L0H0", "L0H1"]
    assert len(labels) == n_layers * n_heads + 1
    torch.testing.assert_close(heads.sum(dim=0), final, rtol=1e-4, atol=1e-4)
    of_layer_2 = heads[2 * n_heads : 3 * n_heads].permute(1, 2, 0, 3)
    torch.testing.assert_close(of_layer_2, native["result", 2], rtol=1e-4, atol=1e-4)


def test_the_logit_lens_reads_every_layer_as_the_native_unembedding_does(model: Shard) -> None:
    n_layers = model.config.n_layers
    bridge = to_transformer_lens(model)
    tokens = bridge.to_tokens(SENTENCES[1])
    lens = logit_lens(bridge, tokens, positions=None)
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
        stream = [cache["resid_pre", layer] for layer in range(n_layers)] + [cache["resid_post", n_layers - 1]]
        by_hand = torch.stack([model.unembed(model.ln_final(x)) for x in stream])
    torch.testing.assert_close(lens.values, by_hand, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lens.values[-1], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unit", ["component", "head"])
def test_direct_logit_attribution_adds_up_to_the_logit_before_the_cap(model: Shard, unit: str) -> None:
    bridge = to_transformer_lens(model)
    bridge.enable_compatibility_mode(disable_warnings=True)
    tokens = bridge.to_tokens(COPY_TEXT)
    answer = int(tokens[0, 1])
    shares = direct_logit_attribution(bridge, tokens, answer, unit=unit)
    with torch.no_grad():
        whole = uncapped(model(tokens)[0, -1, answer])
    torch.testing.assert_close(shares.attribution.sum(), whole, rtol=1e-3, atol=1e-3)


def test_attribution_patching_is_gradient_times_change(model: Shard, pair: Pair) -> None:
    n_layers = model.config.n_layers
    scores = attribution_patch(to_transformer_lens(model), pair.clean, pair.corrupt, pair.preference).node_scores
    names = [f"blocks.{layer}.hook_mlp_out" for layer in range(n_layers)]
    clean_cache = cached(model, pair.clean, names)
    corrupt_cache: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: object) -> None:
        corrupt_cache[hook.name] = x  # type: ignore[attr-defined]

    def see(gradient: Tensor, hook: object) -> None:
        gradients[hook.name] = gradient  # type: ignore[attr-defined]

    with model.hooks(fwd_hooks=[(n, keep) for n in names], bwd_hooks=[(n, see) for n in names]):
        pair.preference(model(pair.corrupt)).backward()
    model.zero_grad()
    for layer, name in enumerate(names):
        by_hand = ((clean_cache[name] - corrupt_cache[name].detach()) * gradients[name]).sum(dim=-1)[0]
        theirs = {
            node.position: score for node, score in scores.items() if node.kind == "mlp_out" and node.layer == layer
        }
        torch.testing.assert_close(torch.tensor([theirs[pos] for pos in sorted(theirs)]), by_hand, rtol=1e-3, atol=1e-4)


def test_the_svd_interpreter_reads_the_right_matrices(model: Shard) -> None:
    bridge = to_transformer_lens(model)
    interpreter, block = SVDInterpreter(bridge), model.blocks[3]
    matrices = {
        ("OV", 2): block.attn.W_V[2] @ block.attn.W_O[2],
        ("w_in", None): block.mlp.W_in.T * block.ln2.w,
        ("w_out", None): block.mlp.W_out,
    }
    for (kind, head), matrix in matrices.items():
        vectors = interpreter.get_singular_vectors(kind, layer_index=3, num_vectors=3, head_index=head)
        directions = torch.linalg.svd(matrix.detach())[2][:3]
        by_hand = model.W_U.detach().T @ directions.T
        # A singular vector's sign is arbitrary.
        torch.testing.assert_close(vectors[:, 0].abs(), by_hand.abs(), rtol=1e-3, atol=1e-4)
