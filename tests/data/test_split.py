from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shardscope.config import DataConfig, Source
from shardscope.data import DataError, Document, sample_documents, token_shards
from shardscope.data.builtin import builtin_documents
from shardscope.data.files import ReadLog
from shardscope.data.split import holdout_threshold, side_hash
from shardscope.tokenizer import Tokenizer

Write = Callable[..., Path]
DataOf = Callable[..., DataConfig]
Sentences = Callable[..., list[str]]


def texts_of(data: DataConfig, tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """The trained and the held-out texts of the first source, read back from its shards."""
    shards = token_shards(data.sources[0], data, tokenizer, progress=False)
    return _texts(shards.train.tokens.tolist(), tokenizer), _texts(shards.holdout.tokens.tolist(), tokenizer)


def _texts(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    texts: list[list[int]] = []
    for id in ids:
        if id == tokenizer.bos_id:
            texts.append([])
        else:
            texts[-1].append(id)
    return [tokenizer.decode(text) for text in texts]


def test_about_one_document_in_a_hundred_is_held_out_and_none_is_lost(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer, sentences: Sentences
) -> None:
    documents = sentences(3000)
    train, held_out = texts_of(data_of(write_jsonl("a.jsonl", documents)), small_tokenizer)
    assert 15 <= len(held_out) <= 50
    assert sorted(train + held_out) == sorted(documents)
    assert all(side_hash(Document(text, "")) < 2**64 // 100 for text in held_out)


def test_copies_of_a_document_fall_on_the_same_side(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer, sentences: Sentences
) -> None:
    train, held_out = texts_of(data_of(write_jsonl("a.jsonl", sentences(600) * 2)), small_tokenizer)
    assert not set(train) & set(held_out)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_small_source_holds_out_one_document(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer, sentences: Sentences, count: int
) -> None:
    data = data_of(write_jsonl("a.jsonl", sentences(count)))
    train, held_out = texts_of(data, small_tokenizer)
    assert (len(train), len(held_out)) == (count - 1, 1)
    assert list(sample_documents(data, 100)) == train


@pytest.mark.parametrize("texts", [[], ["only one"], ["the same", "the same"]])
def test_a_source_that_cannot_hold_out_says_what_to_do(write_jsonl: Write, data_of: DataOf, texts: list[str]) -> None:
    data = data_of(write_jsonl("a.jsonl", texts))
    with pytest.raises(DataError, match=r"data\.sources\.a: .*fewer than two different documents.*holdout"):
        holdout_threshold(data.sources[0], data)


def test_a_tokenizer_never_sees_a_held_out_document(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer, sentences: Sentences
) -> None:
    data = data_of(write_jsonl("a.jsonl", sentences(2000)))
    train, held_out = texts_of(data, small_tokenizer)
    sampled = list(sample_documents(data, 10_000))
    assert sampled == train
    assert held_out


def test_a_sample_takes_from_the_sources_in_turn(write_jsonl: Write, data_of: DataOf, sentences: Sentences) -> None:
    data = data_of(write_jsonl("a.jsonl", sentences(3, "a")), write_jsonl("b.jsonl", sentences(6, "b")))
    assert [text[0] for text in sample_documents(data, 100)] == ["a", "b", "a", "b", "b", "b", "b"]
    assert len(list(sample_documents(data, 3))) == 3


def test_no_line_of_held_out_prose_stands_in_the_code_that_is_trained_on(data_of: DataOf) -> None:
    """The prose of the built-in corpus is cut from its code, so a module's two documents go to the same side."""
    sides: dict[str, tuple[list[str], list[str]]] = {}
    for name in ("prose", "code"):
        source = Source(name=name, path=f"builtin:{name}")
        threshold = holdout_threshold(source, data_of(source))
        sides[name] = ([], [])
        for found in builtin_documents(name, 0, ReadLog()):
            document = Document(*found)
            sides[name][side_hash(document) < threshold].append(document.text)
    trained, held_out = set("\n".join(sides["code"][0]).splitlines()), sides["prose"][1]
    assert len(held_out) >= 10
    long_lines = [line for text in held_out for line in text.splitlines() if len(line) >= 30]
    # What is left are phrases that several modules share, licences and the like.
    assert sum(line.strip() in trained or line in trained for line in long_lines) < 0.02 * len(long_lines)
