"""Ablated heads, against a model whose weights do the same."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from shardscope import Shard
from shardscope.generation import SamplingConfig, generate
from shardscope.interop import to_transformer_lens
from shardscope.microscope import MicroscopeError, ablated, ablation_effect, find_heads, head_scores, read
from shardscope.model import PromptError

IDS = torch.arange(50) * 7 % 300
HEADS = [(1, 2), (3, 0), (1, 0)]


def without_weights(model: Shard) -> Shard:
    """The same model with the output weights of HEADS at zero."""
    copy = deepcopy(model)
    with torch.no_grad():
        for layer, head in HEADS:
            copy.blocks[layer].attn.W_O[head] = 0
    return copy


def test_a_zeroed_head_is_a_head_without_output_weights(tiny_model: Shard) -> None:
    with torch.no_grad():
        expected = without_weights(tiny_model)(IDS[None])
        with ablated(tiny_model, HEADS):
            torch.testing.assert_close(tiny_model(IDS[None]), expected)
        assert not torch.allclose(tiny_model(IDS[None]), expected, atol=1e-3)


def test_a_mean_ablated_head_writes_its_mean_wherever_it_is(trained_model: Shard) -> None:
    """The same through TransformerLens's hooks: every position of the head's output is its mean over positions."""
    pytest.importorskip("transformer_lens")
    bridge = to_transformer_lens(trained_model)
    _, cache = bridge.run_with_cache(IDS[None])

    def average(layer: int, head: int) -> tuple[str, Callable[..., torch.Tensor]]:
        def hook_fn(z: torch.Tensor, hook: object) -> torch.Tensor:
            z = z.clone()
            z[:, :, head] = cache["z", layer][:, :, head].mean(dim=1, keepdim=True)
            return z

        return f"blocks.{layer}.attn.hook_z", hook_fn

    with torch.no_grad():
        theirs = bridge.run_with_hooks(IDS[None], fwd_hooks=[average(*head) for head in HEADS])
        with ablated(trained_model, HEADS, "mean", reference=IDS):
            torch.testing.assert_close(trained_model(IDS[None]), theirs, rtol=1e-4, atol=1e-4)


def test_the_continuation_is_that_of_the_model_without_the_heads(tiny_model: Shard) -> None:
    config = SamplingConfig(max_new_tokens=12)
    prompt = IDS[:20].tolist()
    (expected,) = generate(without_weights(tiny_model), [prompt], config)
    with ablated(tiny_model, HEADS):
        (found,) = generate(tiny_model, [prompt], config)
    (whole,) = generate(tiny_model, [prompt], config)
    assert found.ids == expected.ids
    assert found.ids != whole.ids


def test_a_mean_ablation_holds_while_one_token_at_a_time_is_generated(tiny_model: Shard) -> None:
    config = SamplingConfig(max_new_tokens=8)
    with ablated(tiny_model, HEADS, "mean", reference=IDS), torch.no_grad():
        (found,) = generate(tiny_model, [IDS[:20].tolist()], config)
        ids = IDS[:20]
        for _ in range(8):
            ids = torch.cat([ids, tiny_model(ids[None])[0, -1].argmax()[None]])
    assert found.ids == tuple(ids[20:].tolist())


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_the_effect_is_what_the_two_predictions_differ_by(tiny_model: Shard, mode: str) -> None:
    effect = ablation_effect(tiny_model, IDS, HEADS, mode, position=30, top=5)
    with torch.no_grad():
        whole = tiny_model(IDS[None])[0]
        with ablated(tiny_model, HEADS, mode, reference=IDS):
            without = tiny_model(IDS[None])[0]
    kl = F.kl_div(without.log_softmax(-1), whole.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(effect.kl, kl.numpy() / np.log(2), rtol=1e-3, atol=1e-6)
    loss = F.cross_entropy(without[:-1], IDS[1:]) - F.cross_entropy(whole[:-1], IDS[1:])
    assert effect.loss_change == pytest.approx(loss.item(), abs=1e-5)
    assert set(whole[30].topk(5).indices.tolist()) <= set(effect.tokens.tolist())
    assert set(without[30].topk(5).indices.tolist()) <= set(effect.tokens.tolist())
    tokens = torch.tensor(effect.tokens)
    np.testing.assert_allclose(effect.before, whole[30].softmax(-1)[tokens].numpy(), rtol=1e-4)
    np.testing.assert_allclose(effect.after, without[30].softmax(-1)[tokens].numpy(), rtol=1e-4)
    np.testing.assert_allclose(effect.logit_change, (without - whole)[30, tokens].numpy(), atol=1e-4)
    assert (np.diff(effect.before) <= 0).all()
    assert (effect.heads, effect.mode, effect.position) == (tuple(HEADS), mode, 30)


def test_a_mean_may_be_that_of_other_tokens_than_those_it_is_tried_on(tiny_model: Shard) -> None:
    effect = ablation_effect(tiny_model, IDS, HEADS, "mean", position=30, top=5, reference=IDS[:20])
    with torch.no_grad(), ablated(tiny_model, HEADS, "mean", reference=IDS[:20]):
        without = tiny_model(IDS[None])[0, 30].softmax(-1)
    np.testing.assert_allclose(effect.after, without[torch.tensor(effect.tokens)].numpy(), rtol=1e-4)
    own = ablation_effect(tiny_model, IDS, HEADS, "mean", position=30, top=5)
    assert not np.allclose(own.kl, effect.kl, rtol=1e-3)


def test_ablating_the_induction_heads_ends_the_copying(trained_model: Shard) -> None:
    unit = 1 + torch.randperm(64, generator=torch.Generator().manual_seed(3))[:12]
    ids = torch.cat([torch.zeros(1, dtype=torch.long), unit.repeat(3)])
    scores = head_scores(read(trained_model, ids))
    copiers = [(score.layer, score.head) for score in find_heads(scores, "induction") if score.induction > 0.1]
    assert copiers
    without = ablation_effect(trained_model, ids, copiers)
    assert without.loss_change > 1
    # The first copy has nothing to repeat: it is the later ones whose predictions change.
    assert without.kl[13:].mean() > 2 * without.kl[:12].mean()
    # Layers below hold the other half of the circuit, the heads that induction heads read from; which heads they are
    # depends on rounding. From the first induction head's layer on, all the other heads together matter less.
    first = min(layer for layer, _ in copiers)
    others = {(score.layer, score.head) for score in scores if score.layer >= first} - set(copiers)
    if others:
        assert without.loss_change > 2 * abs(ablation_effect(trained_model, ids, sorted(others)).loss_change)


def test_hooks_are_gone_after_an_ablation_also_when_it_raises(tiny_model: Shard) -> None:
    with pytest.raises(RuntimeError, match="stop"), ablated(tiny_model, HEADS):
        raise RuntimeError("stop")
    assert not any(point.watched for point in tiny_model.hook_dict.values())


def test_an_ablation_that_cannot_be_made_is_refused_in_one_sentence(tiny_model: Shard) -> None:
    for call, says in (
        (lambda: ablation_effect(tiny_model, IDS, []), "no head was named"),
        (lambda: ablation_effect(tiny_model, IDS, [(4, 0)]), "there is no head 0 in layer 4; .* layers 0 to 3"),
        (lambda: ablation_effect(tiny_model, IDS, [(0, -1)]), "there is no head -1 in layer 0"),
        (lambda: ablation_effect(tiny_model, IDS[:0], HEADS), "the prompt is empty"),
        (lambda: ablation_effect(tiny_model, IDS, HEADS, position=50), "there is no token 50"),
        (lambda: ablated(tiny_model, HEADS, "mean").__enter__(), "a mean ablation needs reference="),
    ):
        with pytest.raises((MicroscopeError, PromptError), match=says):
            call()
