"""The cache of a run, each name and method against TransformerLens's own on a bridge over the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shardscope import Shard
from shardscope.model import Cache
from shardscope.model.activation_cache import activation_name

TEXT = "K7Q2M9X4K7Q2M9X4K7Q2"


def close(ours: Tensor, theirs: Tensor, what: object = "") -> None:
    """Within what float32 can hold of the largest value of a row."""
    assert ours.shape == theirs.shape, what
    bound = 2e-5 * (1 + theirs.abs().amax(dim=-1, keepdim=True))
    assert ((ours - theirs).abs() <= bound).all(), what


@pytest.fixture(scope="module")
def runs(trained_config: Any, trained_weights: Any, tiny_tokenizer: Any) -> tuple[Shard, Cache, Any, Any]:
    """The native model and its cache, the bridge in compatibility mode and its cache."""
    pytest.importorskip("transformer_lens")
    from shardscope.interop import to_transformer_lens

    model = Shard(trained_config, tiny_tokenizer)
    model.load_state_dict(trained_weights)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a norm whose weight is 1 would hide where it is left out
        model.ln_final.w.mul_(1 + torch.rand(model.ln_final.w.shape, generator=generator))
    bridge = to_transformer_lens(model.eval())
    bridge.enable_compatibility_mode(disable_warnings=True)
    bridge.set_use_attn_result(True)
    with torch.no_grad():
        return model, model.run_with_cache(TEXT)[1], bridge, bridge.run_with_cache(TEXT)[1]


def test_short_names_are_transformer_lens_s() -> None:
    theirs = pytest.importorskip("transformer_lens.utilities").get_act_name
    names = "q k v z rot_q rot_k result pattern attn_scores pre post pre_linear resid_pre resid_mid resid_post attn_out"
    for name in [*names.split(), "mlp_out", "attn", "attn_logits", "key", "query", "value", "mlp_pre", "mlp_post"]:
        for layer in (0, 3, 11):
            for part in (None, "a", "m", "attn", "mlp"):
                assert activation_name(name, layer, part) == theirs(name, layer, part), (name, layer, part)
    for name in ("embed", "hook_embed", "blocks.3.attn.hook_z", "scale", "normalized", "k6", "pattern3", "scale4ln1"):
        assert activation_name(name) == theirs(name), name
    for name in ("scale", "normalized"):
        for part in ("ln1", "ln2"):
            assert activation_name(name, 2, part) == theirs(name, 2, part)


def test_an_activation_is_found_by_each_of_its_names(tiny_model: Shard) -> None:
    _, cache = tiny_model.run_with_cache([1, 2, 3])
    for name, key in (
        ("blocks.3.attn.hook_pattern", ("pattern", 3)),
        ("blocks.3.attn.hook_pattern", ("pattern", -1)),
        ("blocks.0.attn.hook_z", ("z", -4)),
        ("blocks.1.ln2.hook_scale", ("scale", 1, "ln2")),
        ("hook_embed", "embed"),
        ("ln_final.hook_scale", "scale"),
        ("blocks.2.attn.hook_k", "k2"),
    ):
        assert cache[key] is cache[name]
        assert key in cache
        assert cache.get(key) is cache[name]
    for key in (("pattern", 4), ("pattern", -5), "embd", ("nothing", 0), 7, ("pattern",), None):
        assert key not in cache
    assert cache.get(("pattern", 9)) is None
    assert cache.get("nothing", 5) == 5
    with pytest.raises(
        KeyError, match=r"no activation 'blocks\.9\.attn\.hook_pattern' was cached; cached are hook_embed"
    ):
        cache["pattern", 9]


def test_negative_layers_count_from_the_model_s_last_whatever_was_cached(tiny_model: Shard) -> None:
    _, cache = tiny_model.run_with_cache([1, 2, 3], names_filter=lambda name: ".1.attn" in name)
    assert ("pattern", -1) not in cache
    with pytest.raises(KeyError, match=r"blocks\.3\.attn\.hook_pattern"):
        cache["pattern", -1]
    assert cache["pattern", -3] is cache["pattern", 1]


DIRECTIONS = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
METHODS: dict[str, Callable[[Any], Any]] = {
    "accumulated": lambda c: c.accumulated_resid(return_labels=True),
    "accumulated with mid": lambda c: c.accumulated_resid(2, incl_mid=True, return_labels=True),
    "accumulated at the mlp": lambda c: c.accumulated_resid(1, mlp_input=True, return_labels=True),
    "accumulated, one position": lambda c: c.accumulated_resid(pos_slice=-1, return_labels=True),
    "accumulated inside, normed": lambda c: c.accumulated_resid(2, apply_ln=True, return_labels=True),
    "decomposed": lambda c: c.decompose_resid(return_labels=True),
    "decomposed upto": lambda c: c.decompose_resid(2, mlp_input=True, return_labels=True),
    "decomposed, attention": lambda c: c.decompose_resid(mode="attn", incl_embeds=False, return_labels=True),
    "decomposed, mlps": lambda c: c.decompose_resid(-1, mode="mlp", return_labels=True),
    "decomposed, normed": lambda c: c.decompose_resid(apply_ln=True, pos_slice=(2, 9, 3), return_labels=True),
    "heads": lambda c: c.stack_head_results(return_labels=True),
    "heads upto": lambda c: c.stack_head_results(2, pos_slice=[0, 5], return_labels=True),
    "heads and the rest": lambda c: c.stack_head_results(3, incl_remainder=True, apply_ln=True, return_labels=True),
    "no heads": lambda c: c.stack_head_results(0),
    "neurons": lambda c: c.stack_neuron_results(2, return_labels=True),
    "neurons and the rest": lambda c: c.stack_neuron_results(
        2, pos_slice=-1, neuron_slice=(3, 9), incl_remainder=True, apply_ln=True, return_labels=True
    ),
    "one neuron of each": lambda c: c.stack_neuron_results(-1, neuron_slice=5, return_labels=True),
    "no neurons": lambda c: c.stack_neuron_results(0),
    "neurons before an mlp": lambda c: c.stack_neuron_results(1, incl_remainder=True, mlp_input=True, apply_ln=True),
    "neurons along a direction": lambda c: c.stack_neuron_results(
        -1, project_output_onto=DIRECTIONS[:, 0], incl_remainder=True, apply_ln=True
    ),
    "neurons of a layer": lambda c: c.get_neuron_results(1, neuron_slice=[2, 7], pos_slice=(1, 5)),
    "a neuron along directions": lambda c: c.get_neuron_results(1, 4, project_output_onto=DIRECTIONS),
    "neurons of a layer along one": lambda c: c.get_neuron_results(0, project_output_onto=DIRECTIONS[:, 1]),
    "everything": lambda c: c.get_full_resid_decomposition(2, return_labels=True),
    "everything, whole mlps": lambda c: c.get_full_resid_decomposition(
        expand_neurons=False, apply_ln=True, return_labels=True
    ),
    "everything before an mlp": lambda c: c.get_full_resid_decomposition(1, mlp_input=True, apply_ln=True, pos_slice=3),
    "everything before the first": lambda c: c.get_full_resid_decomposition(0, return_labels=True),
    "everything along directions": lambda c: c.get_full_resid_decomposition(
        project_output_onto=DIRECTIONS, apply_ln=True, return_labels=True
    ),
    "everything along one": lambda c: c.get_full_resid_decomposition(
        2, expand_neurons=False, project_output_onto=DIRECTIONS[:, 0], pos_slice=[0, 4]
    ),
    "one activation": lambda c: c.stack_activation("z"),
    "norms": lambda c: c.stack_activation("scale", 2, "ln2"),
    "normed for a layer": lambda c: c.apply_ln_to_stack(c.decompose_resid(1), 1, mlp_input=True),
    "normed for the end": lambda c: c.apply_ln_to_stack(c.decompose_resid(pos_slice=3), pos_slice=3),
    "logits": lambda c: c.logit_attrs(c.decompose_resid(), "Q"),
    "logits of an id": lambda c: c.logit_attrs(c.stack_head_results(pos_slice=-1), 17, pos_slice=-1),
    "a difference": lambda c: c.logit_attrs(c.decompose_resid(), "Q", "M"),
    "for each row": lambda c: c.logit_attrs(c.decompose_resid(), torch.tensor([5]), torch.tensor([9])),
    "for each position": lambda c: c.logit_attrs(c.decompose_resid(), torch.arange(21)[None]),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_gives_what_transformer_lens_s_gives(runs: tuple[Shard, Cache, Any, Any], method: str) -> None:
    _, ours, _, theirs = runs
    found, expected = METHODS[method](ours), METHODS[method](theirs)
    if isinstance(expected, tuple):
        assert found[1] == expected[1]
        found, expected = found[0], expected[0]
    close(found, expected, method)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_without_the_batch_axis_gives_the_same(runs: tuple[Shard, Cache, Any, Any], method: str) -> None:
    model, ours, _, _ = runs
    if method in ("for each row",):
        return  # asks for a batch
    with torch.no_grad():
        _, single = model.run_with_cache(TEXT, remove_batch_dim=True)
    assert single["z", 0].shape == ours["z", 0].shape[1:]
    found, expected = METHODS[method](single), METHODS[method](ours)
    found, expected = (x[0] if isinstance(x, tuple) else x for x in (found, expected))
    stacked = method not in ("neurons of a layer", "a neuron along directions", "neurons of a layer along one")
    close(found, expected.squeeze(1 if stacked else 0), method)


def test_the_parts_add_up_to_the_logit_before_the_cap(runs: tuple[Shard, Cache, Any, Any]) -> None:
    model, cache, _, _ = runs
    shares = cache.logit_attrs(cache.stack_head_results(incl_remainder=True, pos_slice=-1), "Q", pos_slice=-1)
    with torch.no_grad():
        logit = model(TEXT)[0, -1, model.to_single_token("Q")]
    cap = model.config.logit_cap
    torch.testing.assert_close(shares.sum(), cap * torch.atanh(logit / cap), rtol=1e-4, atol=1e-4)


def test_the_lens_over_the_accumulated_stream_ends_in_the_model_s_logits(runs: tuple[Shard, Cache, Any, Any]) -> None:
    model, cache, _, _ = runs
    cap = model.config.logit_cap
    with torch.no_grad():
        last = cache.accumulated_resid(apply_ln=True)[-1]
        torch.testing.assert_close(cap * torch.tanh(last @ model.W_U / cap), model(TEXT), rtol=1e-4, atol=1e-4)


def test_heads_are_computed_where_they_were_not_cached(tiny_model: Shard) -> None:
    _, whole = tiny_model.run_with_cache([1, 2, 3])
    _, partial = tiny_model.run_with_cache([1, 2, 3], names_filter=lambda name: name.endswith("hook_z"))
    close(partial.stack_head_results(), whole.stack_head_results())
    partial.compute_head_results()
    close(partial["result", 2], whole["result", 2])


def test_what_does_not_fit_is_refused_in_one_sentence(tiny_model: Shard) -> None:
    _, cache = tiny_model.run_with_cache([[1, 2], [3, 4]])
    for call, says in (
        (lambda: cache.remove_batch_dim(), "a batch of 2 keeps its batch axis"),
        (lambda: cache.accumulated_resid(5), "layer=5: this model has layers 0 to 3"),
        (lambda: cache.logit_attrs(cache.decompose_resid(), 1, torch.tensor([1, 2])), "give both the same shape"),
        (lambda: tiny_model.run_with_cache([1], incl_bwd=True), "calls backward.* on a single number"),
        (lambda: tiny_model.run_with_cache([1], incl_bwd=True, stop_at_layer=1), "leave one of them out"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    with torch.no_grad(), pytest.raises(ValueError, match="needs gradients, which are switched off here"):
        tiny_model.run_with_cache([1, 2], incl_bwd=True, return_type="loss")


# ------------------------------------------------------------------------------------- arguments of a run


def test_losses_and_return_types_are_transformer_lens_s(runs: tuple[Shard, Cache, Any, Any]) -> None:
    model, _, bridge, _ = runs
    with torch.no_grad():
        for choices in ({}, {"loss_per_token": True}):
            close(model(TEXT, return_type="loss", **choices), bridge(TEXT, return_type="loss", **choices))
            ours, theirs = (m(TEXT, return_type="both", **choices) for m in (model, bridge))
            close(ours[0], theirs[0])
            close(ours[1], theirs[1])
        close(model(TEXT, prepend_bos=False), bridge(TEXT, prepend_bos=False))
        assert model(TEXT, return_type=None) is None


@pytest.mark.parametrize("pos_slice", [-1, 3, (2, 9), (None, None, 2), [0, 4]], ids=str)
def test_a_slice_of_the_positions_is_that_of_transformer_lens(
    runs: tuple[Shard, Cache, Any, Any], pos_slice: Any
) -> None:
    model, _, bridge, _ = runs
    with torch.no_grad():
        _, ours = model.run_with_cache(TEXT, pos_slice=pos_slice)
        _, theirs = bridge.run_with_cache(TEXT, pos_slice=pos_slice)
    for name in ("blocks.1.attn.hook_pattern", "blocks.2.attn.hook_z", "blocks.0.hook_resid_mid"):
        close(ours[name], theirs[name], name)


def test_gradients_beside_the_activations_are_transformer_lens_s(runs: tuple[Shard, Cache, Any, Any]) -> None:
    model, _, bridge, _ = runs
    _, ours = model.run_with_cache(TEXT, incl_bwd=True, return_type="loss")
    _, theirs = bridge.run_with_cache(TEXT, incl_bwd=True, return_type="loss")
    model.zero_grad()
    assert len(ours) == 2 * len(model.hook_dict)
    for layer in range(4):
        for name in ("hook_resid_pre", "attn.hook_z", "hook_mlp_out", "attn.hook_pattern"):
            grad = f"blocks.{layer}.{name}_grad"
            scale = theirs[grad].abs().max()
            torch.testing.assert_close(ours[grad] / scale, theirs[grad] / scale, rtol=1e-3, atol=1e-4, msg=grad)


def test_a_cached_activation_owns_its_bytes(tiny_model: Shard) -> None:
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            _, cache = tiny_model.run_with_cache([1, 2, 3, 4])
        storages = [activation.untyped_storage() for activation in cache.values()]
        for (name, activation), storage in zip(cache.items(), storages, strict=True):
            assert storage.nbytes() == activation.numel() * activation.element_size(), name
        assert len({storage.data_ptr() for storage in storages}) == len(storages)
    with torch.no_grad():  # a later hook that writes into the stream does not reach back into what was cached
        _, plain = tiny_model.run_with_cache([1, 2, 3], names_filter="blocks.0.hook_resid_post")
        with tiny_model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: x.zero_())]):
            _, cache = tiny_model.run_with_cache([1, 2, 3], names_filter="blocks.0.hook_resid_post")
    assert torch.equal(cache["resid_post", 0], plain["resid_post", 0])
