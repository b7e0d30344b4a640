"""What holds for every page: any address, any prompt and any model is a page or a sentence."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from opening import EXPLORER, open_page, says

from shardscope import Shard, ShardConfig
from shardscope.checkpoint import save_checkpoint
from shardscope.tokenizer import Tokenizer


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


def test_every_page_is_pictured_in_the_docs() -> None:
    docs = EXPLORER.parents[1] / "docs"
    named = re.findall(r"images/[a-z]+\.png", (docs / "explorer.md").read_text())
    assert {f"images/{page}.png" for page in ("attention", "tokens", "heads", "runs", "failures")} <= set(named)
    for image in [*named, "images/explorer.png"]:
        assert 0 < (docs / image).stat().st_size <= 400_000
