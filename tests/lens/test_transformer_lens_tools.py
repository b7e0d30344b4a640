"""TransformerLens's own tools, unmodified, give the right answers on a bridge: each is checked by other means."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from shardscope import Shard
from shardscope.lens import to_transformer_lens

pytest.importorskip("transformer_lens")

from transformer_lens import patching
from transformer_lens.head_detector import detect_head
from transformer_lens.SVDInterpreter import SVDInterpreter
from transformer_lens.tools.analysis import attribution_patch, direct_logit_attribution, logit_lens

SENTENCES = ["Once upon a time, in a small village, there lived a clockmaker.", "The capital of France is Paris."]
PERIOD, OTHER = 12, 60
# Twelve characters that are a token each, over and over: what the model was trained to continue.
COPY_TEXT = "K7QZ2M9XB4WJ" * 3


def uncapped(logits: Tensor, cap: float = 30.0) -> Tensor:
    return cap * torch.atanh(logits.double() / cap).float()


LENGTH, EXCHANGED = 1 + PERIOD + 6, 7  # the last token is the one before the exchanged one, a period later


@pytest.fixture
def pair(trained_model: Shard) -> tuple[Tensor, Tensor]:
    """A repeated sequence, and the same with one token of its first round exchanged."""
    clean = to_transformer_lens(trained_model).to_tokens(COPY_TEXT)[:, :LENGTH]
    corrupt = clean.clone()
    corrupt[0, EXCHANGED] = OTHER
    assert clean[0, -1] == clean[0, EXCHANGED - 1]
    assert OTHER not in clean
    return clean, corrupt


def preference(clean: Tensor) -> Callable[[Tensor], Tensor]:
    """How much logits prefer the token that followed the first time over the one it was exchanged for."""
    answer = int(clean[0, EXCHANGED])
    return lambda logits: logits[0, -1, answer] - logits[0, -1, OTHER]


def test_patching_the_residual_stream_agrees_with_our_own_hooks(
    trained_model: Shard, pair: tuple[Tensor, Tensor]
) -> None:
    clean, corrupt = pair
    answer_logit = preference(clean)
    bridge = to_transformer_lens(trained_model)
    _, clean_cache = bridge.run_with_cache(clean)
    with torch.no_grad():
        theirs = patching.get_act_patch_resid_pre(bridge, corrupt, clean_cache, answer_logit)
        _, native_cache = trained_model.run_with_cache(clean)
        ours = torch.zeros(trained_model.config.n_layers, clean.shape[1])
        for layer in range(ours.shape[0]):
            for pos in range(ours.shape[1]):
                name = f"blocks.{layer}.hook_resid_pre"

                def put(x: Tensor, hook: object, name: str = name, pos: int = pos) -> Tensor:
                    x = x.clone()
                    x[:, pos] = native_cache[name][:, pos]
                    return x

                ours[layer, pos] = answer_logit(trained_model.run_with_hooks(corrupt, fwd_hooks=[(name, put)]))
        gain = answer_logit(trained_model(clean)) - answer_logit(trained_model(corrupt))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    # Only the exchanged token differs at the input, so restoring it there restores everything.
    assert gain > 1
    restored = theirs - answer_logit(trained_model(corrupt)).detach()
    torch.testing.assert_close(restored[0, EXCHANGED], gain, rtol=1e-3, atol=1e-3)
    elsewhere = [pos for pos in range(LENGTH) if pos != EXCHANGED]
    torch.testing.assert_close(restored[0, elsewhere], torch.zeros(LENGTH - 1), rtol=0, atol=1e-4)


def test_the_head_detector_finds_the_heads_that_do_it(trained_model: Shard) -> None:
    bridge = to_transformer_lens(trained_model)
    tokens = bridge.to_tokens(COPY_TEXT)
    assert tokens.shape == (1, 1 + 3 * PERIOD), "every character must be a token of its own"
    _, cache = trained_model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    patterns = torch.stack([cache["pattern", layer][0] for layer in range(4)])

    follows_duplicate = torch.zeros(37, 37)
    for query in range(37):
        for key in range(1, query):
            follows_duplicate[query, key] = float(tokens[0, key - 1] == tokens[0, query])
    previous = torch.diag(torch.ones(36), -1)
    for name, wanted in (("induction_head", follows_duplicate), ("previous_token_head", previous)):
        scores = detect_head(bridge, COPY_TEXT, name)
        by_hand = (patterns * wanted).sum(dim=(-1, -2)) / 37
        torch.testing.assert_close(scores, by_hand, rtol=1e-4, atol=1e-5)
        assert scores.max() > 0.25, f"the trained model has no {name}"


def test_the_cache_decomposes_the_residual_stream_without_remainder(trained_model: Shard) -> None:
    bridge = to_transformer_lens(trained_model)
    tokens = bridge.to_tokens(SENTENCES[0])
    with torch.no_grad():
        _, cache = bridge.run_with_cache(tokens)
        final = trained_model.run_with_cache(tokens, names_filter="blocks.3.hook_resid_post")[1][
            "blocks.3.hook_resid_post"
        ]
    parts, labels = cache.decompose_resid(return_labels=True)
    assert labels[0] == "embed"
    assert len(labels) == 1 + 2 * 4
    torch.testing.assert_close(parts.sum(dim=0), final, rtol=1e-4, atol=1e-4)
    heads, labels = cache.stack_head_results(layer=-1, incl_remainder=True, return_labels=True)
    assert labels[:2] == ["L0H0", "L0H1"]
    assert len(labels) == 4 * 4 + 1
    torch.testing.assert_close(heads.sum(dim=0), final, rtol=1e-4, atol=1e-4)
    by_hand = trained_model.run_with_cache(tokens, names_filter="blocks.2.attn.hook_result")[1]["result", 2]
    torch.testing.assert_close(heads[8:12].permute(1, 2, 0, 3), by_hand, rtol=1e-4, atol=1e-4)


def test_the_logit_lens_reads_every_layer_as_the_native_unembedding_does(trained_model: Shard) -> None:
    bridge = to_transformer_lens(trained_model)
    tokens = bridge.to_tokens(SENTENCES[1])
    lens = logit_lens(bridge, tokens, positions=None)
    with torch.no_grad():
        logits, cache = trained_model.run_with_cache(tokens)
        stream = [cache["resid_pre", layer] for layer in range(4)] + [cache["resid_post", 3]]
        by_hand = torch.stack([trained_model.unembed(trained_model.ln_final(x)) for x in stream])
    torch.testing.assert_close(lens.values, by_hand, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lens.values[-1], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unit", ["component", "head"])
def test_direct_logit_attribution_adds_up_to_the_logit_before_the_cap(trained_model: Shard, unit: str) -> None:
    bridge = to_transformer_lens(trained_model)
    bridge.enable_compatibility_mode(disable_warnings=True)
    tokens = bridge.to_tokens(COPY_TEXT)
    answer = int(tokens[0, 1])
    shares = direct_logit_attribution(bridge, tokens, answer, unit=unit)
    with torch.no_grad():
        whole = uncapped(trained_model(tokens)[0, -1, answer])
    torch.testing.assert_close(shares.attribution.sum(), whole, rtol=1e-3, atol=1e-3)


def test_attribution_patching_is_gradient_times_change(trained_model: Shard, pair: tuple[Tensor, Tensor]) -> None:
    clean, corrupt = pair
    answer_logit = preference(clean)
    scores = attribution_patch(to_transformer_lens(trained_model), clean, corrupt, answer_logit).node_scores
    names = [f"blocks.{layer}.hook_mlp_out" for layer in range(4)]
    _, clean_cache = trained_model.run_with_cache(clean, names_filter=names)
    corrupt_cache: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: object) -> None:
        corrupt_cache[hook.name] = x  # type: ignore[attr-defined]

    def see(gradient: Tensor, hook: object) -> None:
        gradients[hook.name] = gradient  # type: ignore[attr-defined]

    with trained_model.hooks(fwd_hooks=[(n, keep) for n in names], bwd_hooks=[(n, see) for n in names]):
        answer_logit(trained_model(corrupt)).backward()
    for layer, name in enumerate(names):
        by_hand = ((clean_cache[name] - corrupt_cache[name].detach()) * gradients[name]).sum(dim=-1)[0]
        theirs = {
            node.position: score for node, score in scores.items() if node.kind == "mlp_out" and node.layer == layer
        }
        torch.testing.assert_close(torch.tensor([theirs[pos] for pos in sorted(theirs)]), by_hand, rtol=1e-3, atol=1e-4)


def test_the_svd_interpreter_reads_the_right_matrices(trained_model: Shard) -> None:
    bridge = to_transformer_lens(trained_model)
    interpreter, block = SVDInterpreter(bridge), trained_model.blocks[3]
    matrices = {
        ("OV", 2): block.attn.W_V[2] @ block.attn.W_O[2],
        ("w_in", None): block.mlp.W_in.T * block.ln2.w,
        ("w_out", None): block.mlp.W_out,
    }
    for (kind, head), matrix in matrices.items():
        vectors = interpreter.get_singular_vectors(kind, layer_index=3, num_vectors=3, head_index=head)
        directions = torch.linalg.svd(matrix.detach())[2][:3]
        by_hand = trained_model.W_U.detach().T @ directions.T
        # A singular vector's sign is arbitrary.
        torch.testing.assert_close(vectors[:, 0].abs(), by_hand.abs(), rtol=1e-3, atol=1e-4)
