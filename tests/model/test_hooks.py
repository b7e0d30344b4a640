from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from rounding import A_LOGIT
from torch import Tensor

from shardscope import Shard
from shardscope.model.hooks import HookPoint

IDS = torch.arange(20)[None]


def per_layer(layer: int) -> dict[str, tuple[int, ...]]:
    batch, pos, d_model, head, d_head, d_mlp = 1, 20, 32, 4, 8, 48
    shapes: dict[str, tuple[int, ...]] = {
        f"hook_{name}": (batch, pos, d_model)
        for name in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
    }
    shapes |= {f"attn.hook_{name}": (batch, pos, head, d_head) for name in ("q", "k", "v", "rot_q", "rot_k", "z")}
    shapes |= {f"attn.hook_{name}": (batch, head, pos, pos) for name in ("attn_scores", "pattern")}
    shapes["attn.hook_result"] = (batch, pos, head, d_model)
    shapes |= {f"mlp.hook_{name}": (batch, pos, d_mlp) for name in ("pre", "pre_linear", "post")}
    for norm in ("ln1", "ln2"):
        shapes |= {f"{norm}.hook_scale": (batch, pos, 1), f"{norm}.hook_normalized": (batch, pos, d_model)}
    return {f"blocks.{layer}.{name}": shape for name, shape in shapes.items()}


def test_the_hook_points_are_transformer_lens_s_by_name_and_shape(tiny_model: Shard) -> None:
    _, cache = tiny_model.run_with_cache(IDS)
    expected = {"hook_embed": (1, 20, 32), "ln_final.hook_scale": (1, 20, 1), "ln_final.hook_normalized": (1, 20, 32)}
    for layer in range(4):
        expected |= per_layer(layer)
    assert {name: tuple(value.shape) for name, value in cache.items()} == expected
    assert set(tiny_model.hook_dict) == set(expected)


def test_watching_everything_changes_nothing(tiny_model: Shard) -> None:
    watched, _ = tiny_model.run_with_cache(IDS)
    torch.testing.assert_close(watched, tiny_model(IDS), atol=A_LOGIT, rtol=1e-5)


def test_the_parts_add_up_to_the_residual_stream(tiny_model: Shard) -> None:
    _, cache = tiny_model.run_with_cache(IDS)
    parts = cache["hook_embed"] + sum(cache["attn_out", layer] + cache["mlp_out", layer] for layer in range(4))
    torch.testing.assert_close(parts, cache["resid_post", -1], atol=A_LOGIT, rtol=1e-5)
    torch.testing.assert_close(cache["result", 2].sum(dim=2), cache["attn_out", 2], atol=A_LOGIT, rtol=1e-5)


def test_pattern_rows_sum_to_one_and_are_zero_past_the_window(tiny_model: Shard) -> None:
    _, cache = tiny_model.run_with_cache(IDS, names_filter=lambda name: name.endswith("pattern"))
    assert len(cache) == 4
    torch.testing.assert_close(cache["pattern", 0].sum(dim=-1), torch.ones(1, 4, 20))
    assert cache["pattern", 0][0, :, 19, :12].abs().max() == 0
    assert cache["pattern", 1][0, :, 19, :12].min() > 0


def test_patterns_are_written_out_only_when_watched(tiny_model: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    def spy(*args: object, **kwargs: object) -> Tensor:
        written.append(1)
        return original(*args, **kwargs)

    from shardscope.model import shard

    original = shard.attention_scores
    monkeypatch.setattr(shard, "attention_scores", spy)
    tiny_model(IDS)
    tiny_model.run_with_cache(IDS, names_filter=["blocks.1.attn.hook_z", "blocks.1.hook_attn_out"])
    assert written == []
    tiny_model.run_with_cache(IDS, names_filter="blocks.1.attn.hook_pattern")
    assert written == [1]


def test_a_hook_that_returns_a_value_replaces_the_activation(tiny_model: Shard) -> None:
    def ablate(z: Tensor, /, *, hook: HookPoint) -> Tensor:
        z = z.clone()
        z[:, :, 2] = 0
        return z

    logits = tiny_model.run_with_hooks(IDS, fwd_hooks=[("blocks.1.attn.hook_z", ablate)])
    with torch.no_grad():
        tiny_model.blocks[1].attn.W_O[2] = 0
    torch.testing.assert_close(logits, tiny_model(IDS), atol=A_LOGIT, rtol=1e-5)


def test_a_hook_on_scores_or_pattern_steers_the_output(tiny_model: Shard) -> None:
    def only_self(pattern: Tensor, /, *, hook: HookPoint) -> Tensor:
        return torch.eye(pattern.shape[-1]).expand_as(pattern)

    _, cache = tiny_model.run_with_cache(IDS, names_filter="blocks.0.attn.hook_v")
    with tiny_model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", only_self)]):
        _, steered = tiny_model.run_with_cache(IDS, names_filter="blocks.0.attn.hook_z")
    torch.testing.assert_close(steered["z", 0], cache["v", 0])


def test_hooks_are_gone_after_a_call_that_raises(tiny_model: Shard) -> None:
    def fail(x: Tensor, /, *, hook: HookPoint) -> None:
        raise RuntimeError("planted")

    for call in (tiny_model.run_with_hooks,):
        with pytest.raises(RuntimeError, match="planted"):
            call(IDS, fwd_hooks=[("hook_embed", fail)], bwd_hooks=[("hook_embed", fail)])
    with pytest.raises(ValueError, match="do not fit"):
        tiny_model.run_with_cache(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(KeyError, match="no hook point 'hook_embd'"):
        tiny_model.run_with_hooks(IDS, fwd_hooks=[("hook_embed", fail), ("hook_embd", fail)])
    assert not any(point.watched for point in tiny_model.hook_dict.values())


def test_a_removed_hook_leaves_the_others_attached(tiny_model: Shard) -> None:
    seen: list[str] = []
    tiny_model.add_hook("hook_embed", lambda x, hook: seen.append("stays"))
    remove = tiny_model.add_hook("hook_embed", lambda x, hook: seen.append("goes"))
    remove()
    tiny_model(IDS)
    assert seen == ["stays"]
    tiny_model.reset_hooks()
    tiny_model(IDS)
    assert seen == ["stays"]


def test_a_function_attached_twice_is_taken_off_once(tiny_model: Shard) -> None:
    seen: list[int] = []

    def count(x: Tensor, /, *, hook: HookPoint) -> None:
        seen.append(1)

    tiny_model.add_hook("hook_embed", count)
    tiny_model.run_with_hooks(IDS, fwd_hooks=[("hook_embed", count)])
    assert len(seen) == 2
    tiny_model(IDS)
    assert len(seen) == 3


def test_every_activation_may_be_changed_in_place_with_gradients_on(tiny_model: Shard) -> None:
    """The idiom of the README: the hook writes into what it is given and returns nothing. Then backward() runs."""

    def outcome(name: str, hook: Callable[..., Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        tiny_model.zero_grad()
        logits = tiny_model.run_with_hooks(IDS, fwd_hooks=[(name, hook)])
        logits[..., :3].sum().backward()
        return logits.detach(), [block.attn.W_V.grad.clone() for block in tiny_model.blocks]

    for name in tiny_model.hook_dict:

        def halve(x: Tensor, /, *, hook: HookPoint) -> None:
            x[..., :1] *= 0.5

        def replace(x: Tensor, /, *, hook: HookPoint) -> Tensor:
            return torch.cat([x[..., :1] * 0.5, x[..., 1:]], dim=-1)

        in_place, expected = outcome(name, halve), outcome(name, replace)
        torch.testing.assert_close(in_place, expected, rtol=1e-4, atol=1e-4, msg=name)


def test_backward_hooks_see_and_replace_the_gradient(tiny_model: Shard) -> None:
    seen: dict[str, Tensor] = {}

    def see(gradient: Tensor, /, *, hook: HookPoint) -> None:
        seen[hook.name] = gradient.detach()

    with tiny_model.hooks(bwd_hooks=[("blocks.2.hook_resid_pre", see)]):
        tiny_model(IDS)[0, -1, 7].backward()
    reference = tiny_model.run_with_cache(IDS, names_filter="blocks.2.hook_resid_pre")[1]["resid_pre", 2]
    reference = reference.requires_grad_()
    x = reference
    for block in tiny_model.blocks[2:]:
        x = block(x)
    tiny_model.unembed(tiny_model.ln_final(x))[0, -1, 7].backward()
    torch.testing.assert_close(seen["blocks.2.hook_resid_pre"], reference.grad)

    tiny_model.zero_grad()
    stop = lambda gradient, hook: torch.zeros_like(gradient)  # noqa: E731
    with tiny_model.hooks(bwd_hooks=[("blocks.2.hook_resid_pre", stop)]):
        tiny_model(IDS)[0, -1, 7].backward()
    assert tiny_model.blocks[1].mlp.W_in.grad.abs().max() == 0
    assert tiny_model.blocks[2].mlp.W_in.grad.abs().max() > 0


def test_stopping_at_a_layer_gives_the_residual_before_it_and_runs_no_further(tiny_model: Shard) -> None:
    _, full = tiny_model.run_with_cache(IDS)
    residual, cache = tiny_model.run_with_cache(IDS, stop_at_layer=2)
    torch.testing.assert_close(residual, full["resid_pre", 2], atol=A_LOGIT, rtol=1e-5)
    assert "blocks.1.hook_resid_post" in cache
    assert not any(name.startswith(("blocks.2", "ln_final")) for name in cache)


# In a process of its own: torch.compile cannot trace through the type checks that the tests switch on.
COMPILED = """
import torch
from shardscope import Shard, ShardConfig

config = ShardConfig(vocab_size=300, n_ctx=64, d_model=32, n_layers=2, n_heads=4, d_head=8, d_mlp=48, window=8)
model, ids, seen = Shard(config).eval(), torch.arange(20)[None], []
compiled = torch.compile(model, backend="eager")
plain = compiled(ids)
with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook: seen.append(hook.name) or x * 0)]):
    ablated = compiled(ids)
assert seen == ["blocks.1.hook_mlp_out"], seen
assert not torch.allclose(plain, ablated)
torch.testing.assert_close(compiled(ids), plain)

# Attached before anything was compiled, it fires on every call too, and is not compiled itself.
other = Shard(config).eval()
with other.hooks(fwd_hooks=[("blocks.0.attn.hook_z", lambda x, hook: seen.append(torch.compiler.is_compiling()))]):
    seen.clear()
    compiled = torch.compile(other, backend="eager")
    for calls in (1, 2, 3):
        torch.testing.assert_close(compiled(ids), other(ids))
        assert seen == [False] * 2 * calls, seen
"""

UNCOMPILED = """
import sys
import torch
from shardscope import Shard, ShardConfig

before = set(sys.modules)
model = Shard(ShardConfig(vocab_size=300, n_ctx=64, d_model=32, n_layers=2, n_heads=4, d_head=8, d_mlp=48, window=8))
ids = torch.arange(20)[None]
_, cache = model.run_with_cache(ids, return_type="loss", incl_bwd=True)
assert "blocks.1.hook_mlp_out_grad" in cache
model.run_with_hooks(ids, fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook: x * 0)])
print([name for name in sys.modules if name.startswith("torch._dynamo") and name not in before])
"""


def test_a_hook_on_a_compiled_model_fires() -> None:
    subprocess.run([sys.executable, "-c", COMPILED], check=True, timeout=240)


def test_hooks_do_without_the_compiler_where_nothing_is_compiled() -> None:
    shown = subprocess.run([sys.executable, "-c", UNCOMPILED], check=True, capture_output=True, text=True, timeout=240)
    assert shown.stdout.strip() == "[]"


def test_one_layer_s_cache_keeps_one_layer_s_tensors(tiny_model: Shard) -> None:
    _, cache = tiny_model.run_with_cache(IDS, names_filter=lambda name: name.startswith("blocks.3."))
    assert {name.split(".")[1] for name in cache} == {"3"}
    with pytest.raises(KeyError, match=r"no activation .blocks\.3\.hook_patern. was cached"):
        cache["patern", 3]
