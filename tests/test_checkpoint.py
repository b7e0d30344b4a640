from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deleted_meanwhile import at_every_question
from safetensors.torch import load_file, save_file

from shardscope import Shard, files, load
from shardscope.checkpoint import (
    BUILT_IN,
    PARTS,
    CheckpointError,
    TrainingState,
    checkpoint_folder,
    describe,
    list_checkpoints,
    read_facts,
    read_training_state,
    resolve_checkpoint,
    save_checkpoint,
)
from shardscope.config import ConfigError
from shardscope.files import WriteError
from shardscope.tensors import read_header
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

    assert {p.name for p in tiny_checkpoint.iterdir()} == {
        *("model.safetensors", "config.json", "tokenizer.json", "manifest.json")
    }
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
    notes = json.loads((tiny_checkpoint / "config.json").read_text())
    broken(tiny_checkpoint, "config.json", json.dumps({**notes, "model": {**notes["model"], key: value}}).encode())
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


@pytest.mark.parametrize("verify", [True, False])
def test_whenever_a_run_deletes_its_checkpoint_all_of_the_newest_is_loaded(
    tmp_path: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer, verify: bool
) -> None:
    older = save_checkpoint(checkpoint_folder(tmp_path / "run", 1), tiny_model, tokenizer=tiny_tokenizer)
    with torch.no_grad():
        tiny_model.embed.W_E.mul_(2)
    newer = save_checkpoint(tmp_path / "step-00000002", tiny_model, tokenizer=tiny_tokenizer)
    found = list(at_every_question(older, newer, lambda: load(tmp_path / "run", verify=verify)))
    assert len(found) > 10
    for model in found:
        assert torch.equal(model.embed.W_E, tiny_model.embed.W_E)
        assert model.tokenizer is not None
    described = list(at_every_question(older, newer, lambda: describe(tmp_path / "run")))
    assert len(described) > 10
    assert all("step-00000002" in text for text in described)
    missing = r"step-00000001: no such checkpoint"
    with pytest.raises(CheckpointError, match=missing):
        list(at_every_question(older, newer, lambda: load(older)))


def test_a_run_means_its_newest_checkpoint_and_no_path_the_built_in_one(tmp_path: Path, tiny_model: Shard) -> None:
    for age, step in enumerate([10, 2]):
        folder = save_checkpoint(checkpoint_folder(tmp_path / "run", step), tiny_model)
        os.utime(folder, (age, age))
    assert [c.name for c in list_checkpoints(tmp_path / "run")] == ["step-00000002", "step-00000010"]
    assert resolve_checkpoint(tmp_path / "run") == tmp_path / "run/checkpoints/step-00000010", "the number decides"
    assert resolve_checkpoint() == BUILT_IN


def broken(folder: Path, name: str, content: bytes) -> Path:
    """A checkpoint with another file in it, as from a program that knows no manifest."""
    (folder / "manifest.json").unlink(missing_ok=True)
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


# ------------------------------------------------------------------------------------------ strangers' checkpoints


def altered(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """The checkpoint with other tensors, and no manifest."""
    tensors = load_file(folder / name)
    change(tensors)
    (folder / "manifest.json").unlink()
    save_file(tensors, folder / name)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({"ln_final.w": torch.ones(32, dtype=torch.int64)}), "ln_final.w holds int64; weights are"),
        (lambda w: w.update({"ln_final.w": torch.ones(32, dtype=torch.complex64)}), "ln_final.w holds complex64"),
        (lambda w: w.update({"ln_final.w": torch.ones(32).to(torch.float8_e4m3fn)}), "ln_final.w holds float8"),
        (lambda w: w.update({"ln_final.w": torch.ones(32, dtype=torch.bool)}), "ln_final.w holds bool"),
        (lambda w: w["blocks.2.mlp.W_in"][3, 4].fill_(math.nan), "blocks.2.mlp.W_in holds a number that is not finite"),
        (lambda w: w["blocks.2.mlp.W_in"][3, 4].fill_(-math.inf), "blocks.2.mlp.W_in holds a number that is not"),
        (lambda w: w.pop("ln_final.w"), "ln_final.w is missing, the config says"),
        (lambda w: w.update(extra=torch.ones(1)), r"extra is \(1,\), the config says there is no such weight"),
    ],
)
def test_tensors_that_are_no_weights_are_refused_by_name(
    tiny_checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(altered(tiny_checkpoint, "model.safetensors", change))


@pytest.fixture
def resumable(tmp_path: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer) -> Path:
    """A run's second checkpoint, with training state; the first is beside it."""
    for step in (5, 10):
        optimizer = {"momentum": torch.randn(32, 8), "count": torch.tensor(step)}
        state = TrainingState(step=step, facts={"steps": 20, "phase": "stable", "tokens": 99}, optimizer=optimizer)
        save_checkpoint(checkpoint_folder(tmp_path / "run", step), tiny_model, tokenizer=tiny_tokenizer, state=state)
    return checkpoint_folder(tmp_path / "run", 10)


def test_a_number_in_the_optimizer_that_is_not_finite_is_refused(resumable: Path) -> None:
    altered(resumable, "optimizer.safetensors", lambda tensors: tensors["momentum"][0, 0].fill_(math.nan))
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: momentum holds a number that is not finite"):
        read_training_state(resumable)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "step is None"),
        ('{"step": "10"}', "step is 10, which no run"),
        ('{"step": 10.0}', "step is 10.0"),
        ('{"step": true}', "step is True"),
        ('{"step": -10}', "step is -10"),
        ('{"step": 1' + "0" * 400 + "}", "step is 1"),
        ('{"step": 8}', "says step 8, but its folder is step-00000010"),
        ('{"step": 10, "tokens": "many"}', "tokens is many"),
        ('{"step": 10, "seconds": NaN}', "seconds is nan"),
        ('{"step": 10, "skipped_steps": null}', "skipped_steps is None"),
        ('{"step": 10, "phase": ["stable"]}', "phase is a list"),
        ('{"step": 10, "data": "none"}', "data is none"),
        ('{"step": 10, "status": 3}', "status is 3"),
        ('{"step": 10, "reason": {}}', "reason is a dict"),
        ("[" * 100_000, "nested too deeply"),
        ('{"step": ' + "1" * 5000 + "}", "a number in it is too long"),
    ],
)
def test_a_training_state_that_no_run_can_have_is_one_sentence(resumable: Path, content: str, message: str) -> None:
    broken(resumable, "state.json", content.encode())
    for read in (read_training_state, read_facts, describe):
        with pytest.raises(CheckpointError, match=rf"state\.json: .*{re.escape(message)}") as error:
            read(resumable)
        assert len(str(error.value)) < 1000
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("kind", ["pipe", "endless", "folder", "outside", "nested", "long number", "empty", "sparse"])
def test_a_file_that_is_none_or_never_ends_is_one_sentence(tiny_checkpoint: Path, name: str, kind: str) -> None:
    (tiny_checkpoint / "manifest.json").unlink()
    path, outside = tiny_checkpoint / name, tiny_checkpoint.parent / "outside"
    if name != "manifest.json":
        path.rename(outside)
    else:
        outside.write_text("{}")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind in ("endless", "outside"):
        path.symlink_to("/dev/zero" if kind == "endless" else outside)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(2**40)
    else:
        path.write_text({"nested": "[" * 100_000, "long number": "1" * 5000, "empty": ""}[kind])
    with pytest.raises(ConfigError) as error:
        load(tiny_checkpoint)
    assert name in str(error.value)
    assert len(str(error.value)) < 1000
    assert "\n" not in str(error.value)


def test_links_are_followed_inside_a_run_and_inside_a_snapshot_of_the_hub(resumable: Path) -> None:
    """Two checkpoints may share a tokenizer; the hub's cache keeps every file once and links to it."""
    (resumable / "tokenizer.json").unlink()
    (resumable / "tokenizer.json").symlink_to(Path("..") / "step-00000005" / "tokenizer.json")
    assert load(resumable).tokenizer is not None
    hub = resumable.parents[2] / "models--someone--shard"
    (hub / "snapshots" / "abc").mkdir(parents=True)
    (hub / "blobs").mkdir()
    for number, path in enumerate(sorted((resumable.parent / "step-00000005").iterdir())):
        path.rename(hub / "blobs" / str(number))
        (hub / "snapshots" / "abc" / path.name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    assert load(hub / "snapshots" / "abc").tokenizer is not None
    linked = hub.parent / "linked"
    linked.symlink_to(hub / "snapshots" / "abc")
    assert load(linked).tokenizer is not None


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "file/below"])
def test_a_path_that_no_system_has_is_one_sentence(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    for read in (load, describe, resolve_checkpoint):
        with pytest.raises(CheckpointError, match=r"no checkpoint can be read there|no such checkpoint"):
            read(tmp_path / path)


def test_what_a_stranger_wrote_into_the_notes_is_shown_as_text_on_one_line(tiny_checkpoint: Path) -> None:
    notes = json.loads((tiny_checkpoint / "config.json").read_text())
    notes |= {"note": "\x1b[2Jgone\nstep: 9", "long": "x" * 10_000, "table": {"a": [1]}, "tokens": 12345}
    text = describe(broken(tiny_checkpoint, "config.json", json.dumps(notes).encode()))
    shown = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert shown["note"] == "␛[2Jgone↵step: 9"
    assert shown["long"] == "x" * 200 + "…"
    assert (shown["table"], shown["tokens"]) == ("a dict", "12,345")


# --------------------------------------------------------------------------------------------------- the manifest


def read_everything(folder: Path) -> None:
    load(folder)
    read_training_state(folder)


def test_every_flipped_bit_is_noticed(resumable: Path) -> None:
    """In every file, wherever: random bits, and the first and the last of each file."""
    rng = random.Random(0)
    files = {path: path.read_bytes() for path in sorted(resumable.iterdir())}
    assert {path.name for path in files} == {*PARTS, "manifest.json"}
    for path, content in files.items():
        places = [(0, 0), (len(content) - 1, 7), *((rng.randrange(len(content)), rng.randrange(8)) for _ in range(16))]
        for place, bit in places:
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(ConfigError):
                read_everything(resumable)
        path.write_bytes(content)
    read_everything(resumable)


def test_every_cut_is_noticed(resumable: Path) -> None:
    rng = random.Random(1)
    for path in sorted(resumable.iterdir()):
        content = path.read_bytes()
        for length in (0, 1, 8, len(content) - 1, *(rng.randrange(len(content)) for _ in range(8))):
            path.write_bytes(content[:length])
            if path.name != "manifest.json" or length < len(content) - 1:  # its last byte is the end of the line
                with pytest.raises(ConfigError, match=path.name):
                    read_everything(resumable)
        if path.name != "manifest.json":
            path.write_bytes(content + b"\n")
            with pytest.raises(ConfigError, match=path.name):
                read_everything(resumable)
            path.unlink()
            with pytest.raises(ConfigError, match=path.name):
                read_everything(resumable)
        path.write_bytes(content)


def test_the_message_names_the_tensor_and_the_checkpoint_before(resumable: Path) -> None:
    path = resumable / "model.safetensors"
    entry, content = read_header(path)["blocks.1.attn.W_O"], bytearray(path.read_bytes())
    content[entry.stop - 1] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load(resumable.parents[1])
    assert str(error.value) == (
        f"{path}: blocks.1.attn.W_O is not as it was saved (its SHA-256 differs); the checkpoint before it is "
        f"{resumable.parent / 'step-00000005'}; use another copy, or delete manifest.json to take the files as they are"
    )
    load(resumable.parent / "step-00000005")
    load(resumable, verify=False)
    (resumable / "manifest.json").unlink()
    load(resumable)


def test_files_of_two_checkpoints_are_not_taken_for_one(
    resumable: Path, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    """Each file is whole in itself: another tokenizer of the same size, another step's state, a config that lies."""
    other = Tokenizer.train(["quite another text, of which there is enough: " + "abc xyz " * 50] * 4, vocab_size=270)
    assert other.vocab_size <= tiny_tokenizer.vocab_size
    older = resumable.parent / "step-00000005"
    config = json.loads((resumable / "config.json").read_text())
    lies = [{"window": 16}, {"rope_base": 500.0}, {"logit_cap": 20.0}, {"norm_eps": 1e-3}, {"layer_pattern": "G"}]
    swaps = {
        "tokenizer.json": [other.save(tmp_path / "tokenizer.json").read_bytes()],
        "state.json": [(older / "state.json").read_bytes()],
        "optimizer.safetensors": [(older / "optimizer.safetensors").read_bytes()],
        "config.json": [json.dumps({**config, "model": {**config["model"], **lie}}).encode() for lie in lies],
    }
    for name, contents in swaps.items():
        before = (resumable / name).read_bytes()
        for content in contents:
            (resumable / name).write_bytes(content)
            with pytest.raises(CheckpointError, match=rf"{name}.* is not as it was saved"):
                read_everything(resumable)
        (resumable / name).write_bytes(before)


def test_a_file_that_was_not_saved_with_the_others_is_named(tmp_path: Path, tiny_model: Shard) -> None:
    folder = save_checkpoint(tmp_path / "without", tiny_model)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json was not saved with it; use another copy, or delete"):
        load(folder)


def test_a_checkpoint_without_manifest_opens_and_info_says_so(tiny_checkpoint: Path) -> None:
    assert "as they were saved (manifest.json)" in describe(tiny_checkpoint)
    (tiny_checkpoint / "manifest.json").unlink()
    assert load(tiny_checkpoint).n_params > 0
    assert "without manifest.json, so whether they are as they were saved cannot be said" in describe(tiny_checkpoint)


def test_a_manifest_says_what_sha256sum_says(resumable: Path) -> None:
    files = json.loads((resumable / "manifest.json").read_text())["files"]
    assert files.keys() == set(PARTS)
    for name, entry in files.items():
        content = (resumable / name).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    weights = load_file(resumable / "model.safetensors")
    found = files["model.safetensors"]["tensors"]
    assert found.keys() == {"", *weights}
    assert all(found[name] == hashlib.sha256(w.numpy().tobytes()).hexdigest() for name, w in weights.items())


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        '{"format": 2, "files": {}}',
        '{"format": 1, "files": []}',
        '{"format": 1, "files": {"config.json": 3}}',
        '{"format": 1, "files": {"../config.json": {"bytes": 1, "sha256": ""}}}',
        '{"format": 1, "files": {"model.safetensors": {"bytes": 1, "sha256": "", "tensors": []}}}',
        '{"format": 1, "files": {"model.safetensors": {"bytes": 1, "sha256": 3}}}',
        '{"format": 1, "files": {}, "more": 1}',
    ],
)
def test_a_manifest_that_says_nothing_sensible_is_one_sentence(tiny_checkpoint: Path, content: str) -> None:
    (tiny_checkpoint / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"delete manifest\.json to take the files as they are") as error:
        load(tiny_checkpoint)
    assert "\n" not in str(error.value)
