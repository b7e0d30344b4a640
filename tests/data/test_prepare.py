from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shardscope.config import DataConfig, Source
from shardscope.data import Prepared, prepare, sample_documents
from shardscope.tokenizer import Tokenizer

Write = Callable[..., Path]
DataOf = Callable[..., DataConfig]
Sentences = Callable[..., list[str]]


@pytest.fixture
def data(write_jsonl: Write, data_of: DataOf, sentences: Sentences) -> DataConfig:
    broken = write_jsonl("b.jsonl", sentences(150, "b"))
    with open(broken, "a") as file:
        file.write("{broken\n")
    return data_of(
        Source(name="a", path=str(write_jsonl("a.jsonl", sentences(300, "a"))), weight=3.0),
        Source(name="b", path=str(broken)),
        Source(name="watched", path=str(write_jsonl("c.jsonl", sentences(40, "c"))), weight=0.0),
        on_malformed="skip",
    )


def prepared(data: DataConfig, tokenizer: Tokenizer) -> Prepared:
    return prepare(data, tokenizer, batch_size=8, seed=5, eval_tokens=100, progress=False)


def test_a_recipes_data_becomes_a_mixture_and_held_out_text_of_every_source(
    data: DataConfig, small_tokenizer: Tokenizer
) -> None:
    found = prepared(data, small_tokenizer)
    assert found.mixture.names == ("a", "b")
    assert found.mixture.batch(0).tokens.shape == (8, 33)
    assert found.mixture.batch(0).sources.tolist().count(0) == 6
    assert list(found.holdouts) == ["a", "b", "watched"]
    assert all(holdout.bytes > 0 for holdout in found.holdouts.values())
    assert found.malformed == {"a": 0, "b": 1, "watched": 0}


def test_batches_show_the_text_of_the_documents_they_name(
    data: DataConfig, small_tokenizer: Tokenizer, sentences: Sentences
) -> None:
    mixture = prepared(data, small_tokenizer).mixture
    for row, (name, origins) in zip(mixture.batch(4).tokens.tolist(), mixture.describe(4), strict=True):
        documents = [sentences(300, name)[int(origin.rsplit(":", 1)[1]) - 1] for origin in origins]
        assert small_tokenizer.decode([id for id in row if id]).strip("\ufffd") in "".join(documents)


def test_no_held_out_document_is_ever_in_a_batch(data: DataConfig, small_tokenizer: Tokenizer) -> None:
    found = prepared(data, small_tokenizer)
    held_out = {
        found.holdouts[name].shard.origin(n) for name in "ab" for n in range(len(found.holdouts[name].shard.starts))
    }
    trained = {origin for step in range(100) for _, origins in found.mixture.describe(step) for origin in origins}
    assert len(trained) > 400
    assert not trained & held_out


def test_preparing_again_gives_the_same_batches(data: DataConfig, small_tokenizer: Tokenizer, tmp_path: Path) -> None:
    elsewhere = replace(data, cache_dir=str(tmp_path / "elsewhere"))
    first, second = (prepared(d, small_tokenizer).mixture.batch(9) for d in (data, elsewhere))
    assert torch.equal(first.tokens, second.tokens)


def test_a_progress_bar_is_drawn_when_asked_for(
    data: DataConfig,
    small_tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    prepare(data, small_tokenizer, batch_size=8, seed=5, eval_tokens=100)
    drawn = capsys.readouterr().err
    assert "tokenizing a: 100%" in drawn
    assert "tokenizing watched: 100%" in drawn
    assert "held-out text in b: 100%" in drawn


def test_a_builtin_source_goes_all_the_way(data_of: DataOf) -> None:
    data = data_of(Source(name="arithmetic", path="builtin:arithmetic", documents=2000))
    tokenizer = Tokenizer.train(sample_documents(data, 500), 400)
    found = prepared(data, tokenizer)
    assert len(found.holdouts["arithmetic"].shard.starts) + len(found.shards["arithmetic"].train.starts) == 2000
    assert found.mixture.describe(0)[0][1][0].startswith("builtin:arithmetic:")
