"""One bad item in a folder of strangers' files is a line on the page, and everything else works."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("streamlit", reason="the explorer needs the [app] extra")

from small_run import make_run
from streamlit.testing.v1 import AppTest

from apps.parts.text import plain
from shardscope import Shard, ShardConfig
from shardscope.checkpoint import save_checkpoint
from shardscope.tokenizer import Tokenizer

PAGES = ["attention", "tokens", "heads", "runs", "failures"]
OF_A_MODEL = [name for name in PAGES if name != "runs"]
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.fixture
def runs(tmp_path: Path, tiny_config: ShardConfig, tiny_tokenizer: Tokenizer) -> Path:
    """A folder with one good run, whose context holds the failures page's prompts."""
    make_run(tmp_path / "runs" / "good", replace(tiny_config, n_ctx=320), tiny_tokenizer)
    return tmp_path / "runs"


def open_page(monkeypatch: pytest.MonkeyPatch, name: str, *folders: Path, **address: object) -> AppTest:
    monkeypatch.setattr(sys, "argv", ["explorer.py", *map(str, folders)])
    code = f"from apps import page_{name} as it\nfrom apps.parts import address\naddress.restore()\nit.page()\n"
    page = AppTest.from_string(code, default_timeout=60)
    for choice, value in {"prompt": "Once upon a time", "tokens": 2, "sample_tokens": 2, **address}.items():
        page.query_params[choice] = str(value)
    return page.run()


def problems(page: AppTest) -> list[str]:
    """What a page says is wrong, without the signs that keep it from being markup."""
    return [str(said.value).replace("\\", "").replace("\u2060", "") for said in (*page.error, *page.warning)]


def newest(folder: Path) -> None:
    """Make a checkpoint the one that a page opens on."""
    os.utime(folder / "model.safetensors", (4e9, 4e9))


@pytest.mark.parametrize("name", PAGES)
def test_a_folder_whose_name_is_not_utf8_is_listed_with_its_bytes_beside_the_others(
    monkeypatch: pytest.MonkeyPatch, runs: Path, tiny_config: ShardConfig, tiny_tokenizer: Tokenizer, name: str
) -> None:
    strange = make_run(runs / "strange", tiny_config, tiny_tokenizer)
    newest(strange / "checkpoints" / "step-00000020")
    strange.rename(os.fsdecode(os.fsencode(runs) + b"/caf\xe9"))
    page = open_page(monkeypatch, name, runs, fingerprint="0123456789ab")
    assert not page.exception
    assert not page.error
    if name == "runs":
        assert set(page.dataframe[0].value["run"]) == {"good", "caf\\udce9"}
        return
    options = page.selectbox(key="checkpoint").options
    assert {name.split("/")[1] for name in options} == {"good", "caf\\udce9"}
    assert str(page.selectbox(key="checkpoint").value).startswith("runs/good/")
    # The safetensors library opens no such file.
    assert any("cafudce9" in said and "not valid UTF-8" in said for said in problems(page))


def deep_config(folder: Path) -> None:
    (folder / "config.json").write_text(DEEP)


def tensors_in_a_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def weights_from_a_pipe(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def endless_link(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")


def deep_state(folder: Path) -> None:
    (folder / "state.json").write_text(DEEP)


def deep_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(DEEP)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "manifest.json").unlink()


BROKEN = [deep_config, tensors_in_a_folder, weights_from_a_pipe, endless_link, deep_state, deep_tokenizer, no_tokenizer]


@pytest.mark.parametrize("spoil", BROKEN)
def test_a_broken_checkpoint_is_passed_over_with_a_line_and_the_next_one_opens(
    monkeypatch: pytest.MonkeyPatch, runs: Path, tiny_checkpoint: Path, spoil: Callable[[Path], None]
) -> None:
    tiny_checkpoint = tiny_checkpoint.rename(runs / "tiny")
    spoil(tiny_checkpoint)
    newest(tiny_checkpoint)
    # A fingerprint in the address is looked for in every checkpoint.
    page = open_page(monkeypatch, "attention", runs, fingerprint="0123456789ab")
    assert not page.exception
    assert not page.error
    assert str(page.selectbox(key="checkpoint").value).startswith("runs/good/")
    assert any(said.startswith("runs/tiny ") for said in problems(page))
    page.selectbox(key="checkpoint").select("runs/tiny").run()
    assert not page.exception
    assert [said.startswith("runs/tiny ") for said in problems(page)] == [True]


def deep_recipe(run: Path) -> None:
    (run / "recipe.json").write_text(DEEP)


def recipe_in_a_folder(run: Path) -> None:
    (run / "recipe.json").unlink()
    (run / "recipe.json").mkdir()


def huge_schedule(run: Path) -> None:
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["schedule"]["steps"] = 10**400
    (run / "recipe.json").write_text(json.dumps(recipe))


def metrics_in_a_folder(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()


def metrics_from_a_pipe(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")


@pytest.mark.parametrize(
    "spoil", [deep_recipe, recipe_in_a_folder, huge_schedule, metrics_in_a_folder, metrics_from_a_pipe]
)
def test_a_run_that_cannot_be_read_is_a_line_of_the_table_that_says_so(
    monkeypatch: pytest.MonkeyPatch, runs: Path, tiny_config: ShardConfig, tiny_tokenizer: Tokenizer, spoil: Callable
) -> None:
    bad = make_run(runs / "bad", tiny_config, tiny_tokenizer)
    spoil(bad)
    page = open_page(monkeypatch, "runs", runs)
    assert not page.exception
    states = dict(zip(page.dataframe[0].value["run"], page.dataframe[0].value["state"], strict=True))
    assert "cannot be read" in states["bad"]
    assert states["good"] == "running"
    assert "/good" not in " ".join(problems(page))


STRANGE_LINES = [
    DEEP,
    '{"kind": "train", "step": 1%s, "cross_entropy": 2.0}' % ("0" * 400),
    '{"kind": "train", "step": -7, "cross_entropy": 2.0}',
    '{"kind": "train", "step": 30, "cross_entropy": 1%s, "lr": "fast", "tokens_per_second": [1]}' % ("0" * 400),
    '{"kind": "train", "step": 31, "cross_entropy": {"a": 1}, "tokens_per_second": "many"}',
    '{"kind": "eval", "step": 31, "\\ud800": {"loss": "low", "bits_per_byte": [2]}, "all": 3}',
    '{"kind": "eval", "step": 32, "\\ud800": {"loss": 1.0, "bits_per_byte": 2.0}}',
    '{"kind": "sentinel", "step": 32, "matrices": [1, 2]}',
    '{"kind": "sentinel", "step": 33, "matrices": {"a": 1, "b": [1], "c": [1, 0], "d": ["x", "y"]}}',
    '{"kind": "event", "step": 33, "event": ["\\ud800"], "started_from": 7}',
    '{"kind": ["train"], "step": 34}',
    '{"kind": "sample", "step": 40}',
    '{"kind": "sample", "step": 40, "prompt": "\\ud800", "output": 3, "failure": ["loop"]}',
]


@pytest.mark.parametrize("curve", ["cross_entropy", "held_out_loss", "lr", "tokens_per_second", "smallest_ratio"])
def test_strange_lines_of_a_log_are_gaps_of_the_curves(monkeypatch: pytest.MonkeyPatch, runs: Path, curve: str) -> None:
    with (runs / "good" / "metrics.jsonl").open("a") as file:
        file.write("".join(line + "\n" for line in STRANGE_LINES))
    page = open_page(monkeypatch, "runs", runs, curve=curve)
    assert not page.exception
    assert not problems(page)
    assert page.dataframe[0].value["run"].tolist() == ["good"]


def test_a_sample_line_without_its_parts_says_which_are_missing(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    with (runs / "good" / "metrics.jsonl").open("a") as file:
        file.write("".join(line + "\n" for line in STRANGE_LINES))
    page = open_page(monkeypatch, "failures", runs)
    assert not page.exception
    assert not problems(page)
    failures = page.dataframe[-1].value["failure"].tolist()
    assert failures == ["no failure logged", "no failure logged", "no flag", "loop"]


def test_a_log_that_is_a_folder_leaves_the_failures_page_its_samples(
    monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    metrics_in_a_folder(runs / "good")
    page = open_page(monkeypatch, "failures", runs)
    assert not page.exception
    assert [said.startswith("What it logged cannot be read: ") for said in problems(page)] == [True]


def test_a_damaged_training_state_is_a_line_below_its_run(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    for checkpoint in (runs / "good" / "checkpoints").iterdir():
        (checkpoint / "state.json").write_text("{}")
    page = open_page(monkeypatch, "runs", runs)
    assert not page.exception
    assert [said.startswith("How far it came cannot be read: ") for said in problems(page)] == [True]


def test_a_damaged_checkpoint_of_a_run_is_left_out_of_its_heads_with_a_line(
    monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    (runs / "good" / "checkpoints" / "step-00000010" / "config.json").write_text(DEEP)
    address = {"checkpoint": "runs/good/step-00000020", "follow": "True", "tokens": 0}
    page = open_page(monkeypatch, "heads", runs, **address)
    assert not page.exception
    assert not page.error
    assert ["step-00000010" in said for said in problems(page)] == [True]


def endless_pattern(folder: Path) -> None:
    """A tokenizer on whose pattern the tokenizers library panics: it tries every way to part a word."""
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    pattern = {"type": "Split", "pattern": {"Regex": r"(a|a|aa)+$"}, "behavior": "Isolated", "invert": False}
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [pattern, values["pre_tokenizer"]]}
    path.write_text(json.dumps(values))
    (folder / "manifest.json").unlink(missing_ok=True)


@pytest.mark.parametrize("name", OF_A_MODEL)
def test_a_tokenizer_that_panics_is_one_sentence(monkeypatch: pytest.MonkeyPatch, runs: Path, name: str) -> None:
    for checkpoint in (runs / "good" / "checkpoints").iterdir():
        endless_pattern(checkpoint)
    page = open_page(monkeypatch, name, runs, prompt="a" * 60 + "b")
    assert not page.exception
    assert len(problems(page)) <= 1
    assert name == "failures" or problems(page)


@pytest.fixture(params=["weights", "scale"])
def not_finite(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_config: ShardConfig, tiny_tokenizer: Tokenizer
) -> Path:
    """A checkpoint whose weights are finite and whose logits, or attention, are not."""
    torch.manual_seed(0)
    model = Shard(replace(tiny_config, n_ctx=320), tiny_tokenizer)
    with torch.no_grad():
        if request.param == "weights":
            for block in model.blocks:
                block.attn.W_Q.fill_(3e38)
                block.attn.W_K.fill_(3e38)
        else:
            model.ln_final.w.fill_(3e38)
            model.embed.W_E.mul_(1e4)
    return save_checkpoint(tmp_path / "broken", model)


@pytest.mark.parametrize("name", OF_A_MODEL)
@pytest.mark.parametrize("tokens", [0, 2])
def test_a_model_that_computes_no_numbers_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, not_finite: Path, name: str, tokens: int
) -> None:
    page = open_page(monkeypatch, name, not_finite, tokens=tokens)
    assert not page.exception
    said = problems(page)
    assert len(said) <= 1
    assert all("not finite" in words for words in said)
    # Attention of finite queries and keys can be looked at whatever comes after it.
    assert said or (tokens == 0 and name in ("attention", "heads"))


def test_weights_that_are_no_numbers_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer
) -> None:
    with torch.no_grad():
        tiny_model.embed.W_E[0, 0] = float("nan")
    broken = save_checkpoint(tmp_path / "broken", tiny_model, tokenizer=tiny_tokenizer)
    for name in OF_A_MODEL:
        page = open_page(monkeypatch, name, broken)
        assert not page.exception
        assert len(problems(page)) == 1
        assert "not finite" in problems(page)[0]


@pytest.mark.parametrize(
    "name",
    ["http://evil.example/a", "HTTPS://evil.example", "www.evil.example", "a@evil.example", ":smile:", ":red[x]"],
)
def test_what_an_address_names_is_no_link_in_a_warning(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, name: str
) -> None:
    page = open_page(monkeypatch, "attention", tiny_checkpoint, checkpoint=name, fingerprint=name)
    assert not page.exception
    (warning,) = [said.value for said in page.warning if "is not among the checkpoints" in said.value]
    # Markdown's own escapes are undone before links and pictures are looked for.
    shown = warning.replace("\\", "")
    assert not re.search(r"https?://|www\.|\w@\w|:[\w/]+:|:\w+\[", shown, re.IGNORECASE)
    assert name in shown.replace("\u2060", "")


def test_plain_text_reads_as_it_was_written() -> None:
    text = "at 12:30, see www.example.org/~a, c@d.org: http://x.y"
    assert plain(text).replace("\\", "").replace("\u2060", "") == text
