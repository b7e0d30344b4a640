"""`shardscope xray`: one command from a prompt to a verdict, and one sentence where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from shardscope import Shard
from shardscope.checkpoint import save_checkpoint
from shardscope.cli import main
from shardscope.failures.loop_xray import replay
from shardscope.tokenizer import Tokenizer


@pytest.fixture
def stuck_checkpoint(tmp_path: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer) -> Path:
    """A model whose loud embeddings make it say the last token again and again; its context holds a short loop."""
    tiny_model.embed.W_E.data.mul_(20)
    return save_checkpoint(tmp_path / "stuck", tiny_model, tokenizer=tiny_tokenizer)


def test_a_prompt_becomes_a_verdict_a_file_and_a_picture(
    stuck_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "SHORTEST", 16)
    command = ["xray", str(stuck_checkpoint), "--prompt", "Once", "--max-new-tokens", "30", "--device", "cpu"]
    assert main([*command, "--json", str(tmp_path / "x.json"), "--picture", str(tmp_path / "x.svg")]) == 0
    assert capsys.readouterr().out == ""
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["period"] == 1
    assert found["verdict"] in ("copy", "fallback", "undecided")
    assert len(found["cause"]["parts"]) == 4 * 4 + 4
    assert {"onset", "smallest_set", "random_control", "cures"} < set(found)
    picture = ElementTree.parse(tmp_path / "x.svg")
    assert len([node for node in picture.iter() if node.tag.endswith("title")]) == 20
    assert main([*command, "--picture", str(tmp_path / "x.html")]) == 0
    table = capsys.readouterr().out
    assert f"verdict   {found['verdict']}" in table
    assert "smallest set: " in table
    assert (tmp_path / "x.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "Once", "--max-new-tokens", "5"], "the text of 5 tokens does not end in a loop"),
        ([], "no prompt is given; pass one with --prompt TEXT or --prompt-file FILE"),
        (["--prompt", "a", "--prompt-file", "b"], "two prompts are given"),
        (["--prompt", "a", "--picture", "x.gif"], "a picture is written as .svg or .html"),
        (["--prompt", ""], "prompt"),
        (["--prompt-file", "nowhere.txt"], "nowhere.txt"),
        (["--prompt", "a", "--device", "abacus"], "abacus"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    words: list[str], message: str, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["xray", str(tiny_checkpoint), *words]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert message in output.err
