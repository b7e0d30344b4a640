"""The logit lens and direct attribution, against the model's own logits and TransformerLens's tools."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shardscope import Shard
from shardscope.interop import to_transformer_lens
from shardscope.microscope import MicroscopeError, attribution, logit_lens, residuals
from shardscope.microscope import logits as room
from shardscope.model import PromptError

IDS = torch.arange(50) * 7 % 300


def uncapped(logits: torch.Tensor, cap: float = 30.0) -> torch.Tensor:
    return cap * torch.atanh(logits.double() / cap)


def test_the_last_row_of_the_lens_is_the_models_own_prediction(tiny_model: Shard) -> None:
    lens = logit_lens(tiny_model, IDS, top=3)
    with torch.no_grad():
        probabilities = tiny_model(IDS[None])[0].softmax(dim=-1)
    best = probabilities.topk(3)
    assert lens.tokens.shape == (5, 50, 3)
    np.testing.assert_array_equal(lens.tokens[-1], best.indices.numpy())
    np.testing.assert_allclose(lens.probabilities[-1], best.values.numpy(), rtol=1e-4)
    entropy = torch.distributions.Categorical(probabilities).entropy() / np.log(2)
    np.testing.assert_allclose(lens.entropy[-1], entropy.numpy(), rtol=1e-4)


def test_the_lens_ranks_the_token_that_really_follows(tiny_model: Shard) -> None:
    lens = logit_lens(tiny_model, IDS)
    with torch.no_grad():
        _, cache = tiny_model.run_with_cache(IDS[None])
        for row, stream in enumerate([cache["hook_embed"], *(cache["resid_post", layer] for layer in range(4))]):
            logits = tiny_model.unembed(tiny_model.ln_final(stream))[0]
            order = logits.argsort(dim=-1, descending=True).numpy()
            ranks = [order[pos].tolist().index(int(IDS[pos + 1])) for pos in range(49)]
            np.testing.assert_array_equal(lens.next_rank[row], [*ranks, -1])
            following = logits.softmax(dim=-1)[torch.arange(49), IDS[1:]]
            np.testing.assert_allclose(lens.next_probability[row, :49], following.numpy(), rtol=1e-4)
    assert np.isnan(lens.next_probability[:, 49]).all()


def test_every_row_of_the_lens_is_transformer_lens_logit_lens(trained_model: Shard) -> None:
    pytest.importorskip("transformer_lens")
    from transformer_lens.tools.analysis import logit_lens as theirs

    values = theirs(to_transformer_lens(trained_model), IDS[None], positions=None).values[:, 0].detach()
    lens, probabilities = logit_lens(trained_model, IDS, top=1), values.softmax(dim=-1)
    np.testing.assert_allclose(lens.probabilities[..., 0], probabilities.amax(dim=-1).numpy(), rtol=1e-3)
    chosen = probabilities.gather(2, torch.tensor(lens.tokens))
    np.testing.assert_allclose(chosen.numpy(), lens.probabilities, rtol=1e-3)


def test_a_kept_residual_stream_is_read_out_without_another_pass(
    tiny_model: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, some = residuals(tiny_model, IDS), residuals(tiny_model, IDS, [7, -1])
    expected = logit_lens(tiny_model, IDS, positions=[7, 30, 49], top=3)
    monkeypatch.setattr(room, "attend_in_bands", None)
    lens = kept.lens([7, 30, -1], top=3)
    np.testing.assert_array_equal(lens.tokens, expected.tokens)
    np.testing.assert_allclose(lens.probabilities, expected.probabilities, rtol=1e-5)
    np.testing.assert_array_equal(some.lens(top=3).next_rank, expected.next_rank[:, [0, 2]])
    with pytest.raises(MicroscopeError, match="position 30 was not recorded"):
        some.lens([30])


def test_chosen_positions_are_those_of_the_whole_prompt(tiny_model: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = logit_lens(tiny_model, IDS)
    some = logit_lens(tiny_model, IDS, positions=[-1, 3])
    assert some.positions == (49, 3)
    np.testing.assert_array_equal(some.tokens, whole.tokens[:, [49, 3]])
    monkeypatch.setattr(room, "LENS_ROWS", 7)  # in pieces
    np.testing.assert_allclose(logit_lens(tiny_model, IDS).entropy, whole.entropy, rtol=1e-5)


@pytest.mark.parametrize("against", [None, 61])
@pytest.mark.parametrize("position", [0, 20, -1])
def test_an_attribution_adds_up_to_the_logit_before_the_cap(
    tiny_model: Shard, position: int, against: int | None
) -> None:
    found = attribution(tiny_model, IDS, position, token=17, against=against)
    with torch.no_grad():
        logits = uncapped(tiny_model(IDS[None])[0, position])
    expected = logits[17] - (0 if against is None else logits[against])
    assert found.position == position % 50
    assert found.heads.shape == (4, 4)
    parts = [found.embed, *found.heads.flatten().tolist(), *found.mlps.tolist()]
    rounding = 1e-5 * sum(map(abs, parts))
    assert sum(parts) == pytest.approx(found.logit, rel=0, abs=rounding)
    assert found.logit == pytest.approx(float(expected), rel=0, abs=rounding)


def test_an_attribution_is_transformer_lens_direct_logit_attribution(trained_model: Shard) -> None:
    pytest.importorskip("transformer_lens")
    from transformer_lens.tools.analysis import direct_logit_attribution

    bridge = to_transformer_lens(trained_model)
    bridge.enable_compatibility_mode(disable_warnings=True)
    for against in (None, 9):
        ours = attribution(trained_model, IDS, 30, token=17, against=against)
        for unit in ("head", "component"):
            theirs = direct_logit_attribution(bridge, IDS[None], 17, against, unit=unit, pos=30)
            values = dict(zip(theirs.labels, theirs.attribution.flatten().tolist(), strict=True))
            if unit == "head":
                shared = {f"L{layer}H{head}": float(x) for (layer, head), x in np.ndenumerate(ours.heads)}
            else:
                shared = {f"{layer}_mlp_out": float(x) for layer, x in enumerate(ours.mlps)} | {"embed": ours.embed}
            assert shared == pytest.approx({name: values[name] for name in shared}, abs=1e-3)


def test_without_a_token_the_likeliest_is_explained(tiny_model: Shard) -> None:
    with torch.no_grad():
        likeliest = int(tiny_model(IDS[None])[0, 20].argmax())
    assert attribution(tiny_model, IDS, 20).token == likeliest


def test_the_largest_parts_come_first_with_their_names(tiny_model: Shard) -> None:
    found = attribution(tiny_model, IDS, 20, token=17)
    everything = found.largest(100)
    assert len(everything) == 1 + 16 + 4
    assert [abs(part) for _, part in everything] == sorted((abs(part) for _, part in everything), reverse=True)
    assert dict(everything)["L3H1"] == found.heads[3, 1]
    assert dict(everything)["MLP 2"] == found.mlps[2]
    assert found.largest(2) == everything[:2]


def test_what_cannot_be_read_out_is_refused_in_one_sentence(tiny_model: Shard) -> None:
    for call, says in (
        (lambda: logit_lens(tiny_model, IDS[:0]), "the prompt is empty"),
        (lambda: logit_lens(tiny_model, IDS, positions=[50]), "there is no token 50; this prompt has tokens 0 to 49"),
        (lambda: logit_lens(tiny_model, IDS, top=0), "top=0 tokens cannot be shown; use 1 to 300"),
        (lambda: attribution(tiny_model, IDS, -51), "there is no token -51"),
        (lambda: attribution(tiny_model, IDS, 3, token=300), "token id 300 is outside the vocabulary"),
        (lambda: attribution(tiny_model, IDS, 3, token=1, against=-2), "token id -2 is outside"),
    ):
        with pytest.raises((MicroscopeError, PromptError), match=says):
            call()
    assert not any(point.watched for point in tiny_model.hook_dict.values())
