"""The published checkpoint's tensor names are not public: files in many spellings give the same Shard, or a reason."""

from __future__ import annotations

import argparse
import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from shardscope import Shard, ShardConfig, load
from shardscope.cli import main
from shardscope.interop import import_original
from shardscope.interop.name_mapping import read_spelling
from shardscope.interop.restricted import OriginalError, read_original
from shardscope.tokenizer import Tokenizer

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


@pytest.fixture
def published(trained_model: Shard) -> dict[str, Any]:
    return published_values(trained_model.config)


def published_values(c: ShardConfig) -> dict[str, Any]:
    """The keys that the published config is known to have."""
    return {
        **{"vocab_size": c.vocab_size, "dim": c.d_model, "n_layers": c.n_layers, "n_heads": c.n_heads},
        **{"head_dim": c.d_head, "mlp_hidden": c.d_mlp, "max_seq_len": c.n_ctx, "sliding_window": c.window},
        **{"attention_pattern": "gemma4", "lm_head_logit_cap": 30.0, "z_loss_weight": 1e-4, "optimizer": "muon"},
        **{"engram_enabled": False, "engram_slots": 512, "engram_inject_layer": 6, "lr_schedule": "wsd"},
    }


@pytest.fixture
def tokenizer_file(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Path:
    return tiny_tokenizer.save(tmp_path / "tokenizer.json")


def saved(path: Path, config: object, state: object, **more: object) -> Path:
    torch.save({"cfg": config, "model": state, **more}, path)
    return path


@pytest.mark.parametrize("spell", SPELLINGS, ids=lambda spell: spell.__name__)
def test_a_file_in_any_of_these_spellings_gives_back_the_weights(
    trained_model: Shard, published: dict[str, Any], tmp_path: Path, spell: Callable[[Shard], State]
) -> None:
    assert trained_model.tokenizer is not None
    path = saved(tmp_path / "model.pt", published, spell(trained_model), step=20_000)
    imported = import_original(path, trained_model.tokenizer, TEXT)
    assert imported.model.config == trained_model.config
    returned = imported.model.state_dict()
    for name, weight in trained_model.state_dict().items():
        assert torch.equal(returned[name], weight), name
    assert any("blocks.0.attn." in line and "<-" in line for line in imported.report), "the mapping is reported"


@pytest.mark.slow
def test_a_random_shard_54m_is_read_by_a_text_of_its_own(
    random_shard_54m: Shard, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """At the published size, through the command. The text is what the weights themselves would write with characters
    that are a token each: to any other reading of the names it is noise."""
    ids = [tiny_tokenizer.bos_id]
    with torch.no_grad():
        for _ in range(32):
            logits = random_shard_54m(torch.tensor([ids]))[0, -1, :65]
            logits[ids] = -torch.inf  # each character once
            ids.append(int(logits.argmax()))
    text = tiny_tokenizer.decode(ids[1:])
    assert tiny_tokenizer.encode(text, bos=True) == ids
    (tmp_path / "sample.txt").write_text(text)
    tokenizer = tiny_tokenizer.save(tmp_path / "tokenizer.json")
    path = saved(tmp_path / "model.pt", published_values(random_shard_54m.config), meta_llama(random_shard_54m))
    flags = ["--tokenizer", str(tokenizer), "--text", str(tmp_path / "sample.txt"), "--out", str(tmp_path / "new")]
    assert main(["import", str(path), *flags]) == 0
    imported = load(tmp_path / "new")
    assert imported.config == random_shard_54m.config
    returned = imported.state_dict()
    for name, weight in random_shard_54m.state_dict().items():
        assert torch.equal(returned[name], weight), name


def test_gate_and_rotation_are_decided_by_the_lower_loss(
    trained_model: Shard, published: dict[str, Any], tmp_path: Path
) -> None:
    assert trained_model.tokenizer is not None
    path = saved(tmp_path / "model.pt", published, w1_is_the_up_matrix(trained_model))
    report = import_original(path, trained_model.tokenizer, TEXT).report
    losses = [line for line in report if line.startswith("loss ")]
    values = [float(line.split()[1]) for line in losses]
    assert len(losses) == 4
    assert values == sorted(values)
    assert losses[0].endswith("up before gate; RoPE rotates halves")
    assert values[1] > values[0] + 0.1


def test_two_readings_that_fit_equally_well_are_refused(
    trained_model: Shard, published: dict[str, Any], tmp_path: Path
) -> None:
    assert trained_model.tokenizer is not None
    with torch.no_grad():
        for block in trained_model.blocks:
            block.mlp.W_out.zero_()  # whatever gate and up do, nothing comes of it
    path = saved(tmp_path / "model.pt", published, meta_llama(trained_model))
    with pytest.raises(OriginalError, match=r"two readings fit .* pass a longer --text"):
        import_original(path, trained_model.tokenizer, TEXT)
    with pytest.raises(OriginalError, match="the text has only 1 tokens"):
        import_original(path, trained_model.tokenizer, "K")


@pytest.mark.parametrize(
    ("n_layers", "line"),
    [(1, None), (2, "blocks.1: likewise"), (4, "blocks.1 … blocks.3: likewise")],
)
def test_the_mapping_of_the_first_layer_stands_for_the_others(n_layers: int, line: str | None) -> None:
    small = Shard(
        ShardConfig(vocab_size=8, n_ctx=8, d_model=4, n_layers=n_layers, n_heads=1, d_head=4, d_mlp=6, window=8)
    )
    reading = read_spelling(hugging_face(small))
    described = reading.describe(next(reading.choices()))
    assert [found for found in described if "likewise" in found] == ([line] if line else [])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"layers.0.attention.rel_bias": torch.ones(4, 7)}, "cannot place 1 weights: layers.0.attention.rel_bias"),
        ({"layers.1.attention.wq.bias": torch.ones(64)}, "layers.1.attention.wq.bias"),
        ({"pos_embedding.weight": torch.ones(512, 64)}, r"pos_embedding.weight \(512, 64\)"),
        ({"output.weight": torch.ones(300, 64)}, "output.weight differs from tok_embeddings.weight"),
        ({"layers.9.attention_norm.weight": torch.ones(64)}, r"layers \[0, 1, 2, 3, 9\], not 0 to n-1"),
        ({"layers.0.moe.router.weight": torch.ones(3, 64)}, "cannot place"),
    ],
)
def test_what_cannot_be_placed_is_refused_by_name(trained_model: Shard, extra: State, message: str) -> None:
    with pytest.raises(OriginalError, match=message):
        read_spelling(meta_llama(trained_model) | extra)


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        (
            "mtp.layers.0.attention.wq.weight",
            "two stacks of layers, as in layers.0.attention.wq.weight and mtp.layers.0",
        ),
        ("layers.0.attention_norm.scale", r"both layers.0.attention_norm.weight and layers.0.attention_norm.scale"),
        ("layers.0.attention.q_proj.weight", r"both layers.0.attention.wq.weight and layers.0.attention.q_proj.weight"),
    ],
)
def test_two_weights_for_one_place_are_both_named(trained_model: Shard, renamed: str, message: str) -> None:
    state = meta_llama(trained_model)
    with pytest.raises(OriginalError, match=message):
        read_spelling(state | {renamed: torch.zeros(64, 64) if "norm" not in renamed else torch.zeros(64)})


def test_weights_that_predict_nothing_are_refused_however_the_readings_differ(
    trained_model: Shard, published: dict[str, Any], tmp_path: Path
) -> None:
    """The final norm turned round: every reading is worse than guessing, and one of them is the least bad."""
    assert trained_model.tokenizer is not None
    with torch.no_grad():
        trained_model.ln_final.w.neg_()
    path = saved(tmp_path / "model.pt", published, meta_llama(trained_model))
    with pytest.raises(OriginalError, match=r"no reading predicts the text: .* guessing among 300 tokens has 5.70"):
        import_original(path, trained_model.tokenizer, TEXT)


def test_the_widest_dtype_is_kept(trained_model: Shard, published: dict[str, Any], tmp_path: Path) -> None:
    assert trained_model.tokenizer is not None
    state = meta_llama(trained_model)
    state |= {"tok_embeddings.weight": state["tok_embeddings.weight"].bfloat16()}
    state |= {"output.weight": state["tok_embeddings.weight"]}
    imported = import_original(saved(tmp_path / "model.pt", published, state), trained_model.tokenizer, TEXT).model
    assert imported.embed.W_E.dtype == torch.float32
    assert torch.equal(imported.ln_final.w, trained_model.ln_final.w)
    assert torch.equal(imported.embed.W_E, trained_model.embed.W_E.bfloat16().float())


def test_a_missing_part_is_named(trained_model: Shard) -> None:
    state = meta_llama(trained_model)
    with pytest.raises(OriginalError, match="a layer lacks k"):
        read_spelling({name: weight for name, weight in state.items() if "wk" not in name})
    with pytest.raises(OriginalError, match="the importer finds no final norm; a Shard is"):
        read_spelling({name: weight for name, weight in state.items() if name != "norm.weight"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engram_enabled": True}, "engram_enabled=True"),
        ({"attention_pattern": "gemma5"}, "attention_pattern='gemma5' is unknown; known: gemma4, all_global"),
        ({"n_layers": 12}, "config says n_layers=12, its weights show 4"),
        ({"n_kv_heads": 2}, "n_kv_heads=2 for 4 query heads"),
        ({"n_kv_heads": "4"}, "n_kv_heads='4' for 4 query heads"),
        ({"mlp_hidden": 128}, "mlp.W_gate would be"),
        ({"mlp_hidden": 10**4}, "mlp.W_gate would be .* the file's config says .*10000"),
        ({"mlp_hidden": 10**9}, "does not describe a Shard: model.d_mlp=1000000000 is above 65536"),
        ({"max_seq_len": 10**9}, "does not describe a Shard: model.n_ctx=1000000000 is above 1048576"),
        ({"max_seq_len": "512"}, "max_seq_len='512'; a Shard needs a whole number above 0"),
        ({"attention_pattern": ["S", "G"]}, r"attention_pattern=\['S', 'G'\] is unknown"),
        ({"n_heads": 0}, "n_heads=0; a Shard needs a whole number above 0"),
        ({"n_heads": "4"}, "n_heads='4'"),
        ({"n_heads": None}, "n_heads=None"),
        ({"lm_head_logit_cap": None}, "lm_head_logit_cap=None; a Shard needs a number above 0"),
        ({"norm_eps": float("nan")}, "norm_eps=nan"),
        ({"hidden_size": 128}, "says dim=64 and hidden_size=128"),
        ({"head_dim": 15}, "model.d_head=15 is odd"),
    ],
)
def test_a_config_that_the_weights_contradict_is_refused(
    trained_model: Shard, published: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    assert trained_model.tokenizer is not None
    path = saved(tmp_path / "model.pt", {**published, **change}, meta_llama(trained_model))
    with pytest.raises(OriginalError, match=message):
        import_original(path, trained_model.tokenizer, TEXT)


@pytest.mark.parametrize("down", ["down_proj", "c_proj", "proj", "w2", "out"])
@pytest.mark.parametrize("linear", [True, False], ids=["[out, in]", "[in, out]"])
def test_of_a_square_mlp_names_tell_the_parts_and_one_of_the_readings_is_right(linear: bool, down: str) -> None:
    """How square matrices are stored no shape tells: both ways are among the readings that the text decides between."""
    config = ShardConfig(vocab_size=300, n_ctx=64, d_model=32, n_layers=2, n_heads=4, d_head=8, d_mlp=32, window=8)
    model = Shard(config)
    state = {name.replace("down_proj", down): weight for name, weight in hugging_face(model).items()}
    if not linear:
        state = {name: weight.T if weight.ndim == 2 and "layers" in name else weight for name, weight in state.items()}
    reading, right = read_spelling(state), model.state_dict()
    found = [
        choice
        for choice in reading.choices()
        if all(torch.equal(weight, right[name]) for name, weight in reading.state(config, choice).items())
    ]
    assert [("matrices stored [in, out]" in str(choice)) for choice in found] == [not linear]
    nameless = {
        name.replace(f".{down}.", ".third.").replace("up_proj", "second"): weight for name, weight in state.items()
    }
    with pytest.raises(OriginalError, match="cannot place 6 weights"):
        read_spelling(nameless)


def test_a_width_that_the_config_does_not_say_is_taken_from_the_weights(
    trained_model: Shard, published: dict[str, Any], tmp_path: Path
) -> None:
    assert trained_model.tokenizer is not None
    values = {name: value for name, value in published.items() if name not in ("mlp_hidden", "head_dim", "vocab_size")}
    imported = import_original(
        saved(tmp_path / "model.pt", values, gpt_fused(trained_model)), trained_model.tokenizer, TEXT
    )
    assert imported.model.config == trained_model.config


def test_a_safetensors_file_is_read_with_the_config_beside_it(
    trained_model: Shard, published: dict[str, Any], tmp_path: Path
) -> None:
    assert trained_model.tokenizer is not None
    state = {name: weight.contiguous() for name, weight in w1_is_the_up_matrix(trained_model).items()}
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(OriginalError, match=r"holds weights alone; put the config\.json that was published with it"):
        import_original(tmp_path / "weights.safetensors", trained_model.tokenizer, TEXT)
    (tmp_path / "config.json").write_text(json.dumps(published))
    imported = import_original(tmp_path / "weights.safetensors", trained_model.tokenizer, TEXT)
    assert imported.model.config == trained_model.config


@pytest.mark.parametrize(
    ("beginning", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, .* `git lfs pull`"),
        (gzip.compress(b"x", mtime=0), "is compressed with gzip; unpack it with `gunzip`"),
        (lzma.compress(b"x"), "is compressed with xz"),
        (b"\x28\xb5\x2f\xfd", "is compressed with zstd"),
        (bz2.compress(b"x"), "is compressed with bzip2"),
        (b"GGUF\x03", "is a GGUF file"),
        (b"\x89HDF\r\n", "is an HDF5 file"),
        (b"<!DOCTYPE html><html>", "is a web page, not the file"),
    ],
)
def test_another_kind_of_file_is_called_by_its_name(tmp_path: Path, beginning: bytes, message: str) -> None:
    (tmp_path / "model.pt").write_bytes(beginning + bytes(100))
    with pytest.raises(OriginalError, match=message):
        read_original(tmp_path / "model.pt")


# -------------------------------------------------------------------------------------------- what runs: nothing


def test_its_config_object_is_rebuilt_as_data_and_its_module_is_never_imported(
    trained_model: Shard, published: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("original_training_code")
    exec("class Config:\n    def __init__(self, **values):\n        self.__dict__.update(values)", module.__dict__)
    monkeypatch.setitem(sys.modules, "original_training_code", module)
    path = saved(tmp_path / "model.pt", module.Config(**published), meta_llama(trained_model))  # type: ignore[attr-defined]
    (tmp_path / "original_training_code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    monkeypatch.delitem(sys.modules, "original_training_code")
    monkeypatch.syspath_prepend(str(tmp_path))

    values, weights = read_original(path)
    assert values == published
    assert weights.keys() == meta_llama(trained_model).keys()
    assert "original_training_code" not in sys.modules
    assert not (tmp_path / "ran").exists()


def test_an_argparse_namespace_is_read_too(trained_model: Shard, published: dict[str, Any], tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", argparse.Namespace(**published), meta_llama(trained_model))
    assert read_original(path)[0] == published


class Runs:
    """Unpickling this calls `function(*arguments)`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.arguments


class RunsOnState:
    """Unpickling this calls `function` on the state, by the way that ordinary objects are restored."""

    def __reduce__(self) -> tuple[object, ...]:
        return (dict, (), {"x": 1}, None, iter([("y", Runs(os.system, "true"))]))


def hostile(mark: Path) -> dict[str, object]:
    touch = f"touch {mark}"
    return {
        "os.system": Runs(os.system, touch),
        "eval": Runs(eval, f"__import__('os').system({touch!r})"),
        "exec": Runs(exec, f"open({str(mark)!r}, 'w')"),
        "getattr": Runs(getattr, dict, "fromkeys"),
        "torch.load": Runs(torch.load, str(mark)),
        "nested in state": RunsOnState(),
        "a module": Runs(__import__, "antigravity"),
    }


@pytest.mark.parametrize("attack", hostile(Path("unused")))
@pytest.mark.parametrize("place", ["cfg", "model", "beside"])
def test_a_pickle_that_would_run_something_is_refused_before_anything_runs(
    tmp_path: Path, attack: str, place: str
) -> None:
    mark = tmp_path / "ran"
    contents: dict[str, Any] = {"cfg": {"dim": 64}, "model": {"norm.weight": torch.ones(4)}}
    torch.save(contents | {"beside": {}}, tmp_path / "harmless.pt")
    torch.save(contents | {place: hostile(mark)[attack]}, tmp_path / "model.pt")
    assert read_original(tmp_path / "harmless.pt")[0] == {"dim": 64}
    with pytest.raises(OriginalError, match="refused"):
        read_original(tmp_path / "model.pt")
    assert not mark.exists()
    assert "antigravity" not in sys.modules


def test_the_attacks_do_run_where_nothing_restrains_them(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for attack in ("os.system", "eval", "exec"):
        torch.save({"cfg": hostile(mark)[attack]}, tmp_path / "model.pt")
        torch.load(tmp_path / "model.pt", weights_only=False)
        assert mark.exists(), attack
        mark.unlink()


@pytest.mark.parametrize("layout", ["before torch 1.6", "plain pickle"])
def test_only_the_zip_layout_is_read_and_others_are_told_how_to_become_one(tmp_path: Path, layout: str) -> None:
    """These layouts cannot be scanned before they are unpickled, so even a harmless one is refused."""
    path, contents = tmp_path / "model.pt", {"cfg": {"dim": 64}, "model": {}}
    if layout == "plain pickle":
        path.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=False)
    with pytest.raises(
        OriginalError, match=r"not in torch.save's zip layout .* one with torch.save\(torch.load\(.*weights_only=True"
    ):
        read_original(path)


def test_the_refusal_names_what_the_file_would_call(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", Runs(os.system, "true"), {})
    with pytest.raises(OriginalError, match=r"refused, nothing was run: the file would call (posix|nt|os)\.system"):
        read_original(path)


def test_a_class_that_only_calls_itself_config_runs_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config class is known by its name alone, and a name is easily taken: what it stands for must stay unused."""
    module = types.ModuleType("evil")
    exec(f"def Config(*arguments):\n    open({str(tmp_path / 'ran')!r}, 'w')", module.__dict__)
    module.Config.__module__, module.Config.__qualname__ = "evil", "Config"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "evil", module)
    path = saved(tmp_path / "model.pt", Runs(module.Config, "argument"), {})  # type: ignore[attr-defined]
    with pytest.raises(OriginalError, match="restricted unpickler"):
        read_original(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "not in torch.save's zip layout"),
        (b"not a pickle at all", "not in torch.save's zip layout"),
        (b"PK\x03\x04 and then nothing", "not in torch.save's zip layout"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_one_sentence(tmp_path: Path, contents: bytes, message: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(contents)
    with pytest.raises(OriginalError, match=message):
        read_original(path)
    with pytest.raises(OriginalError, match="No such file"):
        read_original(tmp_path / "other.pt")


def test_a_cut_off_file_is_one_sentence(trained_model: Shard, published: dict[str, Any], tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", published, meta_llama(trained_model))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(OriginalError, match=r"not in torch.save's zip layout"):
        read_original(path)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"weights": {}}, "none of the keys model, state_dict, model_state_dict; found weights"),
        ({"cfg": 3, "model": {"a": torch.ones(1)}}, "its config is a int"),
        ({"cfg": {}, "model": {"a": 1}}, "the weight 'a' is a int, not a plain tensor"),
        ({"cfg": {}, "model": {"a": torch.ones(2, 2).to_sparse()}}, "not a plain tensor|refused"),
    ],
)
def test_a_table_without_the_two_parts_is_refused(tmp_path: Path, contents: dict[str, Any], message: str) -> None:
    torch.save(contents, tmp_path / "model.pt")
    with pytest.raises(OriginalError, match=message):
        read_original(tmp_path / "model.pt")


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_writes_a_checkpoint_and_prints_its_mapping(
    trained_model: Shard,
    published: dict[str, Any],
    tokenizer_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = saved(tmp_path / "model.pt", published, gpt_fused(trained_model))
    (tmp_path / "sample.txt").write_text(TEXT)
    words = ["import", str(path), "--tokenizer", str(tokenizer_file), "--text", str(tmp_path / "sample.txt")]
    assert main([*words, "--out", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    assert "blocks.0.attn.W_Q, W_K and W_V <- transformer.h.0.attn.c_attn.weight" in printed
    assert "read as: up before gate; RoPE rotates halves; q, k, v stacked" in printed
    returned = load(tmp_path / "new")
    assert returned.tokenizer is not None
    assert all(torch.equal(a, b) for a, b in zip(returned.parameters(), trained_model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.pt"], "pass --tokenizer"),
        (["model.pt", "--tokenizer", "none.json"], "no such tokenizer file"),
        (["none.pt", "--tokenizer", "tokenizer.json"], "none.pt: no such file or directory"),
        (["no/such/folder"], "no/such/folder: no such file or directory"),
        (["."], "config.json: cannot be read"),
        ([".", "--tokenizer", "tokenizer.json"], "needs no --tokenizer"),
        (["model.pt", "--tokenizer", "tokenizer.json", "--text", "none.txt"], "none.txt: cannot be read as UTF-8 text"),
        (["model.pt", "--tokenizer", "tokenizer.json", "--text", "."], ".: cannot be read as UTF-8 text"),
        (["model.pt", "--tokenizer", "tokenizer.json", "--text", "latin.txt"], "cannot be read as UTF-8 text"),
        (["model.pt", "--tokenizer", "latin.txt"], "latin.txt: cannot be read as UTF-8 text"),
        (["model.pt", "--tokenizer", "empty.json"], "not a tokenizer.json"),
        (["model.pt", "--tokenizer", "tokenizer.json", "--bos", "<s>"], "has no token <s>"),
        (["hostile.pt", "--tokenizer", "tokenizer.json"], "refused, nothing was run"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(
    trained_model: Shard,
    published: dict[str, Any],
    tokenizer_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    saved(tmp_path / "model.pt", published, meta_llama(trained_model))
    saved(tmp_path / "hostile.pt", Runs(os.system, "touch ran"), {})
    (tmp_path / "latin.txt").write_bytes("né".encode("latin-1"))
    (tmp_path / "empty.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert main(["import", *words, "--out", "new"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("added", [True, False], ids=["special", "an ordinary entry"])
def test_a_vocabulary_that_calls_the_first_token_otherwise_is_read_with_bos(
    trained_model: Shard, published: dict[str, Any], tokenizer_file: Path, tmp_path: Path, added: bool
) -> None:
    values = json.loads(tokenizer_file.read_text().replace("<|endoftext|>", "<s>"))
    values["post_processor"] = {
        **{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}], "pair": []},
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    values["added_tokens"] = values["added_tokens"] if added else []
    tokenizer_file.write_text(json.dumps(values))
    path = saved(tmp_path / "model.pt", published, meta_llama(trained_model))
    (tmp_path / "sample.txt").write_text(TEXT)
    with pytest.raises(OriginalError, match=r"no token <\|endoftext\|>; name the token .* with --bos"):
        import_original(path, tokenizer_file, TEXT)
    flags = ["--tokenizer", str(tokenizer_file), "--text", str(tmp_path / "sample.txt"), "--bos", "<s>"]
    assert main(["import", str(path), *flags, "--out", str(tmp_path / "new")]) == 0
    returned = load(tmp_path / "new").tokenizer
    assert returned is not None
    assert trained_model.tokenizer is not None
    assert returned.encode("<s> K7<|endoftext|>", bos=True) == trained_model.tokenizer.encode(
        "<s> K7<|endoftext|>", bos=True
    )


def test_every_part_of_a_zip_is_read_by_the_restricted_unpickler(
    trained_model: Shard, published: dict[str, Any], tmp_path: Path
) -> None:
    """torch reads data.pkl; a second pickle smuggled into the archive is never opened."""
    path = saved(tmp_path / "model.pt", published, meta_llama(trained_model))
    buffer = io.BytesIO(pickle.dumps(Runs(os.system, f"touch {tmp_path / 'ran'}")))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/constants.pkl", buffer.getvalue())
    with contextlib.suppress(OriginalError):
        read_original(path)
    assert not (tmp_path / "ran").exists()
