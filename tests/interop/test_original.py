"""The published checkpoint's tensor names are not public: files in many spellings give the same Shard, or a reason."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from original_files import (
    SPELLINGS,
    TEXT,
    Runs,
    State,
    gpt_fused,
    hugging_face,
    meta_llama,
    published_values,
    saved,
    w1_is_the_up_matrix,
)
from safetensors.torch import save_file

from shardscope import Shard, ShardConfig, load
from shardscope.cli import main
from shardscope.interop import import_original
from shardscope.interop.name_mapping import read_spelling
from shardscope.interop.restricted import OriginalError, read_original
from shardscope.tokenizer import Tokenizer


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
        (["."], "not an exported directory, it holds no config.json"),
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
