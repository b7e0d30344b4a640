"""Failures: samples with their labels, and the X-ray of a loop."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from opening import open_page, says
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Button

from apps.page_failures import sample_cell
from apps.parts.checkpoints import try_to_open
from apps.parts.continuing import Continuation
from apps.parts.flags import judge
from apps.parts.xray import Looping, compared, continuation_of, of_row, rewritten_cell
from shardscope import Shard, ShardConfig, load
from shardscope.checkpoint import save_checkpoint
from shardscope.failures import CARD_PROMPTS, find_loop, load_suite
from shardscope.failures.loop_xray import Cause, XrayError, find_cause, find_onset, find_suspects, replay, try_cures
from shardscope.generation import SamplingConfig, generate
from shardscope.tokenizer import Tokenizer


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
