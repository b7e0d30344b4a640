from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from shardscope import Shard, files, load
from shardscope.checkpoint import (
    CheckpointError,
    TrainingState,
    checkpoint_folder,
    describe,
    list_checkpoints,
    read_training_state,
    resolve_checkpoint,
    save_checkpoint,
)
from shardscope.files import WriteError
from shardscope.tokenizer import Tokenizer


def test_a_checkpoint_comes_back_as_it_was(tiny_checkpoint: Path, tiny_model: Shard) -> None:
    model = load(tiny_checkpoint)
    assert not model.training
    assert model.config == tiny_model.config
    assert model.tokenizer is not None
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model.parameters(), strict=True))
    ids = torch.arange(30)[None]
    assert torch.equal(model(ids), tiny_model(ids))


def test_a_loaded_model_is_trained_on_and_its_file_stays_as_it_is(tiny_checkpoint: Path) -> None:
    before = (tiny_checkpoint / "model.safetensors").read_bytes()
    model = load(tiny_checkpoint)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    with torch.no_grad():
        for weight in model.parameters():
            assert weight.grad is not None
            weight += 1
    assert (tiny_checkpoint / "model.safetensors").read_bytes() == before


def test_a_bfloat16_checkpoint_stays_bfloat16_unless_asked(tmp_path: Path, tiny_model: Shard) -> None:
    folder = save_checkpoint(tmp_path / "half", tiny_model.bfloat16())
    assert load(folder, dtype=None).embed.W_E.dtype == torch.bfloat16
    assert load(folder).embed.W_E.dtype == torch.float32


def test_the_files_are_ones_that_any_tool_reads(tiny_checkpoint: Path) -> None:
    from safetensors import safe_open
    from tokenizers import Tokenizer as Backend

    assert {p.name for p in tiny_checkpoint.iterdir()} == {"model.safetensors", "config.json", "tokenizer.json"}
    with safe_open(tiny_checkpoint / "model.safetensors", "pt") as file:
        assert "blocks.0.attn.W_Q" in set(file.keys())
    assert json.loads((tiny_checkpoint / "config.json").read_text())["model"]["d_model"] == 32
    assert Backend.from_file(str(tiny_checkpoint / "tokenizer.json")).get_vocab_size() <= 300


@pytest.mark.parametrize(
    ("key", "value"), [("n_ctx", 10**12), ("n_layers", 10**6), ("d_mlp", 10**15), ("n_heads", -1), ("depth", 3)]
)
def test_a_strangers_config_that_no_machine_could_hold_is_one_sentence_with_its_file(
    tiny_checkpoint: Path, key: str, value: int
) -> None:
    """Before memory is asked for, or a block is built."""
    config = tiny_checkpoint / "config.json"
    notes = json.loads(config.read_text())
    config.write_text(json.dumps({**notes, "model": {**notes["model"], key: value}}))
    for read in (load, describe):
        with pytest.raises(CheckpointError, match=rf"config\.json: .*model\.{key}") as error:
            read(tiny_checkpoint)
        assert "\n" not in str(error.value)


def test_training_state_comes_back_as_it_was(tmp_path: Path, tiny_model: Shard) -> None:
    state = TrainingState(step=7, facts={"phase": "stable"}, optimizer={"embed.W_E.exp_avg": torch.randn(3, 2)})
    back = read_training_state(save_checkpoint(tmp_path / "c", tiny_model, state=state))
    assert (back.step, back.facts) == (7, {"phase": "stable"})
    assert torch.equal(back.optimizer["embed.W_E.exp_avg"], state.optimizer["embed.W_E.exp_avg"])


def test_a_save_that_dies_leaves_the_old_checkpoint_and_no_half_one(
    tiny_checkpoint: Path, tiny_model: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (tiny_checkpoint / "model.safetensors").read_bytes()

    def die(self: Tokenizer, path: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Tokenizer, "save", die)
    with torch.no_grad():
        tiny_model.embed.W_E.zero_()
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tiny_checkpoint, tiny_model, tokenizer=load(tiny_checkpoint).tokenizer)
    assert (tiny_checkpoint / "model.safetensors").read_bytes() == before
    assert [p.name for p in tiny_checkpoint.parent.iterdir()] == [tiny_checkpoint.name]


def test_a_replacement_that_fails_at_the_last_moment_puts_the_old_checkpoint_back(
    tiny_checkpoint: Path, tiny_model: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (tiny_checkpoint / "model.safetensors").read_bytes()
    rename, failed = Path.rename, []

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".partial" and target == tiny_checkpoint and len(failed) < 2:
            failed.append(target)
            raise OSError("the disk has gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr(files, "_exchanged_in_one_step", lambda one, other: False)  # as on most systems
    with torch.no_grad():
        tiny_model.embed.W_E.zero_()
    with pytest.raises(WriteError, match=r"the disk has gone.*what was written there before is intact"):
        save_checkpoint(tiny_checkpoint, tiny_model)
    assert (tiny_checkpoint / "model.safetensors").read_bytes() == before
    assert [p.name for p in tiny_checkpoint.parent.iterdir()] == [tiny_checkpoint.name]


def test_a_checkpoint_that_lacks_a_file_does_not_count(tmp_path: Path, tiny_model: Shard) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path / "checkpoints" / f"step-{step:08d}", tiny_model)
    (tmp_path / "checkpoints" / "step-00000002" / "config.json").unlink()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]


def test_without_a_path_the_newest_run_is_loaded(
    tmp_path: Path, tiny_model: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shardscope.checkpoint.BUILT_IN", tmp_path / "none")
    with pytest.raises(CheckpointError, match="no checkpoint was named, none ships"):
        resolve_checkpoint()
    for age, (run, step) in enumerate([("old", 30), ("new", 2), ("new", 10)]):
        folder = save_checkpoint(checkpoint_folder(Path("runs") / run, step), tiny_model)
        os.utime(folder, (age, age))
    assert resolve_checkpoint() == Path("runs/new/checkpoints/step-00000010")
    assert resolve_checkpoint("runs/old") == Path("runs/old/checkpoints/step-00000030")
    assert [c.name for c in list_checkpoints(Path("runs/new"))] == ["step-00000002", "step-00000010"]


def broken(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder


def test_what_is_no_checkpoint_is_refused_in_one_sentence(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tinny: no such checkpoint or run; did you mean '.*tiny'\?"):
        load(tmp_path / "tinny")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"neither a checkpoint .* nor a run"):
        load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "config.json: cannot be read as JSON"),
        ("config.json", b"[1]", "config.json: holds list"),
        ("config.json", b'{"model_type": "llama"}', "model_type='llama' is not a Shardscope checkpoint"),
        ("model.safetensors", b"\x80\x04pickle", "model.safetensors: cannot be read as safetensors"),
        ("tokenizer.json", b"{}", "tokenizer.json"),
    ],
)
def test_a_damaged_file_is_named(tiny_checkpoint: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(broken(tiny_checkpoint, name, content))


def test_weights_of_another_config_are_named(tiny_checkpoint: Path) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    config["model"]["d_mlp"] = 64
    with pytest.raises(CheckpointError, match=r"blocks.0.mlp.W_gate is \(32, 48\), the config says \(32, 64\)"):
        load(broken(tiny_checkpoint, "config.json", json.dumps(config).encode()))


def test_describe_says_what_it_is(tiny_checkpoint: Path) -> None:
    text = describe(tiny_checkpoint)
    assert "4, SGSG (S sliding over 8 tokens, G global)" in text
    assert "(F32)" in text
