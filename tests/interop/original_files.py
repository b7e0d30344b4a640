"""Files as the published checkpoint may be one: a Shard's weights under every usual spelling, and its config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from shardscope import Shard, ShardConfig

State = dict[str, Tensor]
TEXT = "K7QZ2M9XB4WJ" * 8  # what the trained model continues well


def linear(heads: Tensor) -> Tensor:
    return rearrange(heads, "head d_model d_head -> (head d_head) d_model")


def pairs(heads: Tensor) -> Tensor:
    """Half-rotated channels in the order of a model that rotates neighbouring pairs."""
    return rearrange(heads, "head d_model (two half) -> head d_model (half two)", two=2)


def parts(model: Shard, rope: Callable[[Tensor], Tensor] = lambda heads: heads) -> list[dict[str, Tensor]]:
    """Each layer's weights as nn.Linear stores them."""
    return [
        {
            "q": linear(rope(block.attn.W_Q.detach())),
            "k": linear(rope(block.attn.W_K.detach())),
            "v": linear(block.attn.W_V.detach()),
            "o": rearrange(block.attn.W_O.detach(), "head d_head d_model -> d_model (head d_head)"),
            "gate": block.mlp.W_gate.detach().T,
            "up": block.mlp.W_in.detach().T,
            "down": block.mlp.W_out.detach().T,
            "ln1": block.ln1.w.detach(),
            "ln2": block.ln2.w.detach(),
        }
        for block in model.blocks
    ]


def spelled(model: Shard, layers: list[dict[str, Tensor]], names: dict[str, str], outside: dict[str, str]) -> State:
    """`names` is our part to its full name with `{}` for the layer; `outside` likewise for embedding, norm and head."""
    ends = {"embedding": model.embed.W_E.detach(), "head": model.embed.W_E.detach(), "norm": model.ln_final.w.detach()}
    state = {name: ends[part] for part, name in outside.items()}
    return state | {name.format(n): layer[part] for n, layer in enumerate(layers) for part, name in names.items()}


def hugging_face(model: Shard) -> State:
    """q_proj …, gate_proj …; half-rotation; the head written out, a buffer of frequencies beside it."""
    names = {part: f"model.layers.{{}}.self_attn.{part}_proj.weight" for part in "qkvo"}
    names |= {part: f"model.layers.{{}}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    names |= {"ln1": "model.layers.{}.input_layernorm.weight", "ln2": "model.layers.{}.post_attention_layernorm.weight"}
    ends = {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
    return spelled(model, parts(model), names, ends) | {"model.rotary_emb.inv_freq": torch.ones(8)}


def meta_llama(model: Shard) -> State:
    """wq …, w1 the gate, w3 beside it, w2 down; neighbouring pairs rotate; complex frequencies in the file."""
    names = {part: f"layers.{{}}.attention.w{part}.weight" for part in "qkvo"}
    names |= {
        part: f"layers.{{}}.feed_forward.{w}.weight" for part, w in (("gate", "w1"), ("down", "w2"), ("up", "w3"))
    }
    names |= {"ln1": "layers.{}.attention_norm.weight", "ln2": "layers.{}.ffn_norm.weight"}
    ends = {"embedding": "tok_embeddings.weight", "norm": "norm.weight", "head": "output.weight"}
    return spelled(model, parts(model, pairs), names, ends) | {"freqs_cis": torch.ones(4, 8, dtype=torch.complex64)}


def w1_is_the_up_matrix(model: Shard) -> State:
    """The other reading of w1 and w3, compiled and wrapped for several GPUs."""
    names = {part: f"_orig_mod.module.blocks.{{}}.attn.{part}.weight" for part in "qkvo"}
    names |= {
        part: f"_orig_mod.module.blocks.{{}}.ff.{w}.weight"
        for part, w in (("up", "w1"), ("down", "w2"), ("gate", "w3"))
    }
    names |= {"ln1": "_orig_mod.module.blocks.{}.norm_attn.scale", "ln2": "_orig_mod.module.blocks.{}.norm_ff.scale"}
    ends = {"embedding": "_orig_mod.module.tok_emb.weight", "norm": "_orig_mod.module.norm_f.scale"}
    return spelled(model, parts(model), names, ends)


def gpt_fused(model: Shard) -> State:
    """One c_attn for q, k and v, one matrix for up and gate in that order; a causal mask kept as a buffer."""
    layers = parts(model)
    for layer in layers:
        layer["qkv"] = torch.cat([layer["q"], layer["k"], layer["v"]])
        layer["up_gate"] = torch.cat([layer["up"], layer["gate"]])
    names = {"qkv": "transformer.h.{}.attn.c_attn.weight", "o": "transformer.h.{}.attn.c_proj.weight"}
    names |= {"up_gate": "transformer.h.{}.mlp.c_fc.weight", "down": "transformer.h.{}.mlp.c_proj.weight"}
    names |= {"ln1": "transformer.h.{}.ln_1.weight", "ln2": "transformer.h.{}.ln_2.weight"}
    ends = {"embedding": "transformer.wte.weight", "norm": "transformer.ln_f.weight", "head": "lm_head.weight"}
    masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 8, 8) for n in range(len(layers))}
    return spelled(model, layers, names, ends) | masks


def fused_by_head(model: Shard) -> State:
    """q, k and v of each head side by side, gate and up fused, neighbouring pairs rotate."""
    layers, heads = parts(model, pairs), model.config.n_heads
    for layer in layers:
        three = torch.stack([layer["q"], layer["k"], layer["v"]])
        layer["qkv"] = rearrange(three, "three (head dh) d -> (head three dh) d", head=heads)
        layer["gate_up"] = torch.cat([layer["gate"], layer["up"]])
    names = {"qkv": "blocks.{}.attn.qkv.weight", "o": "blocks.{}.attn.proj.weight"}
    names |= {"gate_up": "blocks.{}.mlp.gate_up.weight", "down": "blocks.{}.mlp.down.weight"}
    names |= {"ln1": "blocks.{}.rms1.weight", "ln2": "blocks.{}.rms2.weight"}
    return spelled(model, layers, names, {"embedding": "embed.weight", "norm": "final_norm.weight"})


def shared_key_value(model: Shard) -> State:
    """to_q, to_kv, to_out.0 and a SwiGLU as linear layers fc1 (both halves) and fc2."""
    layers = parts(model)
    for layer in layers:
        layer["kv"], layer["w12"] = torch.cat([layer["k"], layer["v"]]), torch.cat([layer["gate"], layer["up"]])
    names = {
        "q": "layers.{}.attn.to_q.weight",
        "kv": "layers.{}.attn.to_kv.weight",
        "o": "layers.{}.attn.to_out.0.weight",
    }
    names |= {"w12": "layers.{}.swiglu.fc1.weight", "down": "layers.{}.swiglu.fc2.weight"}
    names |= {"ln1": "layers.{}.attn_norm.weight", "ln2": "layers.{}.mlp_norm.weight"}
    return spelled(model, layers, names, {"embedding": "token_embedding.weight", "norm": "out_norm.weight"})


def in_turns(model: Shard) -> State:
    """Values before keys in one matrix, each head's together; the rows of up and gate alternate."""
    layers, heads = parts(model), model.config.n_heads
    for layer in layers:
        two = torch.stack([layer["v"], layer["k"]])
        layer["kv"] = rearrange(two, "two (head dh) d -> (head two dh) d", head=heads)
        layer["mixed"] = rearrange([layer["up"], layer["gate"]], "two d_mlp d -> (d_mlp two) d")
    names = {part: f"layers.{{}}.attn.{part}_proj.weight" for part in ("q", "kv", "o")}
    names |= {"mixed": "layers.{}.mlp.gate_up_proj.weight", "down": "layers.{}.mlp.down_proj.weight"}
    names |= {"ln1": "layers.{}.ln1.weight", "ln2": "layers.{}.ln2.weight"}
    return spelled(model, layers, names, {"embedding": "wte.weight", "norm": "ln_f.weight"})


def transformer_lens_shapes(model: Shard) -> State:
    """Heads as an axis of their own and [in, out] matrices, which is how we keep them ourselves."""
    return {name: weight.detach() for name, weight in model.state_dict().items()}


def old_litgpt(model: Shard) -> State:
    """attn.attn holds q, k and v; fc_1, fc_2 and proj."""
    layers = parts(model)
    for layer in layers:
        layer["qkv"] = torch.cat([layer["q"], layer["k"], layer["v"]])
    names = {"qkv": "transformer.h.{}.attn.attn.weight", "o": "transformer.h.{}.attn.proj.weight"}
    names |= {"gate": "transformer.h.{}.mlp.fc_1.weight", "up": "transformer.h.{}.mlp.fc_2.weight"}
    names |= {"down": "transformer.h.{}.mlp.proj.weight", "ln1": "transformer.h.{}.norm_1.weight"}
    ends = {"embedding": "transformer.wte.weight", "norm": "transformer.ln_f.weight", "head": "lm_head.weight"}
    return spelled(model, layers, names | {"ln2": "transformer.h.{}.norm_2.weight"}, ends)


def olmo(model: Shard) -> State:
    """att_proj and ff_proj are fused, up before gate; the head is called ff_out as the blocks' last matrix is."""
    layers = parts(model)
    for layer in layers:
        layer["qkv"] = torch.cat([layer["q"], layer["k"], layer["v"]])
        layer["up_gate"] = torch.cat([layer["up"], layer["gate"]])
    names = {"qkv": "model.transformer.blocks.{}.att_proj.weight", "o": "model.transformer.blocks.{}.attn_out.weight"}
    names |= {"up_gate": "model.transformer.blocks.{}.ff_proj.weight"}
    names |= {
        "down": "model.transformer.blocks.{}.ff_out.weight",
        "ln1": "model.transformer.blocks.{}.attn_norm.weight",
    }
    ends = {"embedding": "model.transformer.wte.weight", "norm": "model.transformer.ln_f.weight"}
    ends |= {"head": "model.transformer.ff_out.weight"}
    return spelled(model, layers, names | {"ln2": "model.transformer.blocks.{}.ff_norm.weight"}, ends)


def nanotron(model: Shard) -> State:
    """Everything inside pp_block, the layers as decoder.N."""
    layers = parts(model)
    for layer in layers:
        layer["qkv"] = torch.cat([layer["q"], layer["k"], layer["v"]])
        layer["gate_up"] = torch.cat([layer["gate"], layer["up"]])
    inside = "model.decoder.{}.pp_block."
    names = {"qkv": f"{inside}attn.qkv_proj.weight", "o": f"{inside}attn.o_proj.weight"}
    names |= {"gate_up": f"{inside}mlp.gate_up_proj.weight", "down": f"{inside}mlp.down_proj.weight"}
    names |= {"ln1": f"{inside}input_layernorm.weight", "ln2": f"{inside}post_attention_layernorm.weight"}
    ends = {"embedding": "model.token_position_embeddings.pp_block.token_embedding.weight"}
    ends |= {"norm": "model.final_layer_norm.pp_block.weight", "head": "model.lm_head.pp_block.weight"}
    return spelled(model, layers, names, ends)


def rotary_in_the_name(model: Shard) -> State:
    """A module that is called after its rotary positions holds weights, and its tables beside them."""
    names = {part: f"layers.{{}}.rotary_attn.{part}_proj.weight" for part in "qkvo"}
    names |= {part: f"layers.{{}}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    names |= {"ln1": "layers.{}.norm1.weight", "ln2": "layers.{}.norm2.weight"}
    tables = {f"layers.0.rotary_attn.rotary_emb.{part}": torch.ones(4, 8) for part in ("cos_cached", "sin_cached")}
    tables |= {"layers.0.rotary_attn.rope.table": torch.ones(4, 8), "rotary_emb.inv_freq": torch.ones(8)}
    return spelled(model, parts(model), names, {"embedding": "embed.weight", "norm": "norm.weight"}) | tables


def numbers_alone(model: Shard) -> State:
    """An nn.Sequential of blocks: no word before the number that says layer."""
    names = {part: f"body.{{}}.attention.{part}.weight" for part in "qkvo"}
    names |= {part: f"body.{{}}.mlp.{part}.weight" for part in ("gate", "up", "down")}
    names |= {"ln1": "body.{}.attention_norm.weight", "ln2": "body.{}.mlp_norm.weight"}
    return spelled(model, parts(model), names, {"embedding": "embed.weight", "norm": "norm.weight"})


SPELLINGS = [
    old_litgpt,
    olmo,
    nanotron,
    rotary_in_the_name,
    numbers_alone,
    hugging_face,
    meta_llama,
    w1_is_the_up_matrix,
    gpt_fused,
    fused_by_head,
    shared_key_value,
    in_turns,
    transformer_lens_shapes,
]


def published_values(c: ShardConfig) -> dict[str, Any]:
    """The keys that the published config is known to have."""
    return {
        **{"vocab_size": c.vocab_size, "dim": c.d_model, "n_layers": c.n_layers, "n_heads": c.n_heads},
        **{"head_dim": c.d_head, "mlp_hidden": c.d_mlp, "max_seq_len": c.n_ctx, "sliding_window": c.window},
        **{"attention_pattern": "gemma4", "lm_head_logit_cap": 30.0, "z_loss_weight": 1e-4, "optimizer": "muon"},
        **{"engram_enabled": False, "engram_slots": 512, "engram_inject_layer": 6, "lr_schedule": "wsd"},
    }


def saved(path: Path, config: object, state: object, **more: object) -> Path:
    torch.save({"cfg": config, "model": state, **more}, path)
    return path


class Runs:
    """Unpickling this calls `function(*arguments)`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.arguments
