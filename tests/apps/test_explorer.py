from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="the explorer needs the [app] extra")

from streamlit.testing.v1 import AppTest

from apps.page_samples import evidence, judge
from apps.parts.charts import visible_cells
from apps.parts.checkpoints import find_checkpoints
from apps.parts.continuing import Continuation
from apps.parts.text import plain, visible
from shardscope import Shard
from shardscope.checkpoint import checkpoint_folder, save_checkpoint
from shardscope.failures import CARD_PROMPTS, CardPrompt
from shardscope.generate import SamplingConfig, generate
from shardscope.lens.views import AttentionView
from shardscope.tokenizer import Tokenizer

EXPLORER = Path(__file__).parents[2] / "apps" / "explorer.py"


def start(monkeypatch: pytest.MonkeyPatch, *folders: Path, **address: object) -> AppTest:
    """The explorer over `folders`, opened at an address, run once."""
    monkeypatch.setattr(sys, "argv", [str(EXPLORER), *map(str, folders)])
    app = AppTest.from_file(str(EXPLORER), default_timeout=60)
    for name, value in {"tokens": 5, **address}.items():
        app.query_params[name] = str(value)
    return app.run()


def says(app: AppTest) -> str:
    """Everything that the page says in words."""
    elements = [*app.title, *app.subheader, *app.markdown, *app.caption, *app.error, *app.warning, *app.info, *app.code]
    return "\n".join(str(element.value) for element in elements)


def test_the_explorer_opens_on_a_tiny_checkpoint(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt="Once upon")
    assert not app.exception
    assert app.selectbox(key="checkpoint").value == "tiny"
    assert "Layer 0 · sliding, window 8 · head 0" in says(app)
    assert "tokenizer " in says(app)


def test_the_page_shows_the_tokens_that_the_engine_generates(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer
) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt="Once upon", tokens=7, seed=3, temperature=0.9, top_p=0.8)
    tiny_model.tokenizer = tiny_tokenizer
    config = SamplingConfig(max_new_tokens=7, temperature=0.9, top_p=0.8, seed=3)
    expected = generate(tiny_model, "Once upon", config)[0].text
    assert app.code[0].value == visible(expected)


def test_an_address_restores_checkpoint_prompt_layer_head_and_seed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer
) -> None:
    for name in ("old", "new"):
        save_checkpoint(tmp_path / name, tiny_model, tokenizer=tiny_tokenizer)
    address = {"checkpoint": f"{tmp_path.name}/old", "prompt": "12 plus 7", "layer": 3, "head": 2, "seed": 11}
    app = start(monkeypatch, tmp_path, **address)
    assert app.selectbox(key="checkpoint").value == f"{tmp_path.name}/old"
    assert app.text_area(key="prompt").value == "12 plus 7"
    assert app.number_input(key="seed").value == 11
    assert "Layer 3 · global · head 2" in says(app)
    assert {name: app.query_params[name] for name in address} == {name: str(value) for name, value in address.items()}


def test_an_address_with_nonsense_opens_the_defaults(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt="Once", layer="first", head=99, seed=-5, top_p="nan", measure="<b>", query="x")
    assert not app.exception
    assert "Layer 0 · sliding, window 8 · head 3" in says(app)


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
        ("x" * 400, "and this model's context holds 64; shorten it by at least"),
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


def test_samples_are_the_cards_six_prompts_each_with_its_flag(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXPLORER), str(tiny_checkpoint)])
    page = AppTest.from_string(
        """
        from apps import page_samples
        from apps.parts import address

        address.restore()
        page_samples.page()
        """,
        default_timeout=60,
    )
    page.query_params["sample_tokens"] = "24"
    page.run()
    assert not page.exception
    count, *flags = [element.value for element in page.markdown if "-badge[" in element.value]
    assert len(flags) == len(CARD_PROMPTS)
    assert sum(int(number) for number in re.findall(r"\[(\d+) ", count)) == len(CARD_PROMPTS)
    page.button[1].click().run()
    assert page.query_params["seed"] == "1"


@pytest.mark.parametrize(
    ("words", "failure", "marked"),
    [
        (" a b" * 12, "loop", " a b" * 12),
        ("fine then ?????????? and on", "breakdown", "??????????"),
        ("Fine.", "clean", ""),
    ],
)
def test_the_evidence_is_the_span_that_the_label_names(
    tiny_tokenizer: Tokenizer, words: str, failure: str, marked: str
) -> None:
    sample = Continuation(tuple(tiny_tokenizer.encode(words)), words, "length")
    labels = judge(CardPrompt(text="So", domain="prose"), sample, SamplingConfig(max_new_tokens=99), tiny_tokenizer)
    assert labels.summary == failure
    start, end = evidence(sample, labels, tiny_tokenizer) or (0, 0)
    assert marked in words[start:end]


def test_markdown_in_a_sentence_is_escaped() -> None:
    assert plain("*a* <b>\n[c](d)") == "\\*a\\* \\<b\\> \\[c\\]\\(d\\)"


def test_control_characters_are_written_out_and_letters_kept() -> None:
    assert visible("a\x00b\u202ec\nд é\u200d") == "a␀b\\u202ec\nд é\u200d"


def test_a_map_sends_only_the_squares_that_its_head_can_see() -> None:
    window = 3
    weights = np.tri(6, dtype=np.float32) / np.arange(1, 7)[:, None]
    for view in (
        AttentionView(0, 0, "global", None, 6, 1, weights),
        AttentionView(0, 0, "sliding", window, 6, 1, weights),
    ):
        squares = {(int(q), int(k)) for q, k in visible_cells(view)[["q", "k"]].to_numpy()}
        reach = view.window or 6
        assert squares == {(q, k) for q in range(6) for k in range(6) if 0 <= q - k < reach}
    assert visible_cells(view)["w"].max() == 65535
