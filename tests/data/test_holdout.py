from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shardscope.config import DataConfig, Source
from shardscope.data import DataError, Holdout, token_shards
from shardscope.tokenizer import Tokenizer

HeldOut = Callable[..., Holdout]


@pytest.fixture
def held_out(
    write_jsonl: Callable[..., Path], data_of: Callable[..., DataConfig], small_tokenizer: Tokenizer
) -> HeldOut:
    def build(texts: list[str], seq_len: int, eval_tokens: int = 10**9) -> Holdout:
        train, held = write_jsonl("train.jsonl", ["train"]), write_jsonl("held.jsonl", texts)
        data = data_of(Source(name="s", path=str(train), holdout=str(held)))
        shard = token_shards(data.sources[0], data, small_tokenizer, progress=False).holdout
        return Holdout("s", shard, small_tokenizer, seq_len=seq_len, eval_tokens=eval_tokens)

    return build


@pytest.mark.parametrize("seq_len", [2, 7, 16, 64, 100_000])
def test_all_windows_together_cover_exactly_the_bytes_of_the_text(
    held_out: HeldOut, sentences: Callable[..., list[str]], seq_len: int
) -> None:
    texts = [*sentences(20), "漢字🙂é\u0301", "", "x"]
    holdout = held_out(texts, seq_len)
    assert holdout.bytes == sum(len(text.encode("utf-8")) for text in texts)
    assert holdout.tokens == len(holdout.shard) - len(texts)


def test_a_window_counts_the_bytes_of_its_targets_and_not_of_its_first_token(
    held_out: HeldOut, small_tokenizer: Tokenizer
) -> None:
    # Without merges an emoji is four tokens of a byte: a window of two targets begins inside it.
    batch = next(held_out(["🙂🙂", "ab"], seq_len=2).batches(100))
    pieces = [small_tokenizer.token_bytes(id) for id in small_tokenizer.encode("🙂🙂")]
    lengths = (
        [len(piece) for piece in pieces]
        + [0]
        + [len(small_tokenizer.token_bytes(id)) for id in small_tokenizer.encode("ab")]
    )
    lengths += [0] * (-len(lengths) % 2)
    assert batch.bytes.flatten().tolist() == lengths


def test_every_target_but_end_of_text_is_scored_and_padding_never(
    held_out: HeldOut, small_tokenizer: Tokenizer, sentences: Callable[..., list[str]]
) -> None:
    for batch in held_out(sentences(7), seq_len=16).batches(3):
        assert torch.equal(batch.bytes > 0, batch.tokens[:, 1:] != small_tokenizer.bos_id)


def test_a_uniform_model_over_bytes_has_eight_bits_per_byte(
    held_out: HeldOut, sentences: Callable[..., list[str]]
) -> None:
    # A model that spends 8 bits on each byte of a target, and any number of bits on end-of-text.
    holdout = held_out([*sentences(9), "🙂"], seq_len=16)
    nats = 0.0
    for batch in holdout.batches(4):
        per_target = batch.bytes * 8 * math.log(2)
        per_target[batch.bytes == 0] = 1e6
        nats += float(batch.scored_nats(per_target))
    assert holdout.bits_per_byte(nats) == pytest.approx(8)


def test_the_windows_do_not_depend_on_the_batch_size_or_the_time(
    held_out: HeldOut, sentences: Callable[..., list[str]]
) -> None:
    holdout = held_out(sentences(30), seq_len=16, eval_tokens=200)
    wholes = [torch.cat([batch.tokens for batch in holdout.batches(size)]) for size in (1, 4, 1000, 4)]
    assert all(torch.equal(whole, wholes[0]) for whole in wholes)


def test_fewer_tokens_are_spread_over_the_whole_text(held_out: HeldOut, sentences: Callable[..., list[str]]) -> None:
    texts = sentences(100)
    everything, some = held_out(texts, seq_len=16), held_out(texts, seq_len=16, eval_tokens=160)
    all_windows = torch.cat([batch.tokens for batch in everything.batches(50)])
    windows = torch.cat([batch.tokens for batch in some.batches(50)])
    assert len(windows) == 10
    places = [int((all_windows == window).all(dim=1).nonzero()[0]) for window in windows]
    assert places == [n * len(all_windows) // 10 for n in range(10)]
    assert 100 < some.tokens <= 160


def test_held_out_documents_without_text_are_an_error(held_out: HeldOut) -> None:
    with pytest.raises(DataError, match=r"data\.sources\.s: the held-out documents are empty"):
        held_out(["", ""], seq_len=4)
