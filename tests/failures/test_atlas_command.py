"""`shardscope atlas`: a table, files, and one sentence where there is neither."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from planted_text import CLEAN, HALF, LOOPING, planted_run

from shardscope import progress
from shardscope.cli import main
from shardscope.colors import viridis
from shardscope.tokenizer import Tokenizer

PROMPTS = [
    {"id": "sum", "prompt": "What is 20 + 22? Answer:", "domain": "math", "gold": "42"},
    {"id": "moon", "prompt": "The moon is"},
    {"id": "sea", "prompt": "The sea is"},
]


@pytest.fixture
def runs(tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pretraining that loops, its anneal that loops less, and a file of prompts."""
    planted_run(tmp_path / "pretrain", tiny_tokenizer, {5: LOOPING, 10: LOOPING})
    planted_run(tmp_path / "anneal", tiny_tokenizer, {3: HALF, 6: CLEAN})
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


OPTIONS = [
    "--prompts",
    "prompts.jsonl",
    "--temperatures",
    "0,1",
    "--seeds",
    "3",
    "--max-new-tokens",
    "26",
    "--device",
    "cpu",
]


def test_a_pretraining_and_its_anneal_become_a_table_a_file_and_a_picture(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", "out/atlas.json", "--png", "atlas.png"]
    assert main(["atlas", "pretrain", "anneal", *OPTIONS, *files]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    found = json.loads((runs / "out" / "atlas.json").read_text())
    assert [(one["run"], one["step"], one["samples"]) for one in found["checkpoints"]] == [
        ("pretrain", 5, 12), ("pretrain", 10, 12), ("anneal", 3, 12), ("anneal", 6, 12),
    ]  # fmt: skip
    loops = {
        (rate["run"], rate["step"], rate["domain"]): (rate["fired"], rate["samples"])
        for rate in found["rates"]
        if rate["failure"] == "loop" and rate["temperature"] is None
    }
    assert loops["pretrain", 10, "all"] == (12, 12)
    assert (loops["anneal", 3, "math"], loops["anneal", 3, "prose"]) == ((4, 4), (0, 8))
    assert loops["anneal", 6, "all"] == (0, 12)
    says = {(one["domain"], one["failure"]): one["says"] for one in found["changes"] if one["temperature"] is None}
    assert says["all", "loop"] == "rarer"

    picture = Image.open(io.BytesIO((runs / "atlas.png").read_bytes())).convert("RGB")
    used = {pixel for _, pixel in picture.getcolors(2**24)}
    assert {viridis(rate) for rate in (0, 1 / 3, 1)} <= used, "none, the third of the half-cured run, and all"

    assert main(["atlas", "pretrain", "anneal", *OPTIONS]) == 0
    table = capsys.readouterr().out
    assert re.search(
        r"^loop +100\.0 \(76–100\) +100\.0 \(76–100\) +33\.3 \(14–61\) +0\.0 \(0–24\)$", table, re.MULTILINE
    )
    assert "from pretrain step 10 to anneal step 6:" in table
    assert re.search(r"all +loop +rarer +-100\.0 points", table)
    assert {path.name for path in (runs / "anneal" / "atlas").glob("*/*")} == {
        "settings.json", "step-00000003.jsonl", "step-00000006.jsonl",
    }  # fmt: skip


def test_progress_says_how_long_it_still_takes(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LOOKS", 0.0)
    assert main(["atlas", "anneal", *OPTIONS]) == 0
    assert re.search(r"atlas: +\d+%.*\[\d\d:\d\d<\d\d:\d\d", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such checkpoint or run"),
        (["pretrain", "nowhere"], "nowhere: no such checkpoint or run"),
        (["pretrain", "pretrain"], "pretrain is named twice"),
        (["pretrain", "--prompts", "missing.jsonl"], "missing.jsonl: cannot be read"),
        (["pretrain", "--prompts", "empty.jsonl"], "empty.jsonl: holds no prompt"),
        (["pretrain", "--prompts", "."], ".: cannot be read"),
        (["pretrain", "--temperatures=-1"], "temperature -1 must be 0 (greedy) or above"),
        (["pretrain", "--temperatures", "nan"], "temperature nan must be 0"),
        (["pretrain", "--temperatures", "1,1.0"], "a temperature is given twice"),
        (["pretrain", "--device", "abacus"], "abacus"),
        (["pretrain", "--json", "anneal"], "--json anneal: is a folder"),
        (["pretrain", "--png", "anneal"], "--png anneal: is a folder"),
        (["pretrain", "--max-new-tokens", "128"], "fit into the model's context of 128"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_sentence(
    words: list[str], message: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "empty.jsonl").touch()
    given = ["--prompts", "prompts.jsonl"] if "--prompts" not in words else []
    assert main(["atlas", *words, *given]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--temperatures", "warm"], "'warm' is not a list of numbers; write them as in 0,0.7,1"),
        (["--temperatures", ""], "is not a list of numbers"),
        (["--seeds", "0"], "0 is too small"),
        (["--seeds", "x"], "'x' is not a whole number"),
        (["--max-new-tokens", "0"], "0 is too small"),
        (["--seed", "-1"], "-1 is too small"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_that_cannot_be_is_said_with_the_usage(
    option: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["atlas", *option])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
