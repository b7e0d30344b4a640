"""`auto` is CUDA, else an Apple GPU, else the CPU, wherever a device is named; what is not there is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shardscope import load
from shardscope.cli import main
from shardscope.config import ConfigError
from shardscope.device import pick_device


def machine(monkeypatch: pytest.MonkeyPatch, cards: int = 0, apple: bool = False) -> None:
    """A machine with so many CUDA cards, and with an Apple GPU or without."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)


@pytest.mark.parametrize(
    ("cards", "apple", "name", "expected"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "mps"),
        (2, True, "auto", "cuda:0"),
        (2, False, "cuda", "cuda:0"),
        (2, False, "cuda:1", "cuda:1"),
        (2, True, "cpu", "cpu"),
        (0, True, "mps", "mps"),
    ],
)
def test_the_best_device_is_picked_or_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch, cards: int, apple: bool, name: str, expected: str
) -> None:
    machine(monkeypatch, cards, apple)
    assert str(pick_device(name)) == expected
    assert str(pick_device(torch.device(name) if name != "auto" else name)) == expected


def test_each_process_of_several_takes_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cards=4)
    assert [str(pick_device("auto", rank)) for rank in range(4)] == [f"cuda:{rank}" for rank in range(4)]


NOWHERE = [
    ("nope", "device='nope' is not a torch device; use auto, cpu, cuda, cuda:1, or mps"),
    ("", "device='' is not a torch device"),
    ("cuda", "this torch sees no CUDA device; use auto or cpu"),
    ("cuda:0", "this torch sees no CUDA device"),
    ("mps", "this torch sees no Apple GPU; use auto or cpu"),
    ("meta", "Shardscope runs on cpu, cuda and mps"),
    ("xla", "Shardscope runs on cpu, cuda and mps"),
    ("cuda:-1", "device='cuda:-1' is not a torch device"),
]


@pytest.mark.parametrize(("name", "says"), NOWHERE)
def test_a_device_that_is_not_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, name: str, says: str
) -> None:
    machine(monkeypatch)
    for call in (pick_device, lambda device: load(tiny_checkpoint, device=device)):
        with pytest.raises(ConfigError, match=says) as error:
            call(name)
        assert "\n" not in str(error.value)


def test_a_card_too_many_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cards=2)
    with pytest.raises(ConfigError, match="device='cuda:2': there are 2 CUDA devices, from 0 on"):
        pick_device("cuda:2")


COMMANDS = [
    ["generate", "Once", "--checkpoint", "{checkpoint}"],
    ["attention", "--checkpoint", "{checkpoint}", "--prompt-file", "{folder}/prompt.txt", "--out", "{folder}/out"],
    ["bench", "attention"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_says_in_one_sentence_that_a_device_is_not_there(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    (tmp_path / "prompt.txt").write_text("Once upon a time")
    words = [word.format(checkpoint=tiny_checkpoint, folder=tmp_path) for word in words]
    assert main([*words, "--device", "nope"]) == 1
    said = capsys.readouterr().err
    assert "'nope'" in said
    assert "Traceback" not in said
    assert said.count("\n") == 1


def test_auto_is_a_device_of_the_attention_command(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "prompt.txt").write_text("Once upon a time")
    out = tmp_path / "out"
    words = [
        "attention",
        "--checkpoint",
        str(tiny_checkpoint),
        "--prompt-file",
        str(tmp_path / "prompt.txt"),
        "--out",
        str(out),
    ]
    assert main([*words, "--device", "auto"]) == 0
    assert (out / "attention.html").exists()
