from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("streamlit", reason="the explorer needs the [app] extra")

from small_run import make_run
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Button

from apps.page_failures import sample_cell
from apps.page_runs import CURVES, curve_cell, curve_table, find_runs, fork_step, story
from apps.parts.address import CHOICES, FIRST_PROMPT, PACKED, pack, write
from apps.parts.checkpoints import find_checkpoints, fingerprint, try_to_open
from apps.parts.continuing import Continuation
from apps.parts.flags import judge
from apps.parts.xray import Looping, compared, continuation_of, of_row, rewritten_cell
from shardscope import Shard, ShardConfig, load
from shardscope.checkpoint import checkpoint_folder, save_checkpoint
from shardscope.failures import CARD_PROMPTS, find_loop, load_suite
from shardscope.failures.loop_xray import Cause, XrayError, find_cause, find_onset, find_suspects, replay, try_cures
from shardscope.generation import SamplingConfig, generate
from shardscope.microscope import find_heads, head_scores, read
from shardscope.tokenizer import Tokenizer
from shardscope.train.metrics import Metrics
from shardscope.visible import visible

EXPLORER = Path(__file__).parents[2] / "apps" / "explorer.py"


def start(monkeypatch: pytest.MonkeyPatch, *folders: Path, **address: object) -> AppTest:
    """The explorer over `folders`, opened at an address, run once."""
    monkeypatch.setattr(sys, "argv", [str(EXPLORER), *map(str, folders)])
    app = AppTest.from_file(str(EXPLORER), default_timeout=60)
    for name, value in {"tokens": 5, **address}.items():
        app.query_params[name] = str(value)
    return app.run()


def open_page(monkeypatch: pytest.MonkeyPatch, name: str, *folders: Path, **address: object) -> AppTest:
    """One of the other pages, alone."""
    monkeypatch.setattr(sys, "argv", [str(EXPLORER), *map(str, folders)])
    code = f"from apps import page_{name} as it\nfrom apps.parts import address\naddress.restore()\nit.page()\n"
    page = AppTest.from_string(code, default_timeout=60)
    for choice, value in address.items():
        page.query_params[choice] = str(value)
    return page.run()


def says(app: AppTest) -> str:
    """Everything that the page says in words."""
    elements = [*app.title, *app.subheader, *app.markdown, *app.caption, *app.error, *app.warning, *app.info, *app.code]
    return re.sub(r":(blue|orange)\[(.*?)\]", r"\2", "\n".join(str(element.value) for element in elements))


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


def test_an_address_that_names_half_a_head_means_number_0_of_the_other_half(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt="one two one two", tokens=0, head=2)
    assert "Layer 0 · sliding, window 8 · head 2" in says(app)


def test_the_page_shows_the_tokens_that_the_engine_generates(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer
) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt="Once upon", tokens=7, seed=3, temperature=0.9, top_p=0.8)
    tiny_model.tokenizer = tiny_tokenizer
    config = SamplingConfig(max_new_tokens=7, temperature=0.9, top_p=0.8, seed=3)
    expected = generate(tiny_model, "Once upon", config).text
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
    app = start(
        monkeypatch,
        tiny_checkpoint,
        prompt="Once",
        layer="first",
        head=99,
        seed=-5,
        top_p="nan",
        measure="<b>",
        query="x",
        rectangle="1-2",
    )
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


def test_samples_are_the_cards_six_prompts_each_with_its_flag(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    page = open_page(monkeypatch, "failures", tiny_checkpoint, sample_tokens=24)
    assert not page.exception
    table = page.dataframe[0].value
    assert list(table["prompt"]) == [prompt.text for prompt in CARD_PROMPTS]
    count = next(element.value for element in page.markdown if "-badge[" in element.value)
    assert sum(int(number) for number in re.findall(r"\[(\d+) ", count)) == len(CARD_PROMPTS)
    assert "green" not in says(page)
    page.button[1].click().run()
    assert page.query_params["seed"] == "1"


@pytest.mark.parametrize("suite", ["math", "code", "prose", "retrieval"])
def test_the_suite_is_sampled_by_domain_and_what_does_not_fit_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, suite: str
) -> None:
    page = open_page(monkeypatch, "failures", tiny_checkpoint, sample_tokens=1, suite=suite)
    assert not page.exception
    assert page.query_params["suite"] == suite
    if not page.error:
        chosen = [p for p in load_suite() if (p.domain if p.retrieval is None else "retrieval") == suite]
        assert len(page.dataframe[0].value) <= len(chosen)
        assert page.session_state.sample in {p.id for p in chosen}


@pytest.fixture
def looping_checkpoint(tmp_path: Path, tiny_config: ShardConfig, tiny_tokenizer: Tokenizer) -> Path:
    """Random weights, with MLPs that have more to say than the heads: what follows a token is soon the same again."""
    torch.manual_seed(9)
    model = Shard(replace(tiny_config, n_ctx=256, n_layers=2), tiny_tokenizer).eval()
    with torch.no_grad():
        model.embed.W_E.mul_(2)
        for block in model.blocks:
            block.mlp.W_out.mul_(6)
            block.mlp.W_in.mul_(3)
            block.mlp.W_gate.mul_(3)
    return save_checkpoint(tmp_path / "looping", model)


def test_a_loop_is_explained_step_by_step_and_written_again_without_its_cause(
    monkeypatch: pytest.MonkeyPatch, looping_checkpoint: Path
) -> None:
    monkeypatch.setattr(replay, "SHORTEST", 24)
    causes: list[Cause] = []

    def find_and_note(*args: Any, **kwargs: Any) -> Cause:
        causes.append(find_cause(*args, **kwargs))
        return causes[-1]

    monkeypatch.setattr("apps.parts.xray.find_cause", find_and_note)
    model = load(looping_checkpoint, "cpu")
    sampling = SamplingConfig(max_new_tokens=96, temperature=0.0)
    texts = generate(model, [prompt.text for prompt in CARD_PROMPTS], sampling)
    row = next(row for row, text in enumerate(texts) if find_loop(text.ids))
    choices = {"sample_tokens": 96, "temperature": 0.0, "sample": CARD_PROMPTS[row].id}
    page = open_page(monkeypatch, "failures", looping_checkpoint, **choices)
    assert not page.exception
    onset = find_onset(model, texts[row])
    who = find_suspects(model, texts[row], onset)
    copies = f"From token {onset.onset} of the output on: {onset.repeats:.1f} copies of {onset.period} tokens"
    assert copies in says(page)
    parts = sorted(who.parts, key=lambda part: -part.attribution)
    assert list(page.dataframe[1].value["part"]) == [part.name for part in parts[:10]]
    button(page, "Find the cause").click().run()
    assert not page.exception
    assert page.query_params["cause"] == "True"
    (found,) = causes
    assert found.smallest_set
    assert f"**Cause: {found.verdict}**" in says(page)
    assert f"Smallest set: **{', '.join(found.smallest_set)}**" in says(page)
    button(page, "Switch ").click().run()
    assert not page.exception
    assert page.query_params["without"] == "True"
    assert f"**Without {', '.join(found.smallest_set)}**" in says(page)
    page.selectbox(key="sample").select(CARD_PROMPTS[row - 1].id).run()
    assert not page.exception
    assert "cause" not in page.query_params


def button(page: AppTest, label: str) -> Button:
    return next(button for button in page.button if button.label.startswith(label))


def test_a_loop_that_greedy_text_leaves_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise XrayError("greedy decoding leaves it after 3 copies")

    ids = tuple(load(tiny_checkpoint).tokenizer.encode(" a b" * 12))
    looping = Continuation(ids, " a b" * 12, "length")
    monkeypatch.setattr("apps.page_failures.continue_prompts", lambda opened, prompts, _: [[looping] * len(prompts)])
    monkeypatch.setattr("apps.parts.xray.find_cause", refuse)
    page = open_page(monkeypatch, "failures", tiny_checkpoint, sample_tokens=24, cause=True)
    assert not page.exception
    assert page.info[0].value == "Greedy decoding leaves it after 3 copies."


def test_a_saved_view_of_a_loop_is_remade_by_its_cell(looping_checkpoint: Path, tiny_tokenizer: Tokenizer) -> None:
    """What a cell leaves is what the page computed, with the seed that the engine gave to that row."""
    opened = try_to_open("looping", looping_checkpoint)
    assert opened is not None
    prompt, row = CARD_PROMPTS[3], 3
    batch = SamplingConfig(max_new_tokens=40, temperature=0.8, seed=5)
    text = generate(opened.model, [prompt.text for prompt in CARD_PROMPTS], batch)[row]
    ids = tuple(tiny_tokenizer.encode(prompt.text, bos=True))
    shown = Looping(opened, prompt, Continuation(text.ids, text.text, text.stop_reason), ids, of_row(batch, row))
    left: dict[str, Any] = {}
    exec(sample_cell(shown), left)
    assert left["generation"].text == text.text


def test_the_texts_beside_each_other_are_those_that_the_cures_count(
    looping_checkpoint: Path, tiny_tokenizer: Tokenizer
) -> None:
    """On the page, in its cell, and by the label: a text loops where the table says that it does."""
    opened = try_to_open("looping", looping_checkpoint)
    assert opened is not None
    sampling = SamplingConfig(max_new_tokens=96)
    for prompt in CARD_PROMPTS:
        text = generate(opened.model, prompt.text, sampling)
        if find_loop(text.ids):
            break
    ids = tuple(tiny_tokenizer.encode(prompt.text, bos=True))
    shown = Looping(opened, prompt, Continuation(text.ids, text.text, text.stop_reason), ids, sampling)
    when = find_onset(opened.model, shown.generation)
    drawn = compared(try_cures(opened.model, shown.generation, when, ["MLP0", "L1H2"]))
    left: dict[str, Any] = {}
    exec(rewritten_cell(shown, ["MLP0", "L1H2"]), left)
    assert left["texts"] == [continuation_of(cure).text for cure in drawn.values()]
    assert drawn["the whole model"].ids[: len(text.ids)] == list(text.ids)
    for cure in drawn.values():
        assert cure.looping == (judge(prompt, continuation_of(cure), tiny_tokenizer).loop is not None)


def test_only_a_prompt_is_unpacked(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    app = start(monkeypatch, tiny_checkpoint, **dict.fromkeys(CHOICES, pack("3")))
    assert not app.exception
    assert {name for name in CHOICES if app.session_state[name] == "3"} == {"prompt"}


def test_what_an_address_says_and_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt=PACKED + "@@@@", layer="first", seed="3")
    assert not app.exception
    assert app.text_area(key="prompt").value == FIRST_PROMPT
    assert "says prompt, layer in a way that cannot be read" in app.warning[0].value
    assert app.number_input(key="seed").value == 3


def test_every_choice_that_an_address_holds_is_read_back_as_it_was_written() -> None:
    for name, value in {"rectangle": (1, 20, 3, 40), "ablate": ((3, 1), (0, 2)), "runs": ["a b", "c"]}.items():
        assert CHOICES[name][1](write(value)) == value


def test_an_address_made_with_another_checkpoint_says_so(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt="Once", checkpoint="tiny", fingerprint="0123456789ab")
    assert not app.exception
    assert "made with another checkpoint" in app.warning[0].value


@pytest.mark.parametrize("reused", [False, True])
def test_a_checkpoint_that_was_renamed_is_found_also_when_another_has_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer, reused: bool
) -> None:
    for name in ("before", "newest"):
        save_checkpoint(tmp_path / name, tiny_model, tokenizer=tiny_tokenizer)
        with torch.no_grad():
            tiny_model.embed.W_E.mul_(1.5)
    made_with = fingerprint(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    if reused:
        (tmp_path / "newest").rename(tmp_path / "before")
    app = start(monkeypatch, tmp_path, prompt="Once", checkpoint=f"{tmp_path.name}/before", fingerprint=made_with)
    assert not app.warning
    assert app.selectbox(key="checkpoint").value == f"{tmp_path.name}/after"
    assert any("holds another checkpoint now" in info.value for info in app.info) == reused
    # What somebody picks afterwards is theirs.
    other = f"{tmp_path.name}/{'before' if reused else 'newest'}"
    app.selectbox(key="checkpoint").select(other).run()
    assert app.selectbox(key="checkpoint").value == other
    assert app.query_params["fingerprint"] != made_with


def test_the_same_weights_with_another_window_are_another_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer
) -> None:
    """One explorer, one prompt, two configs: what the second shows is computed with the second."""
    prompt = "Once upon a time, in a small village"
    for window in (8, 32):
        config = replace(tiny_model.config, window=window)
        save_checkpoint(tmp_path / f"w{window}", tiny_model.state_dict(), config=config, tokenizer=tiny_tokenizer)
    for window in (8, 32):
        name = f"{tmp_path.name}/w{window}"
        app = start(monkeypatch, tmp_path, prompt=prompt, checkpoint=name, tokens=0, layer=0)
        model = load(tmp_path / f"w{window}")
        score = head_scores(read(model, torch.tensor(tiny_tokenizer.encode(prompt, bos=True))))[0]
        assert f"entropy **{score.entropy:.4f}**" in says(app)
        assert app.query_params["fingerprint"] == fingerprint(tmp_path / f"w{window}")


def test_a_config_that_is_rewritten_beside_an_open_checkpoint_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt="Once upon a time", tokens=0)
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    config["model"]["window"] = 32
    (tiny_checkpoint / "config.json").write_text(json.dumps(config))
    app = app.run()
    assert not app.exception
    assert re.search(r"tiny cannot be opened: .*config.*is not as it was saved", says(app))
    # Taken as it is, without its sums, it is another checkpoint.
    (tiny_checkpoint / "manifest.json").unlink()
    app = app.run()
    assert "sliding, window 32" in says(app)
    assert "made with another checkpoint" in app.warning[0].value


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


@pytest.fixture
def tiny_run(tmp_path: Path, tiny_config: ShardConfig, tiny_tokenizer: Tokenizer) -> Path:
    return make_run(tmp_path / "runs" / "tiny-run", tiny_config, tiny_tokenizer)


@pytest.mark.parametrize("name", ["tokens", "heads", "runs"])
def test_every_page_opens_and_shows_what_its_address_says(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Path, name: str
) -> None:
    page = open_page(monkeypatch, name, tiny_run.parent, prompt="Once upon a time", tokens=4, seed=2, by="sink")
    assert not page.exception
    assert not page.error
    assert page.query_params["seed"] == "2"


@pytest.mark.parametrize("prompt", ["", "<script>alert(1)</script>", "\x00\u202e", "z" * 400])
@pytest.mark.parametrize("name", ["tokens", "heads"])
def test_any_prompt_gives_a_page_or_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, name: str, prompt: str
) -> None:
    page = open_page(monkeypatch, name, tiny_checkpoint, prompt=prompt, tokens=2)
    assert not page.exception
    assert len(page.error) + len(page.info) == (prompt == "" or len(prompt) == 400)


@pytest.mark.parametrize("name", ["tokens", "heads", "attention"])
def test_ids_past_the_tokenizer_of_a_padded_vocabulary_have_a_label(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_config: ShardConfig, tiny_tokenizer: Tokenizer, name: str
) -> None:
    torch.manual_seed(0)
    padded = Shard(replace(tiny_config, vocab_size=600))
    save_checkpoint(tmp_path / "padded", padded, tokenizer=tiny_tokenizer)
    page = open_page(monkeypatch, name, tmp_path, prompt="Once upon a time", tokens=0)
    assert not page.exception
    if name == "tokens":
        assert any("<id " in token for table in page.dataframe for token in table.value.astype(str).to_numpy().ravel())


def test_heads_that_a_model_does_not_have_are_left_out(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    page = open_page(monkeypatch, "tokens", tiny_checkpoint, prompt="Once", tokens=2, ablate="9.9 1.2", target=10**6)
    assert not page.exception
    assert page.session_state["ablate"] == ((1, 2),)
    page = open_page(monkeypatch, "heads", tiny_checkpoint, prompt="Once", tokens=2, heads="9.9", by="beauty")
    assert not page.exception


def test_a_model_without_a_sliding_layer_says_so_and_its_other_heads_can_be_followed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_config: ShardConfig, tiny_tokenizer: Tokenizer
) -> None:
    everywhere = Shard(replace(tiny_config, layer_pattern="G"), tiny_tokenizer)
    save_checkpoint(tmp_path / "global", everywhere)
    page = open_page(monkeypatch, "heads", tmp_path, prompt="Once upon", tokens=0, kind="sliding")
    assert not page.exception
    assert "This model has no sliding layer." in says(page)
    assert page.query_params["kind"] == "sliding"
    assert "How far back they read" not in says(page)
    page = open_page(monkeypatch, "heads", tmp_path, prompt="Once upon", tokens=0, kind="sliding", heads="1.2")
    assert not page.exception
    assert "How far back they read" in says(page)


def test_another_token_is_explained_afresh_and_an_address_keeps_its_choice(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tiny_tokenizer: Tokenizer
) -> None:
    monkeypatch.setattr("apps.page_tokens.CANDIDATES", 300)  # so that any target could be kept
    prompt = "Once upon a time, in a small town"
    ids = tiny_tokenizer.encode(prompt, bos=True)
    this, that = ids[3], ids[1]
    page = open_page(
        monkeypatch, "tokens", tiny_checkpoint, prompt=prompt, tokens=0, query=5, target=this, against=that
    )
    assert (page.session_state["target"], page.session_state["against"]) == (this, that)
    page = page.run()
    assert (page.session_state["target"], page.session_state["against"]) == (this, that)
    for query in (4, 6):
        page.session_state["query"] = query
        page = page.run()
        assert not page.exception
        assert page.session_state["target"] == ids[query]


def test_a_run_whose_recipe_is_broken_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tiny_run: Path) -> None:
    (tiny_run / "recipe.json").write_text('{"name": "x"}')
    page = open_page(monkeypatch, "runs", tiny_run.parent)
    assert not page.exception
    assert page.error[0].value.startswith("Its recipe cannot be read: ")


def test_an_explorer_without_runs_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = open_page(monkeypatch, "runs", tmp_path)
    assert "There is no run under" in page.info[0].value


def test_a_run_outside_the_start_folders_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tiny_config: ShardConfig, tiny_tokenizer: Tokenizer
) -> None:
    inside = make_run(tiny_run.parents[1] / "inside" / "mine", tiny_config, tiny_tokenizer)
    (inside.parent / "link").symlink_to(tiny_run)
    page = open_page(monkeypatch, "runs", inside.parent, runs="tiny-run|../runs/tiny-run")
    assert page.multiselect(key="runs").options == ["mine"]
    assert "not among those" in page.warning[0].value


def test_a_fork_continues_where_its_run_had_come_to(tiny_run: Path, tiny_tokenizer: Tokenizer) -> None:
    recipe = {
        **json.loads((tiny_run / "recipe.json").read_text()),
        "name": "fork",
        "phase": "anneal",
        "model": None,
        "start_from": str(tiny_run),
    }
    fork = tiny_run.parent / "fork"
    metrics = Metrics(fork)
    (fork / "recipe.json").write_text(json.dumps(recipe))
    metrics.write("event", 0, event="start", started_from=str(checkpoint_folder(tiny_run, 20)))
    metrics.write("train", 10, cross_entropy=4.0)
    metrics.close()
    runs = find_runs([tiny_run.parent])
    table = curve_table(list(runs.values()), "cross_entropy")
    assert sorted(zip(table["run"], table["step"], strict=True)) == [("fork", 30), ("tiny-run", 10), ("tiny-run", 20)]
    assert "forks from **tiny\\-run** at step 20" in story(runs["fork"], runs)
    assert "Forked by **fork**" in story(runs["tiny-run"], runs)


def test_a_fork_from_a_checkpoint_folder_names_the_run_of_that_checkpoint(tiny_run: Path) -> None:
    recipe = json.loads((tiny_run / "recipe.json").read_text())
    start_from = str(checkpoint_folder(tiny_run, 10))
    fork = tiny_run.parent / "fork"
    metrics = Metrics(fork)
    (fork / "recipe.json").write_text(
        json.dumps({**recipe, "name": "fork", "phase": "anneal", "model": None, "start_from": start_from})
    )
    metrics.write("event", 0, event="start", started_from=start_from)
    metrics.close()
    runs = find_runs([tiny_run.parent])
    assert "forks from **tiny\\-run** at step 10" in story(runs["fork"], runs)
    assert "Forked by **fork**" in story(runs["tiny-run"], runs)


def test_a_resumed_run_stays_where_it_began(tiny_run: Path) -> None:
    metrics = Metrics(tiny_run)
    metrics.write("event", 20, event="start", started_from=str(checkpoint_folder(tiny_run, 20)))
    metrics.write("train", 30, cross_entropy=4.0)
    metrics.close()
    run = find_runs([tiny_run.parent])["tiny-run"]
    assert fork_step(run) == 0
    assert curve_table([run], "cross_entropy")["step"].tolist() == [10, 20, 30]


def test_numbers_that_were_not_finite_are_gaps_of_their_curves(monkeypatch: pytest.MonkeyPatch, tiny_run: Path) -> None:
    metrics = Metrics(tiny_run)
    nothing = float("nan")
    metrics.write("sentinel", 20, matrices={"a": [nothing, 1.0], "b": [0.5, 1.0], "c": [1.0, nothing]})
    metrics.write("sentinel", 30, matrices={"a": [nothing, nothing]})
    metrics.write("train", 30, cross_entropy=nothing, lr=nothing, grad_norm=nothing)
    metrics.write(
        "eval", 30, prose={"loss": 4.0, "bits_per_byte": 2.0}, all={"loss": nothing, "bits_per_byte": nothing}
    )
    metrics.close()
    with (tiny_run / "metrics.jsonl").open("ab") as file:
        file.write(b'1\n{"kind": "train", "cross_entropy": 3.0}\n{"kind": "event", "step": 30}\n\xff\n')
    run = find_runs([tiny_run.parent])["tiny-run"]
    expected = {
        "cross_entropy": [("training", 10), ("training", 20)],
        "held_out_loss": [("all", 20), ("code", 20), ("prose", 20), ("prose", 30)],
        "bits_per_byte": [("all", 20), ("code", 20), ("prose", 20), ("prose", 30)],
        "smallest_ratio": [("worst matrix", 20)],
    }
    for curve in CURVES:
        page = open_page(monkeypatch, "runs", tiny_run.parent, curve=curve)
        assert not page.exception
        table = curve_table([run], curve)
        points = sorted(zip(table["series"], table["step"], strict=True))
        assert points == expected.get(curve, points)
        # The cell for a notebook draws the same points.
        left: dict[str, dict[str, list[tuple[int, object]]]] = {}
        exec(curve_cell([run], curve), left)
        ((_, drawn),) = left["curve"].items()
        numbers = [x for _, value in drawn for x in (value.values() if isinstance(value, dict) else [value])]
        assert sorted(x for x in numbers if x is not None) == sorted(table["value"])


def test_a_long_curve_keeps_its_last_point_and_is_thinned(tmp_path: Path, tiny_run: Path) -> None:
    metrics = Metrics(tiny_run)
    for step in range(30, 5030):
        metrics.write("train", step, cross_entropy=1.0)
    metrics.close()
    runs = list(find_runs([tiny_run.parent]).values())
    table = curve_table(runs, "cross_entropy")
    assert 300 < len(table) <= 600
    assert table["step"].max() == 5029
    assert len(curve_table(runs, "cross_entropy", most=0)) == 5002


def test_every_page_is_pictured_in_the_docs() -> None:
    docs = EXPLORER.parents[1] / "docs"
    named = re.findall(r"images/[a-z]+\.png", (docs / "explorer.md").read_text())
    assert {f"images/{page}.png" for page in ("attention", "tokens", "heads", "runs", "failures")} <= set(named)
    for image in [*named, "images/explorer.png"]:
        assert 0 < (docs / image).stat().st_size <= 400_000
