"""A Shard leaves for stock transformers and comes back: same logits, same text, same bits."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rounding import A_LOGIT
from safetensors.torch import load_file, save_file

from shardscope import Shard, ShardConfig, load
from shardscope.cli import main
from shardscope.generation import Generation, SamplingConfig, generate
from shardscope.interop import (
    export_pretrained,
    import_pretrained,
    rounding,
    to_transformers,
)
from shardscope.interop.huggingface import InteropError
from shardscope.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

CLOSE = {"rtol": 1e-5, "atol": A_LOGIT}
GONE = object()


def tokens_of(length: int, vocab: int = 300) -> torch.Tensor:
    return torch.randint(1, vocab, (1, length), generator=torch.Generator().manual_seed(length))


@pytest.fixture
def exported(trained_model: Shard, tmp_path: Path) -> Path:
    return export_pretrained(trained_model, tmp_path / "exported")


@pytest.fixture
def awkward_norms(trained_model: Shard) -> Shard:
    """Norm weights for which (w - 1) + 1 is not w: small, tiny, negative."""
    with torch.no_grad():
        trained_model.blocks[0].ln1.w[:6] = torch.tensor([0.1, 1e-5, 3e-9, -0.3, 0.0, 1 / 3])
    assert not torch.equal((trained_model.blocks[0].ln1.w - 1) + 1, trained_model.blocks[0].ln1.w)
    return trained_model


@pytest.mark.parametrize("length", [10, 300], ids=["inside the window", "past the window"])
def test_stock_transformers_gives_the_same_logits(trained_model: Shard, tmp_path: Path, length: int) -> None:
    folder = export_pretrained(trained_model, tmp_path / "out")
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(stock) is transformers.VaultGemmaForCausalLM
    with torch.no_grad():
        torch.testing.assert_close(stock(tokens_of(length)).logits, trained_model(tokens_of(length)), **CLOSE)


def test_the_export_loads_in_a_process_that_does_not_know_shardscope(trained_model: Shard, tmp_path: Path) -> None:
    folder = export_pretrained(trained_model, tmp_path / "out")
    assert not list(folder.glob("*.py"))
    assert "auto_map" not in (folder / "config.json").read_text()
    code = f"""
import sys, torch
sys.modules["shardscope"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
model, report = AutoModelForCausalLM.from_pretrained({str(folder)!r}, output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
tokens = AutoTokenizer.from_pretrained({str(folder)!r})("The capital of France", return_tensors="pt").input_ids
with torch.no_grad():
    print(tokens.tolist(), float(model(tokens).logits.double().sum()))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert trained_model.tokenizer is not None
    tokens = trained_model.tokenizer.encode("The capital of France", bos=True)
    with torch.no_grad():
        logits = trained_model(torch.tensor([tokens])).double()
    ids, _, found = done.stdout.strip().rpartition(" ")
    assert json.loads(ids) == [tokens]
    assert float(found) == pytest.approx(float(logits.sum()), rel=0, abs=1e-5 * float(logits.abs().sum()))


def test_greedy_text_is_the_same_over_256_tokens_past_the_window(trained_model: Shard, tmp_path: Path) -> None:
    stock = transformers.AutoModelForCausalLM.from_pretrained(export_pretrained(trained_model, tmp_path / "out"))
    prompt = tokens_of(trained_model.config.window + 5, vocab=64)
    written = stock.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=256, eos_token_id=None)
    ours = prompt
    with torch.no_grad():
        for _ in range(256):
            ours = torch.cat([ours, trained_model(ours)[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(written, ours)


@pytest.mark.slow
def test_a_random_shard_54m_writes_the_same_greedy_text_for_256_tokens_past_its_window(random_shard_54m: Shard) -> None:
    """At every step the two likeliest tokens are at least 0.0024 apart, three times what the logits differ by."""
    native, window = random_shard_54m, random_shard_54m.config.window
    start = window + 5
    prompt = torch.randint(1, 8192, (1, start), generator=torch.Generator().manual_seed(0))
    written = to_transformers(native).generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=256, do_sample=False, eos_token_id=None
    )
    assert torch.equal(likeliest(native, written, start), written[0, start:])
    assert len(written[0, start:].unique()) > 64, "a text that goes in circles would say little"
    one_more = Shard(dataclasses.replace(native.config, window=window + 1)).eval()
    one_more.load_state_dict(native.state_dict())
    assert not torch.equal(likeliest(one_more, written, start), written[0, start:]), "the window does not matter here"


@torch.no_grad()
def likeliest(model: Shard, text: torch.Tensor, start: int) -> torch.Tensor:
    """For each token from `start` on the one that the model would have written there."""
    return model(text[:, :-1])[0, start - 1 :].argmax(dim=-1)


def test_a_narrower_export_says_how_many_of_twenty_greedy_texts_it_keeps(
    trained_model: Shard,
    trained_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The count is the one that stock transformers gives when it writes the twenty texts itself."""
    monkeypatch.setattr(rounding, "TOKENS", 6)
    assert main(["export", str(trained_checkpoint), "--out", str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    note = capsys.readouterr().out.splitlines()[0]
    found = re.fullmatch(
        r"in bfloat16 (\d+) of 20 prompts keep their greedy text of 6 tokens, compared with float32", note
    )
    assert found, note
    assert note in (tmp_path / "out" / "README.md").read_text()

    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert stock.dtype == torch.bfloat16
    assert trained_model.tokenizer is not None
    same = 0
    for text in rounding.PROMPTS:
        prompt = torch.tensor([trained_model.tokenizer.encode(text, bos=True)])
        with rounding.WideProducts():
            theirs = stock.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, eos_token_id=None)
        with torch.no_grad():
            likeliest = trained_model(theirs[:, :-1])[0, prompt.shape[1] - 1 :].argmax(dim=-1)
        same += torch.equal(likeliest, theirs[0, prompt.shape[1] :])
    # With a key-value cache bfloat16 adds in another order, which may turn a near tie.
    assert abs(same - int(found[1])) <= 2


@pytest.mark.slow
def test_a_random_shard_54m_in_bfloat16_says_how_many_of_twenty_greedy_texts_it_keeps(
    random_shard_54m: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its twenty prompts are random tokens, all of one length: stock transformers continues them in one batch."""
    monkeypatch.setattr(rounding, "TOKENS", 12)
    wide: list[list[int]] = []

    def overheard(shard: Shard, prompts: list[list[int]], config: SamplingConfig) -> list[Generation]:
        texts = generate(shard, prompts, config)
        wide.extend([*prompt, *text.ids] for prompt, text in zip(prompts, texts, strict=True))
        return texts

    monkeypatch.setattr(rounding, "generate", overheard)
    notes: list[str] = []
    export_pretrained(random_shard_54m, tmp_path / "out", "bfloat16", report=notes.append)
    found = re.fullmatch(
        r"in bfloat16 (\d+) of 20 prompts keep their greedy text of 12 tokens, compared with float32", notes[0]
    )
    assert found, notes
    expected = torch.tensor(wide)
    assert expected.shape == (20, 8 + 12)
    assert torch.equal(
        torch.stack([likeliest(random_shard_54m, text[None], 8) for text in expected]), expected[:, 8:]
    ), "what is compared is the float32 model's greedy text"

    prompts = expected[:, :8]
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with rounding.WideProducts():
        written = stock.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=12, do_sample=False, eos_token_id=None
        )
    same = int((written == expected).all(dim=1).sum())
    assert 0 < int(found[1]) < 20
    # With a key-value cache bfloat16 adds in another order, which may turn a near tie.
    assert abs(same - int(found[1])) <= 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_rounding_cannot_hurt_keep_every_text(
    trained_model: Shard, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    """One token wins everywhere and by far: twenty of twenty; a float32 export rounds nothing and so says nothing."""
    with torch.no_grad():
        trained_model.ln_final.w.zero_()
        trained_model.ln_final.w[0] = 8
        trained_model.embed.W_E[:, 0] = 0.01
        trained_model.embed.W_E[7, 0] = 4
        for block in trained_model.blocks:
            block.attn.W_O[..., 0] = 0
            block.mlp.W_out[:, 0] = 0
    lines: list[str] = []
    export_pretrained(trained_model, tmp_path / "out", dtype, report=lines.append)
    assert [line.split(" prompts")[0] for line in lines] == ["in bfloat16 20 of 20"] * (dtype == "bfloat16")


def test_a_model_without_tokenizer_or_room_is_compared_too(tmp_path: Path) -> None:
    config = ShardConfig(vocab_size=300, n_ctx=16, d_model=16, n_layers=1, n_heads=2, d_head=8, d_mlp=16, window=8)
    lines: list[str] = []
    export_pretrained(Shard(config), tmp_path / "out", "bfloat16", report=lines.append)
    assert "of 20 prompts keep their greedy text of 8 tokens" in lines[0]


def test_a_bfloat16_export_that_was_loaded_in_float32_and_saved_comes_back(
    tiny_model: Shard, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """sqrt(32) is not a power of two: embed_tokens times it is lm_head only as far as bfloat16 goes."""
    tiny_model.tokenizer = tiny_tokenizer
    folder = export_pretrained(tiny_model, tmp_path / "out", "bfloat16")
    wide = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    wide.save_pretrained(tmp_path / "again")
    returned = import_pretrained(tmp_path / "again")
    assert returned.embed.W_E.dtype == torch.float32
    assert torch.equal(returned.embed.W_E, tiny_model.embed.W_E.bfloat16().float())


def test_mixed_dtypes_become_the_widest_of_them(trained_model: Shard, tmp_path: Path) -> None:
    folder = export_pretrained(trained_model, tmp_path / "out", "bfloat16")
    weights = load_file(folder / "model.safetensors")
    exact = torch.rand(64) / 3
    weights["model.norm.weight"] = exact
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    returned = import_pretrained(folder)
    assert returned.embed.W_E.dtype == torch.float32
    assert torch.equal(returned.ln_final.w, 1 + exact)


def test_weights_config_and_tokenizer_return_bit_for_bit(awkward_norms: Shard, tmp_path: Path) -> None:
    returned = import_pretrained(export_pretrained(awkward_norms, tmp_path / "out"))
    assert returned.config == awkward_norms.config
    assert returned.tokenizer is not None
    assert awkward_norms.tokenizer is not None
    assert returned.tokenizer.fingerprint == awkward_norms.tokenizer.fingerprint
    for name, weight in awkward_norms.state_dict().items():
        assert torch.equal(returned.state_dict()[name].view(torch.int32), weight.view(torch.int32)), name


def test_a_random_shard_54m_returns_bit_for_bit(random_shard_54m: Shard, tmp_path: Path) -> None:
    """Some of its norm weights lie below 1/2, where (w - 1) + 1 rounds."""
    rounded = [
        norm for norm in random_shard_54m.parameters() if norm.ndim == 1 and not torch.equal((norm - 1) + 1, norm)
    ]
    assert rounded
    returned = import_pretrained(export_pretrained(random_shard_54m, tmp_path / "out"))
    assert all(torch.equal(a, b) for a, b in zip(returned.parameters(), random_shard_54m.parameters(), strict=True))


def test_weights_trained_further_in_transformers_win_over_the_kept_norms(trained_model: Shard, tmp_path: Path) -> None:
    folder = export_pretrained(trained_model, tmp_path / "out")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 0.25
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(import_pretrained(folder).ln_final.w, trained_model.ln_final.w + 0.25)


def test_what_transformers_saves_again_comes_back(trained_model: Shard, tmp_path: Path) -> None:
    stock = transformers.AutoModelForCausalLM.from_pretrained(export_pretrained(trained_model, tmp_path / "out"))
    stock.save_pretrained(tmp_path / "again")
    returned = import_pretrained(tmp_path / "again")
    assert returned.config.layer_kinds == trained_model.config.layer_kinds
    with torch.no_grad():
        torch.testing.assert_close(returned(tokens_of(40)), trained_model(tokens_of(40)), **CLOSE)


def test_untied_fine_tuning_cannot_come_back(trained_model: Shard, tmp_path: Path) -> None:
    folder = export_pretrained(trained_model, tmp_path / "out")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] * 1.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InteropError, match="one embedding for both ends"):
        import_pretrained(folder)


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("attn_logit_softcapping", 50.0, "50.0"),
        ("hidden_activation", "gelu_pytorch_tanh", "'gelu_pytorch_tanh'"),
        ("model_type", "gemma2", "'gemma2'"),
        ("model_type", "shard", "checkpoint of Shardscope already"),
        ("num_key_value_heads", 2, "2, but a Shard needs 4, as num_attention_heads"),
        ("use_bidirectional_attention", True, "True, but a Shard needs false"),
        ("layer_types", GONE, "missing"),
        ("layer_types", None, "None"),
        ("layer_types", [], "one for each of num_hidden_layers"),
        ("layer_types", ["full_attention"], "4 of sliding_attention and full_attention"),
        ("layer_types", ["chunked_attention"] * 3 + ["full_attention"], "chunked_attention"),
        ("layer_types", ["sliding_attention"] * 4, "full_attention in the last layer"),
        ("layer_types", [["sliding_attention"], {}, 3, "full_attention"], "one for each"),
        ("final_logit_softcapping", None, "a number above 0"),
        ("rope_parameters", [10000.0], "a number above 0"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": None}, "a number above 0"),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}, "'rope_type': 'default'"),
        ("rms_norm_eps", "1e-6", "'1e-6', but a Shard needs a number above 0"),
        ("rms_norm_eps", float("nan"), "nan"),
        ("num_attention_heads", 0, "0, but a Shard needs a whole number"),
        ("hidden_size", 64.5, "64.5"),
        ("vocab_size", True, "True"),
        ("sliding_window", 1024, "model.window=1024 is longer than model.n_ctx=512"),
        ("max_position_embeddings", 10**9, "model.n_ctx=1000000000 is above 1048576"),
        ("intermediate_size", 10**9, "model.d_mlp=1000000000 is above 65536"),
        ("intermediate_size", 10**4, r"model\.layers\.0\.mlp\.\w+\.weight is .*10000"),
    ],
)
def test_a_model_that_is_no_shard_is_refused_by_the_key_that_shows_it(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: object, found: str
) -> None:
    values = {**json.loads((exported / "config.json").read_text()), key: value}
    values = {name: value for name, value in values.items() if value is not GONE}
    (exported / "config.json").write_text(json.dumps(values))
    assert main(["import", str(exported), "--out", str(tmp_path / "in")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(found, error), error
    assert key in error or "Shard" in error or "config.json says" in error
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize("contents", [b"", b"{}", b"\xff\xfe", b"not a file of this kind", b"[1]"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "shardscope.safetensors", "tokenizer.json"])
def test_a_corrupt_file_is_one_sentence_with_its_name(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, contents: bytes
) -> None:
    (exported / name).write_bytes(contents)
    assert main(["import", str(exported), "--out", str(tmp_path / "in")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {exported / name}: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), "model.norm.weight is missing"),
        (lambda w: w.update(extra=torch.ones(1)), "extra is no weight of a Shard"),
        (lambda w: w.update({"lm_head.weight": torch.ones(64)}), r"lm_head.weight is \(64,\), config.json says"),
        (lambda w: w.update({"model.norm.weight": torch.ones(64, dtype=torch.int32)}), "holds torch.int32"),
    ],
)
def test_weights_that_do_not_belong_to_the_config_are_refused_by_name(
    exported: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    weights = load_file(exported / "model.safetensors")
    change(weights)
    save_file(weights, exported / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InteropError, match=message):
        import_pretrained(exported)


def test_the_tokenizer_encodes_as_ours_does(trained_model: Shard, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(export_pretrained(trained_model, tmp_path / "out"))
    ours = trained_model.tokenizer
    assert isinstance(ours, Tokenizer)
    for text in ("", " two  spaces\n", "héllo 漢字 🙂", "12+7=19", "a <|endoftext|> b"):
        assert tokenizer(text).input_ids == ours.encode(text, bos=True)
        assert tokenizer.decode(ours.encode(text)) == text
    assert tokenizer.model_max_length == trained_model.config.n_ctx
    assert tokenizer(["a", "a b c"], padding=True).input_ids[0][0] == ours.bos_id, (
        "short prompts are padded on the left"
    )


def test_a_padded_batch_continues_as_each_prompt_alone(trained_model: Shard, tmp_path: Path) -> None:
    folder = export_pretrained(trained_model, tmp_path / "out")
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompts = ["K7QZK7Q", "ABCDEFGHABCDEFG"]
    together = stock.generate(
        **tokenizer(prompts, padding=True, return_tensors="pt"), max_new_tokens=8, eos_token_id=None
    )
    for row, prompt in zip(together, prompts, strict=True):
        alone = stock.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=8, eos_token_id=None)[0]
        assert torch.equal(row[-8:], alone[-8:])


def test_an_export_never_replaces_what_is_there(trained_model: Shard, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(InteropError, match="not empty"):
        export_pretrained(trained_model, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep me"
    with pytest.raises(InteropError, match="float32, bfloat16, float16"):
        export_pretrained(trained_model, tmp_path / "new", dtype="int8")
    assert not (tmp_path / "new").exists()


def test_a_width_that_vaultgemma_refuses_is_named(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = Shard(
        ShardConfig(vocab_size=300, n_ctx=32, d_model=30, n_layers=2, n_heads=4, d_head=8, d_mlp=16, window=8)
    )
    with pytest.raises(InteropError, match="d_model=30 and n_heads=4"):
        export_pretrained(model, tmp_path / "out")


def test_the_commands_go_there_and_back(
    trained_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, back = str(tmp_path / "there"), str(tmp_path / "back")
    assert main(["export", str(trained_checkpoint), "--out", there]) == 0
    assert main(["import", there, "--out", back]) == 0
    returned = load(back)
    original = load(trained_checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(returned.parameters(), original.parameters(), strict=True))
    assert f"{original.n_params:,} parameters" in capsys.readouterr().out


def test_an_export_holds_a_card_and_a_generation_config(trained_model: Shard, tmp_path: Path) -> None:
    folder = export_pretrained(trained_model, tmp_path / "out")
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == generation.bos_token_id == 0
    card = (folder / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "window of 8 positions" in card
    code = card.split("```python\n")[1].split("```")[0].replace('folder = "."', f"folder = {str(folder)!r}")
    exec(compile(code, "README.md", "exec"), {})


def test_in_memory_and_on_disk_are_the_same_model(trained_model: Shard) -> None:
    with torch.no_grad():
        theirs = to_transformers(trained_model)(tokens_of(50)).logits
        torch.testing.assert_close(theirs, trained_model(tokens_of(50)), **CLOSE)


def test_a_directory_in_several_files_is_read(trained_model: Shard, exported: Path, tmp_path: Path) -> None:
    stock = transformers.AutoModelForCausalLM.from_pretrained(exported)
    stock.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    parts = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors"))
    assert len(parts) > 2
    returned = import_pretrained(tmp_path / "parts")
    with torch.no_grad():
        torch.testing.assert_close(returned(tokens_of(40)), trained_model(tokens_of(40)), **CLOSE)

    index = tmp_path / "parts" / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    places = list(listed["weight_map"].values())
    first = next(name for name, place in listed["weight_map"].items() if places.count(place) > 1)
    for changed, message in (
        ({**listed["weight_map"], first: "../other.safetensors"}, "does not say in which file of the folder"),
        ({**listed["weight_map"], first: "absent.safetensors"}, r"absent.safetensors: cannot be read"),
        ({**listed["weight_map"], "extra": parts[0]}, "lists extra in .* which does not hold it"),
        ({k: v for k, v in listed["weight_map"].items() if k != first}, "which .* does not place there"),
        ([], "does not say"),
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(InteropError, match=message):
            import_pretrained(tmp_path / "parts")


def test_a_directory_without_safetensors_says_what_it_holds(exported: Path) -> None:
    (exported / "model.safetensors").rename(exported / "pytorch_model.bin")
    with pytest.raises(InteropError, match=r"has neither model\.safetensors nor .*it has pytorch_model\.bin, so save"):
        import_pretrained(exported)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (exported / "model.safetensors").write_text(pointer)
    with pytest.raises(InteropError, match="it is a Git LFS pointer, not the file it points to"):
        import_pretrained(exported)
