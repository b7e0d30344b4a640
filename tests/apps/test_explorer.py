"""The explorer opens: on which checkpoint, with which prompt, and in a sentence where it cannot."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from opening import open_page, says, start

from apps.parts.checkpoints import find_checkpoints
from shardscope import Shard, load
from shardscope.checkpoint import checkpoint_folder, save_checkpoint
from shardscope.generation import SamplingConfig, generate
from shardscope.microscope import find_heads, head_scores, read
from shardscope.tokenizer import Tokenizer
from shardscope.visible import visible


def test_the_explorer_opens_on_a_tiny_checkpoint(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt="Once upon")
    assert not app.exception
    assert app.selectbox(key="checkpoint").value == "tiny"
    assert "tokenizer " in says(app)


def test_the_first_view_is_the_strongest_induction_head_and_says_so_until_another_is_chosen(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    prompt = "one two three one two three"
    app = start(monkeypatch, tiny_checkpoint, prompt=prompt, tokens=0)
    model = load(tiny_checkpoint)
    (best,) = find_heads(head_scores(read(model, prompt)), by="induction", top=1)
    assert (app.session_state.layer, app.session_state.head) == (best.layer, best.head)
    assert f"This is head {best.head} of layer {best.layer}, the strongest induction head" in app.info[0].value
    assert (app.query_params["layer"], app.query_params["head"]) == (str(best.layer), str(best.head))
    app.selectbox(key="head").select((best.head + 1) % model.config.n_heads).run()
    assert not app.info


def test_the_page_shows_the_tokens_that_the_engine_generates(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer
) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt="Once upon", tokens=7, seed=3, temperature=0.9, top_p=0.8)
    tiny_model.tokenizer = tiny_tokenizer
    config = SamplingConfig(max_new_tokens=7, temperature=0.9, top_p=0.8, seed=3)
    expected = generate(tiny_model, "Once upon", config).text
    assert app.code[0].value == visible(expected)


def test_the_picker_cannot_leave_its_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_checkpoint: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer
) -> None:
    inside = tmp_path / "inside"
    save_checkpoint(inside / "mine", tiny_model, tokenizer=tiny_tokenizer)
    (inside / "link").symlink_to(tiny_checkpoint)
    assert find_checkpoints([inside]) == {"inside/mine": inside / "mine"}
    app = start(monkeypatch, inside, checkpoint="../tiny")
    assert app.selectbox(key="checkpoint").options == ["inside/mine"]
    assert app.selectbox(key="checkpoint").value == "inside/mine"
    assert "is not among the checkpoints" in app.warning[0].value


def test_the_newest_checkpoint_of_all_runs_comes_first(tmp_path: Path, tiny_model: Shard) -> None:
    for run, step in (("a", 10), ("a", 20), ("b", 5)):
        save_checkpoint(checkpoint_folder(tmp_path / run, step), tiny_model)
    now = time.time()
    os.utime(checkpoint_folder(tmp_path / "a", 20) / "model.safetensors", (now + 9, now + 9))
    names = list(find_checkpoints([tmp_path]))
    assert names[0] == f"{tmp_path.name}/a/step-00000020"
    assert len(names) == 3


def test_without_a_checkpoint_the_page_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    app = start(monkeypatch, tmp_path)
    assert not app.exception
    assert "There is no checkpoint under" in app.info[0].value
    assert "`make demo`" in app.info[0].value


@pytest.mark.parametrize(
    ("file", "content"),
    [("model.safetensors", b"not tensors"), ("config.json", b"{"), ("config.json", b"[]"), ("tokenizer.json", b"{}")],
)
def test_a_broken_checkpoint_is_one_sentence_on_the_page(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, file: str, content: bytes
) -> None:
    (tiny_checkpoint / file).write_bytes(content)
    app = start(monkeypatch, tiny_checkpoint)
    assert not app.exception
    assert [error.value.startswith("tiny cannot be opened: ") for error in app.error] == [True]


def test_a_checkpoint_without_a_tokenizer_is_one_sentence_on_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Shard
) -> None:
    app = start(monkeypatch, save_checkpoint(tmp_path / "mute", tiny_model))
    assert not app.exception
    assert "has no tokenizer" in app.error[0].value


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("", "The prompt is empty; write something"),
        ("x" * 400, "do not fit this model's context of 64; pass at least"),
    ],
)
def test_an_impossible_prompt_is_one_sentence_on_the_page(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, prompt: str, sentence: str
) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt=prompt)
    assert not app.exception
    words = [element.value.replace("\\", "") for element in (*app.error, *app.info)]
    assert len(words) == 1
    assert sentence in words[0]


@pytest.mark.parametrize(
    "prompt",
    [
        "<script>alert(1)</script>",
        "# *not* [a](http://b) :red[c] $d$",
        "\x00\x07\x1b[31m\u202eabc",
        "שלום עולם",
        " \n\t ",
    ],
)
def test_any_prompt_opens_and_is_never_markup(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, prompt: str
) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt=prompt)
    assert not app.exception
    assert not app.error
    markup = "\n".join(str(element.value) for element in (*app.markdown, *app.caption, *app.subheader))
    assert prompt.strip() == "" or prompt not in markup


def test_a_prompt_that_fills_the_context_is_shown_without_a_continuation(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tiny_tokenizer: Tokenizer
) -> None:
    prompt = "z" * 63
    assert len(tiny_tokenizer.encode(prompt, bos=True)) == 64
    app = start(monkeypatch, tiny_checkpoint, prompt=prompt)
    assert not app.exception
    assert "The prompt fills the whole context." in says(app)


def test_a_prompt_alone_is_read_when_no_new_token_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt="Once upon", tokens=0)
    assert not app.exception
    assert not app.code[:-1]
    assert "then 0 new ones" in says(app)
    page = open_page(monkeypatch, "tokens", tiny_checkpoint, prompt="Once upon", tokens=0, ablate="1.2")
    assert not page.exception
    assert "The prediction moves by" in says(page)


def test_a_rectangle_past_the_text_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt="Once", rectangle="50-60,0-10")
    assert not app.exception
    assert "does not reach as far as the rectangle" in app.warning[0].value


def test_a_hundred_thousand_tokens_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt="Once")
    app.text_area(key="prompt").set_value("ab " * 100_000)
    app.button[0].click().run()
    assert not app.exception
    assert "this model\\'s context of 64" in app.error[0].value
